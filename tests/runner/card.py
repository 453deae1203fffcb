"""A device of its own memory for tests: eager as CUDA is, with handles that free themselves, without a card.

Its tensors are tensors of the processor; a download and an upload copy. What reads a handle on the host without a
download, or the other way round, is found by its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import orchestrator.backends
from orchestrator import Pipeline
from orchestrator.backend import Capabilities, Handle
from orchestrator.backends.torch_backend import TorchBackend
from orchestrator.plugin import PluginManager, hookimpl
from orchestrator.registry import BackendRegistry

__all__ = ["CARD", "CardBackend", "card_pipeline"]

CARD = "card:0"


class CardBackend(TorchBackend):
    """One card; its memory is not the host's, whatever torch says."""

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__("cpu", options)
        self.device = CARD
        self._capabilities = Capabilities()

    @classmethod
    def accepts(cls, device: str) -> bool:
        return device.startswith("card")

    @classmethod
    def canonical(cls, device: str) -> str:
        return CARD if device.startswith("card") else super().canonical(device)

    def upload(self, value: torch.Tensor) -> Handle:
        return value.clone()

    def download(self, handle: Handle) -> torch.Tensor:
        return handle.clone()  # type: ignore[no-any-return]


class _Plugin:
    @hookimpl
    def orchestrator_register_backends(self, registry: BackendRegistry) -> None:
        registry.add("card", CardBackend, devices=("card",), summary="a card for tests")


PLUGINS = PluginManager(load_entry_points=False)
PLUGINS.register(orchestrator.backends)
PLUGINS.register(_Plugin())


def card_pipeline(name: str = "p") -> Pipeline:
    """A pipeline that knows the card."""
    return Pipeline(name, plugins=PLUGINS)

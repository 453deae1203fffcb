"""Backends that come with the core, registered like everybody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.plugin import hookimpl

if TYPE_CHECKING:
    from orchestrator.registry import BackendRegistry

#: Device families of torch itself; another string that ``torch.device`` takes is served as well.
TORCH_FAMILIES = ("cpu", "cuda", "hpu", "mps", "mtia", "xpu")


@hookimpl
def orchestrator_register_backends(registry: BackendRegistry) -> None:
    """Registers the torch backend."""
    registry.add(
        "torch",
        "orchestrator.backends.torch_backend:TorchBackend",
        devices=TORCH_FAMILIES,
        summary="any torch device, eager",
    )

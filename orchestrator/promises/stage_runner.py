"""Calling stages so that nothing of the user's changes: on copies of the modules, with clones of the values."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from orchestrator.backend import EagerBackend
from orchestrator.duplicate import duplicate, owner_of
from orchestrator.graph import Graph
from orchestrator.plan.model import Plan
from orchestrator.promises.reference import ReferenceRun, call_target, named_outputs
from orchestrator.stage import Stage
from orchestrator.surroundings import own_modes, same_random_state

__all__ = ["PlainRun", "StageRunner", "leaving_no_trace"]


class StageRunner:
    """Runs the stages of one check.

    Args:
        backends: Eager torch devices that stages run on, by device; elsewhere they run on the processor.
    """

    def __init__(self, backends: Mapping[str, EagerBackend]) -> None:
        self._backends = backends
        self._copies: dict[str, Callable[..., Any]] = {}
        self._memo: dict[int, Any] = {}

    def run(self, stage: Stage, device: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs of a stage by port, on the host.

        Raises:
            Exception: Whatever the stage does.
        """
        backend = self._backends.get(device)
        values = {port: value.clone() if _is_tensor(value) else value for port, value in arguments.items()}
        if backend is None:
            return named_outputs(stage, call_target(stage, self._copy(stage), values))
        uploads = {
            port: backend.upload(value) if _is_tensor(value) else value for port, value in values.items()
        }
        outputs = named_outputs(stage, call_target(stage, self._device_target(stage, backend), uploads))
        return {port: value.cpu() if _is_tensor(value) else value for port, value in outputs.items()}

    def _device_target(self, stage: Stage, backend: EagerBackend) -> Callable[..., Any]:
        if stage.name not in self._copies:
            self._copies[stage.name] = backend.load(stage)
        return self._copies[stage.name]

    def _copy(self, stage: Stage) -> Callable[..., Any]:
        """A copy with the parameters of the original and buffers of its own; the original where it has no copy."""
        if stage.name not in self._copies:
            target = stage.module()
            owner = owner_of(target)
            models = (owner, getattr(owner, "__dict__", {}).get("_model"))
            for model in (model for model in models if isinstance(model, torch.nn.Module)):
                self._memo |= {id(parameter): parameter for parameter in model.parameters()}
            try:
                self._copies[stage.name] = duplicate(target, self._memo)
            except Exception:
                self._copies[stage.name] = target
        return self._copies[stage.name]


class PlainRun(ReferenceRun):
    """A reference run in which stages run as in a check, and nothing is tried."""

    def __init__(
        self, graph: Graph, plan: Plan, inputs: Mapping[str, Any], stage_runner: StageRunner
    ) -> None:
        super().__init__(graph, inputs)
        self._devices = {call.name: call.device for call in plan.calls}
        self._stage_runner = stage_runner

    def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a call."""
        return self._stage_runner.run(self.graph.calls[name].stage, self._devices[name], arguments)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@contextlib.contextmanager
def leaving_no_trace() -> Iterator[None]:
    """Runs a check by itself: in no mode of its caller, and with random states put back that stages move.

    Convolutions and products on CUDA are as exact as their dtype. Warnings of a chunk of one item are not meant
    for the user, so they are kept back.
    """
    exact = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with own_modes(), same_random_state(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = exact

"""Warm: what a device with static shapes compiles at the first call of a shape, it compiles before any request.

Every call and every adapter on such a device that computes eagerly is made once at each combination of its buckets,
with values of ones, which are valid as indices and as numbers alike. Stages that were compiled ahead need no warming.
"""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.adapter import MOVES
from orchestrator.backend import EagerBackend
from orchestrator.plan.steps import HOST, AdaptStep, CallStep, iter_steps
from orchestrator.runner.load.load import Executable
from orchestrator.specs import PortSpec, TensorSpec, combinations

__all__ = ["warm"]


def warm(executable: Executable) -> None:
    """Runs all that devices with static shapes run eagerly, once for each combination of buckets.

    Raises:
        CompileError: A stage cannot be compiled at one of them.
    """
    plan = executable.plan
    static = {
        device: backend
        for device, backend in executable.backends.items()
        if isinstance(backend, EagerBackend) and backend.capabilities.static_shapes
    }
    if not static:
        return
    buckets = {dim.name: dim.buckets for dim in plan.dims}
    with torch.no_grad():
        for step in iter_steps(plan.steps, CallStep):
            if step.device in static:
                _warm_call(executable, step, static[step.device], buckets)
        for adapt_step in iter_steps(plan.steps, AdaptStep):
            source = plan.values[adapt_step.inputs[0]]
            is_move = adapt_step.adapter.kind in MOVES
            if source.memory == HOST or is_move or not isinstance(source.spec, TensorSpec):
                continue
            backend = static.get(executable.backend_of(source.memory).device)
            if backend is not None:
                function = executable.adapt(adapt_step)
                for sizes in combinations(source.spec.names, buckets):
                    function(_example(backend, source.spec, sizes), sizes)
    for backend in static.values():
        backend.synchronize()


def _warm_call(
    executable: Executable, step: CallStep, backend: EagerBackend, buckets: dict[str, tuple[int, ...]]
) -> None:
    plan = executable.plan
    call = plan.call(step.name)
    stage = executable.stages[call.stage]
    names = dict.fromkeys(
        name for _, spec in call.inputs if isinstance(spec, TensorSpec) for name in spec.names
    )
    for sizes in combinations(names, buckets):
        # As the runner calls it: by position while no port is left out, then by keyword; what is updated in place is
        # made anew for each call, and constants are only read.
        values = {
            port: executable.constants[index]
            if index in executable.constants
            else _example(backend, spec, sizes)
            for (port, spec), index in zip(call.inputs, step.inputs, strict=True)
        }
        backend.prepare(executable.functions[call.stage], *stage.arguments(values))


def _example(backend: EagerBackend, spec: PortSpec, sizes: dict[str, int]) -> Any:
    assert isinstance(spec, TensorSpec), "what is no tensor is a constant"
    return backend.upload(torch.ones(spec.shape(sizes), dtype=spec.dtype, device="cpu"))

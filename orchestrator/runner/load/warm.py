"""Warm-up: what a device does at the first call of a shape alone, it does before any request.

A device with static shapes that computes eagerly compiles then: every call and every adapter on it is made once at each
combination of its buckets. A program that was compiled ahead may be slow at its first run: each runs once for each of
its combinations. Both get values of ones, which are valid as indices and as numbers alike. What comes out is dropped,
and an application that keeps states is left alone: a request finds nothing there that it did not write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator.adapter import MOVES
from orchestrator.backend import Backend, CompilingBackend, EagerBackend
from orchestrator.plan.records import PlannedProgram
from orchestrator.plan.steps import HOST, AdaptStep, CallStep, iter_steps
from orchestrator.runner.load.load import Executable
from orchestrator.specs import PortSpec, TensorSpec, combinations

__all__ = ["warm_up"]


def warm_up(executable: Executable) -> None:
    """Runs what is slow at its first run, once for each combination of buckets.

    Raises:
        CompileError: A stage cannot be compiled at one of them.
    """
    with torch.no_grad():
        _warm_eager(executable)
        _warm_programs(executable)


def _warm_programs(executable: Executable) -> None:
    """Runs the programs whose first run is slow."""
    plan = executable.plan
    buckets = {dim.name: dim.buckets for dim in plan.dims}
    states = {plan.application(program) for program in plan.programs if any(_states(program))}
    for program in plan.programs:
        backend, function = executable.backends[program.device], executable.functions[program.name]
        if not isinstance(backend, CompilingBackend) or not backend.slow_first_run:
            continue
        if plan.application(program) in states:
            continue
        specs = [item.spec for item in program.inputs if item.spec is not None]
        for sizes in program.combinations(buckets):
            # Ones may be no legal input of a stage; a request that brings others is told what is wrong, if anything is.
            with contextlib.suppress(RuntimeError, IndexError):
                function(*(_example(backend, spec, sizes) for spec in specs))


def _states(program: PlannedProgram) -> Iterator[str]:
    yield from (item.state for item in program.inputs if item.state)
    yield from (item.state for item in program.outputs if item.state)


def _warm_eager(executable: Executable) -> None:
    """Runs all that devices with static shapes run eagerly."""
    plan = executable.plan
    static = {
        device: backend
        for device, backend in executable.backends.items()
        if isinstance(backend, EagerBackend) and backend.capabilities.static_shapes
    }
    if not static:
        return
    buckets = {dim.name: dim.buckets for dim in plan.dims}
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


def _example(backend: Backend, spec: PortSpec, sizes: dict[str, int]) -> Any:
    assert isinstance(spec, TensorSpec), "what is no tensor is a constant"
    return backend.upload(torch.ones(spec.shape(sizes), dtype=spec.dtype, device="cpu"))

"""Trying what authors promise: on which request, with which stages, on which device."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch

from orchestrator.backend import EagerBackend
from orchestrator.difference import difference
from orchestrator.errors import InputError, StageError
from orchestrator.graph import Graph
from orchestrator.loader import resolve_backend
from orchestrator.plan.model import Plan
from orchestrator.plan.steps import HOST
from orchestrator.plugin import PluginManager
from orchestrator.promises.loop_end_trial import LoopEndTrial, ends_by_value
from orchestrator.promises.padding import has, smaller_size
from orchestrator.promises.report import CheckReport, CheckRow, worst_rows
from orchestrator.promises.stage_runner import PlainRun, StageRunner, leaving_no_trace
from orchestrator.promises.trial_run import TrialRun
from orchestrator.runner.admit import admit
from orchestrator.specs import PortSpec, TensorSpec, plain_dims

__all__ = ["check_promises", "example_request"]

Examples = Callable[[Mapping[str, int]], Mapping[str, Any]]


def check_promises(
    graph: Graph,
    plan: Plan,
    manager: PluginManager,
    inputs: Mapping[str, Any],
    tolerance: float | None = None,
) -> CheckReport:
    """Tries every promise at every stage.

    Args:
        graph: The graph.
        plan: Its plan on the device to check.
        manager: Finds the plan's backends.
        inputs: The request.
        tolerance: The largest relative difference that counts as equal; None: by dtype.

    Raises:
        InputError: The request does not fit, or the tolerance is none.
        StageError: A stage raises when it is called by hand.
    """
    _check_tolerance(tolerance)
    admit(plan, inputs)
    device = ", ".join(group.device for group in plan.groups) or HOST
    stage_runner = StageRunner(_backends(plan, manager))
    with leaving_no_trace():
        trial, rows = _run_trials(graph, plan, stage_runner, dict(inputs), tolerance)
        if ends_by_value(graph, plan):
            ends = LoopEndTrial(graph, plan, inputs, stage_runner, tolerance)
            with contextlib.suppress(Exception):  # the trial above has said what a stage raises
                ends.run()
            rows += ends.rows
        rows += _unreached_rows(trial, plan)
        if any(group.backend != "torch" for group in plan.groups):
            rows += _compare_loaded_plan(graph, plan, stage_runner, dict(inputs), tolerance)
    first = next((row for row in rows if row.holds is False), None)
    return CheckReport(plan.pipeline, device, worst_rows(rows), first)


def _check_tolerance(tolerance: Any) -> None:
    number = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and 0 <= tolerance < math.inf):
        raise InputError(
            f"tolerance is the largest relative difference that counts as equal, a number from 0, not {tolerance!r}; "
            f"leave it out for one that suits the dtype.",
            tolerance=tolerance,
        )


def example_request(pipeline: str, examples: Examples | None, plan: Plan) -> dict[str, Any]:
    """Returns the example inputs of a pipeline at the largest sizes of its plan.

    Raises:
        InputError: There are none, or they cannot be made.
    """
    if examples is None:
        raise InputError(
            f"Pipeline {pipeline!r} has no example inputs to check its promises on: give a request, "
            f"check(inputs={{...}}), or set pipeline.example_inputs.",
            pipeline=pipeline,
        )
    # The largest sizes fit every bucket; a check then cuts them to what is padded.
    sizes = {dim.name: dim.buckets[-1] for dim in plan.dims}
    try:
        return dict(examples(sizes))
    except Exception as error:
        raise InputError(
            f"The example inputs of {pipeline!r} cannot be made at the sizes {sizes}: {type(error).__name__}: {error}",
            pipeline=pipeline,
            sizes=sizes,
        ) from error


def _run_trials(
    graph: Graph, plan: Plan, stage_runner: StageRunner, inputs: dict[str, Any], tolerance: float | None
) -> tuple[TrialRun, list[CheckRow]]:
    """Walks a request that is padded where possible; the request itself where no stage takes a smaller one."""
    # Padding shows only below a bucket. A stage that takes no smaller size gets the request as it is, and a row.
    smaller = _smaller(plan, inputs)
    trial = TrialRun(graph, plan, smaller, stage_runner, tolerance)
    if smaller is inputs:
        trial.run()
        return trial, trial.context.rows
    try:
        trial.run()
    except StageError as error:
        again = TrialRun(graph, plan, inputs, stage_runner, tolerance)
        again.run()
        stage = str(error.objects.get("stage", ""))
        return again, [CheckRow(stage, "smaller sizes", None, why=error.message), *again.context.rows]
    return trial, trial.context.rows


def _smaller(plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """The first items of a request along dims that it fills to the largest bucket or above."""
    request = dict(inputs)
    for dim in plan.dims:
        size = smaller_size(dim) if dim.can_pad and not dim.unbounded and not dim.decided_by else None
        for name, spec in plan.inputs:
            value = request.get(name)
            if size is None or not isinstance(value, torch.Tensor) or not has(spec, dim.name):
                continue
            assert isinstance(spec, TensorSpec)
            axis = plain_dims(spec.dims).index(dim.name)
            if value.shape[axis] >= dim.buckets[-1]:
                request[name] = value.narrow(axis, 0, size).contiguous()
    is_smaller = any(request[name] is not inputs[name] for name in inputs)
    return request if is_smaller else inputs


def _backends(plan: Plan, manager: PluginManager) -> dict[str, EagerBackend]:
    """Eager devices of torch with memory of their own."""
    backends: dict[str, EagerBackend] = {}
    for group in plan.groups:
        if group.backend == "torch" and not group.host_memory:
            _, kind = resolve_backend(manager, group.device)
            backend = kind(group.device, dict(group.options))
            assert isinstance(backend, EagerBackend)
            backend.open()
            backends[group.device] = backend
    return backends


def _compare_loaded_plan(
    graph: Graph, plan: Plan, stage_runner: StageRunner, inputs: dict[str, Any], tolerance: float | None
) -> list[CheckRow]:
    """Compares results of the loaded plan, padded and in chunks, with those of the stages called by hand."""
    # On a device that compiles, stages cannot be tried one by one: the whole plan is, against the same stages by hand.
    requests = {"as it is": inputs, "padded": _smaller(plan, inputs), "in chunks": _larger(plan, inputs)}
    rows = []
    with plan.load() as session:
        for way, request in requests.items():
            if request is inputs and way != "as it is":
                continue
            references = PlainRun(graph, plan, request, stage_runner).run()
            results = session.run(request)
            for name, value in references.items():
                holds, error = difference(results[name], value, tolerance)
                rows.append(CheckRow(f"output {name!r}", f"result of a request {way}", holds, error))
    return rows


def _larger(plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """A request above the largest bucket of each batch dim of the inputs: its items, again and again."""
    request = dict(inputs)
    for dim in plan.dims:
        for name, spec in plan.inputs:
            value = request.get(name)
            if dim.batch and dim.can_chunk and isinstance(value, torch.Tensor) and has(spec, dim.name):
                assert isinstance(spec, TensorSpec)
                axis = plain_dims(spec.dims).index(dim.name)
                items = torch.arange(dim.buckets[-1] + 1) % value.shape[axis]
                request[name] = value.index_select(axis, items)
    return request if any(request[name] is not inputs[name] for name in inputs) else inputs


def _unreached_rows(trial: TrialRun, plan: Plan) -> list[CheckRow]:
    """A row for each stage under a promise that the request did not reach."""
    dims = [dim for dim in plan.dims if dim.batch or dim.can_pad]
    stages = {call.stage for call in plan.calls if call.name in trial.call_names}
    rows = []
    for call in plan.calls:
        ports: list[PortSpec] = [spec for _, spec in call.inputs]
        if call.stage not in stages and any(has(spec, dim.name) for dim in dims for spec in ports):
            rows.append(CheckRow(call.stage, "all", None, why="it did not run in this request"))
            stages.add(call.stage)
    return rows

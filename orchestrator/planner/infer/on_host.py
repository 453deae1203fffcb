"""Operations that a device hands to the host, counted from a trial of each stage at each combination of its buckets.

A device that lacks an operation may run it on the host all the same, without a word: its tensors come down, and its
results go up again. Here that is said, and counted as what it is, crossings of the link.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.backend import Backend, Operation
from orchestrator.graph import NodeKey
from orchestrator.plan.outline import show_bytes
from orchestrator.plan.records import HostOperations, PlannedCall
from orchestrator.planner.context import PlanContext
from orchestrator.planner.infer.outputs import show_sizes
from orchestrator.planner.infer.probe import Argument, DataDependentError, Prober, RefusedError
from orchestrator.specs import TensorSpec, combinations
from orchestrator.stage import Stage

__all__ = ["find_host_operations"]


def find_host_operations(context: PlanContext) -> PlanContext:
    """Finds what calls do on the host, for each combination of buckets at which they do; notes say so.

    Raises:
        PlanError: The device refuses such a stage.
    """
    calls, notes = dict(context.calls), []
    prober: Prober | None = None
    for call in context.calls.values():
        backend = context.groups.get(call.device)
        if backend is None or not backend.capabilities.falls_back:
            continue
        prober = prober or Prober(context.descriptions)
        try:
            records = _records(context, prober, backend, call)
        except RefusedError:
            notes.append(
                f"Which operations of stage {call.stage!r} {call.device!r} would run on the host is not known: it does "
                f"not run on tensors without content."
            )
            continue
        if records:
            calls[call.name] = replace(call, host_operations=records)
            notes.append(_note(call.device, call.name, records))
    return replace(context, calls=calls).with_notes(*notes)


def _records(
    context: PlanContext, prober: Prober, backend: Backend, call: PlannedCall
) -> tuple[HostOperations, ...]:
    stage = context.graph.stages[call.stage]
    if stage.opaque:
        raise RefusedError(stage.name)
    specs = {port: spec for port, spec in call.inputs if isinstance(spec, TensorSpec)}
    constants = {
        edge.target_port: context.graph.constants[edge.source.name]
        for edge in context.graph.into(NodeKey("call", call.name))
        if edge.source.kind == "constant"
    }
    names = dict.fromkeys(name for spec in specs.values() for name in spec.names)
    records = []
    for sizes in combinations(names, context.buckets):
        arguments = tuple(
            (port, (specs[port].shape(sizes), specs[port].dtype) if port in specs else constants[port])
            for port, _ in call.inputs
        )
        operations = backend.host_operations(stage, _operations(prober, stage, arguments))
        if operations:
            records.append(_record(sizes, operations))
    return tuple(records)


def _operations(prober: Prober, stage: Stage, arguments: tuple[Argument, ...]) -> list[Operation]:
    """The operations of a stage; of one that looks at contents, those of its capture."""
    try:
        return prober.operations(stage, arguments)
    except DataDependentError:
        return prober.operations(stage, arguments, capture=True)


def _record(sizes: dict[str, int], operations: Sequence[Operation]) -> HostOperations:
    up = [size for operation in operations for size in operation.gives]
    down = [size for operation in operations for size in operation.reads]
    distinct = tuple(dict.fromkeys(operation.name for operation in operations))
    return HostOperations(tuple(sizes.items()), distinct, len(up), sum(up), len(down), sum(down))


def _note(device: str, call: str, records: tuple[HostOperations, ...]) -> str:
    """What a call does on the host, with what that costs at the largest buckets."""
    largest = records[-1]
    names = dict.fromkeys(name for record in records for name in record.names)
    return (
        f"Call {call!r} runs {', '.join(names)} on the host, since {device!r} has no such operation. Each time "
        f"{largest.downloads} tensors ({show_bytes(largest.download_bytes)}) come down for it and {largest.uploads} "
        f"({show_bytes(largest.upload_bytes)}) go up again{show_sizes(dict(largest.sizes))}. So the stage is not one "
        f"graph, and runs operation by operation."
    )

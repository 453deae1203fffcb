"""What a plan says of padding: which stages may read it, by what of their results has lost a padded dim."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.graph import CONDITION, Edge, Graph, NodeKey, until_port
from orchestrator.plan.records import DimPlan, PlannedCall
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import PlanContext
from orchestrator.planner.infer.bodies import steps_dim
from orchestrator.specs import PortSpec, TensorSpec, dim_names

__all__ = ["counting_dims", "padding_notes"]


def padding_notes(context: PlanContext) -> Iterator[str]:
    """Yields a sentence for each stage that reads a padded dim and gives something without it.

    What is kept of such a result (a mean over tokens, whether all rows have ended) has gone through the padding. That
    it does not matter is what the pad rule promises; nothing here can prove it.
    """
    # A dim that counts is padded nowhere: iterations and items are told apart one by one.
    counters = counting_dims(context.graph, context.producer_specs.get)
    padded_dims = [dim for dim in context.dims.values() if _is_padded(dim) and dim.name not in counters]
    ports_by_stage: dict[tuple[str, str], dict[str, None]] = {}
    # Calls of one stage run the same code, so their outputs make one note. The host reads values at their own sizes: no
    # call there meets padding.
    for call in context.calls.values():
        for dim in padded_dims if call.device != HOST else ():
            if any(_has(spec, dim.name) for _, spec in call.inputs):
                outputs = [port for port, spec in call.outputs if not _has(spec, dim.name)]
                ports = ports_by_stage.setdefault((call.stage, dim.name), {})
                ports |= {_describe_output(context.graph, call, port): None for port in outputs}
    for (stage, name), ports in ports_by_stage.items():
        if ports:
            have = "has" if len(ports) == 1 else "have"
            yield (
                f"Stage {stage!r} may read padding: {', '.join(ports)} {have} no {name!r}, along which smaller sizes "
                f"are padded. The pad rule promises that this does not matter; pipeline.check tests it."
            )


def counting_dims(graph: Graph, source: Callable[[Edge], PortSpec | None]) -> frozenset[str]:
    """Returns dims that count iterations of loops, or items before a map makes batches of them: no stage pads them.

    Args:
        graph: The graph.
        source: What an edge's producer gives.
    """
    counters: set[str] = {steps_dim(name) for name in graph.loops}
    for loop in graph.loops.values():
        names = (*loop.each, *(name for name, _ in loop.over))
        for edge in graph.into(NodeKey("enter", loop.name)):
            spec = source(edge)
            if edge.target_port in names and isinstance(spec, TensorSpec) and spec.dims:
                counters |= set(dim_names(spec.dims[0]))
    return frozenset(counters)


def _is_padded(dim: DimPlan) -> bool:
    return dim.can_pad and not dim.unbounded and dim.buckets[-1] > 1


def _has(spec: PortSpec, name: str) -> bool:
    return isinstance(spec, TensorSpec) and name in spec.names


def _describe_output(graph: Graph, call: PlannedCall, port: str) -> str:
    """An output, with what decides by it."""
    uses = []
    for edge in graph.out_of(NodeKey("call", call.name)):
        loop = graph.loops.get(edge.target.name) if edge.target.kind in ("enter", "exit") else None
        if loop is None or edge.source_port != port:
            continue
        if edge.target_port == CONDITION:
            uses.append(f"the condition of {loop.name!r}")
        elif loop.until and edge.target_port == until_port(loop.until):
            uses.append(f"what ends {loop.name!r}")
    return f"{port!r} ({', '.join(uses)})" if uses else repr(port)

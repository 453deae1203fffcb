"""Representation: in which dtype, and in parts on which ranks, a device holds a value.

A stage takes and gives the dtypes that its author wrote; the device may hold values in a narrower one (integers of 64
bits in 32), and its ranks may hold parts of them. Casts at the border, and joining the parts, become adapters like all
others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from orchestrator.adapter import Adapter, check_cast
from orchestrator.errors import PlanError, nearest
from orchestrator.graph import Edge, NodeKey, next_port
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import EdgeSpec, PlanContext
from orchestrator.specs import Pad, PortSpec, TensorSpec, dtype_name, holds, show_spec

__all__ = [
    "device_edge_spec",
    "device_ports",
    "device_spec",
    "gather_parts",
    "is_gathered",
    "keep_parts",
]


def is_gathered(context: PlanContext, edge: Edge) -> bool:
    """Tells whether an edge's value is joined from the parts that ranks hold."""
    return any(conversion.kind == "gather" for conversion in context.consumer_specs[edge].conversions)


def device_spec(context: PlanContext, node: NodeKey, port: str, spec: PortSpec) -> PortSpec:
    """Returns the spec of a port as its device holds it; a carry is held as the producer of its next value holds it."""
    producer = _carry_producer(context, node, port)
    if producer is None or not isinstance(spec, TensorSpec):
        return spec
    stage = context.graph.calls[producer].stage
    backend = context.groups.get(context.devices[stage.name])
    if backend is None:
        return spec
    dtype = backend.held_dtype(stage, spec.dtype)
    return spec if dtype == spec.dtype else replace(spec, dtype=dtype)


def _carry_producer(context: PlanContext, node: NodeKey, port: str) -> str | None:
    """The call whose device holds a port's values: for a carry the one that gives its next value."""
    carries = set()
    # Carries may be chained over nested loops; a carry that is handed on unchanged leads back to itself and has no
    # producer.
    while node.kind in ("enter", "exit") and (node.name, port) not in carries:
        loop = context.graph.loops[node.name]
        port = port.removesuffix("[next]")
        if port not in loop.carry:
            return None
        carries.add((node.name, port))
        edges = context.graph.into(NodeKey("exit", loop.name))
        edge = next(edge for edge in edges if edge.target_port == next_port(port))
        node, port = edge.source, edge.source_port
    return node.name if node.kind == "call" else None


def device_ports(
    context: PlanContext, call: str, ports: Mapping[str, PortSpec]
) -> tuple[tuple[str, PortSpec], ...]:
    """Returns the ports of a call as its device holds them."""
    node = NodeKey("call", call)
    return tuple((port, device_spec(context, node, port, spec)) for port, spec in ports.items())


def device_edge_spec(context: PlanContext, edge: Edge, source: PortSpec, edge_spec: EdgeSpec) -> EdgeSpec:
    """Returns the form of an edge with casts from and to the dtypes that its ends hold.

    Args:
        context: The plan so far.
        edge: The edge.
        source: The spec that the producer's device holds.
        edge_spec: The consumer's form, by the dtypes that the authors of both stages wrote.
    """
    target = device_spec(context, edge.target, edge.target_port, edge_spec.spec)
    if not isinstance(source, TensorSpec) or not isinstance(target, TensorSpec):
        return edge_spec
    device_form = _with_casts(source, target, edge_spec)
    _check_pads(edge, source, device_form)
    _check_constant(context, edge, target)
    return device_form


def _check_constant(context: PlanContext, edge: Edge, target: TensorSpec) -> None:
    value = context.graph.constants[edge.source.name] if edge.source.kind == "constant" else None
    if isinstance(value, torch.Tensor) and value.is_cpu and value.dtype.itemsize > target.dtype.itemsize:
        try:
            check_cast(value, target.dtype)
        except OverflowError as error:
            raise PlanError(
                f"The constant at {edge.destination!r} cannot be held: {error}. Compute with smaller numbers, or run "
                f"the stage on the host or on 'cpu'.",
                edge=str(edge),
            ) from error


def _with_casts(source: TensorSpec, target: TensorSpec, edge_spec: EdgeSpec) -> EdgeSpec:
    author_spec = edge_spec.spec
    casts = [conversion for conversion in edge_spec.conversions if conversion.kind == "cast"]
    arrival_dtype = casts[-1].dtype if casts else source.dtype
    idle = len(casts) == 1 and source.dtype == target.dtype
    if author_spec == target and arrival_dtype == target.dtype and not idle:
        return edge_spec
    # Casts that the port allowed are replaced by one from what the producer holds to what the consumer holds. A
    # narrowing one goes right after the gather, so that less is filled and moved; a widening one goes last.
    conversions = [conversion for conversion in edge_spec.conversions if conversion.kind != "cast"]
    if source.dtype != target.dtype:
        cast = Adapter("cast", dtype=target.dtype)
        gathers = sum(conversion.kind == "gather" for conversion in conversions)
        narrow = target.dtype.itemsize <= source.dtype.itemsize
        conversions.insert(gathers if narrow else len(conversions), cast)
    return EdgeSpec(target, tuple(conversions), edge_spec.rule)


def _check_pads(edge: Edge, source: TensorSpec, edge_spec: EdgeSpec) -> None:
    """Refuses a pad value that the dtype it is written in cannot hold.

    Raises:
        PlanError: It cannot.
    """
    dtype = source.dtype
    for conversion in edge_spec.conversions:
        dtype = conversion.dtype or dtype
        if conversion.kind == "pad":
            _check_pad(edge, conversion.rule, dtype)
    if isinstance(edge_spec.spec, TensorSpec) and edge_spec.spec.names:
        _check_pad(edge, edge_spec.rule, edge_spec.spec.dtype)


def _check_pad(edge: Edge, rule: Pad, dtype: torch.dtype) -> None:
    if isinstance(rule, (int, float)) and not holds(dtype, rule):
        raise PlanError(
            f"'{edge}' is padded with {rule!r}, which {dtype_name(dtype)} cannot hold, and that is what the value is "
            f"held in there. Declare another pad value, or plan with another torch_dtype.",
            edge=str(edge),
            pad=rule,
            dtype=dtype,
        )


def gather_parts(context: PlanContext, edge: Edge, spec: PortSpec) -> tuple[PortSpec, tuple[Adapter, ...]]:
    """Returns the spec of an edge's value with the parts of all ranks joined, and the adapter that joins them.

    Raises:
        PlanError: A port is declared as sharded that does not exist, or along a dim that is none of its fixed ones.
    """
    if edge.source.kind != "call":
        return spec, ()
    stage = context.graph.calls[edge.source.name].stage
    backend = context.groups.get(context.devices[stage.name])
    parts = backend.sharded(stage) if backend is not None else {}
    # Without declared names a single part can only be the edge's own output.
    port_names = [port.name for port in stage.outputs] or (
        [edge.source_port] if len(parts) == 1 else list(parts)
    )
    for port in parts:
        if port not in port_names:
            raise PlanError(
                f"Stage {stage.name!r} declares {port!r} as sharded, but has no such output."
                f"{nearest(port, port_names)}",
                stage=stage.name,
                port=port,
            )
    if backend is None or edge.source_port not in parts or not isinstance(spec, TensorSpec):
        return spec, ()
    axis, ranks = parts[edge.source_port], backend.capabilities.ranks
    if not -len(spec.dims) <= axis < len(spec.dims) or not isinstance(size := spec.dims[axis], int):
        raise PlanError(
            f"{edge.origin!r} is {show_spec(spec)} on each rank and is declared as sharded along dim {axis}; that must "
            f"be one of its dims of fixed size.",
            edge=str(edge),
            spec=spec,
        )
    # On the host the ranks' parts lie next to each other; from there the value is like any other.
    dims = list(spec.dims)
    dims[axis] = size * ranks
    whole = replace(spec, dims=tuple(dims))
    return whole, (Adapter("gather", whole.dims, device=HOST),)


def keep_parts(
    context: PlanContext, edge: Edge, part: PortSpec, edge_spec: EdgeSpec, gather: tuple[Adapter, ...]
) -> EdgeSpec:
    """Returns the form of an edge whose consumer may take parts as the ranks hold them; then nothing joins them.

    Args:
        context: The plan so far.
        edge: The edge.
        part: What one rank holds of the value.
        edge_spec: The consumer's form of the whole value.
        gather: The adapter that joins the parts; none: ranks hold the whole.

    Raises:
        PlanError: The consumer takes parts of what is whole, or of what is to be converted.
    """
    device, axis = _part_axis(context, edge)
    if axis is None:
        return replace(edge_spec, conversions=(*gather, *edge_spec.conversions))
    # Parts stay where they are, so both stages run on one device, cut their value alike and leave it as it is.
    source = context.graph.calls[edge.source.name].stage if edge.source.kind == "call" else None
    backend = context.groups[device]
    own = context.devices[source.name] == device if source is not None else False
    rank = len(part.dims) if isinstance(part, TensorSpec) else 0
    given = backend.sharded(source).get(edge.source_port) if source is not None and own else None
    if not gather or given is None or given % rank != axis % rank or edge_spec.conversions:
        raise PlanError(
            f"{edge.destination!r} takes on each rank a part of its value along dim {axis}, but {edge.origin!r} gives "
            f"{show_spec(part)}, which is not left there in such parts: only a stage on the same device whose layers "
            f"leave its output un-gathered, in the same shape and along the same dim, feeds it. Have the stage cut its "
            f"input itself (RowParallelLinear with input_is_parallel=False).",
            edge=str(edge),
            spec=part,
        )
    return EdgeSpec(part, (), edge_spec.rule)


def _part_axis(context: PlanContext, edge: Edge) -> tuple[str, int | None]:
    """The device of an edge's consumer, and the dim along which it takes parts."""
    if edge.target.kind != "call":
        return "", None
    stage = context.graph.calls[edge.target.name].stage
    device = context.devices[stage.name]
    backend = context.groups.get(device)
    return device, None if backend is None else backend.sharded_inputs(stage).get(edge.target_port)

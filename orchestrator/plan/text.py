"""A plan for a person: a line for each edge, then the totals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.adapter import Adapter
from orchestrator.plan.compute_runs import runs_of, sizes_of
from orchestrator.plan.count import summarise
from orchestrator.plan.locks import lock_spans
from orchestrator.plan.outline import Block, LoopDescriber, outline, show_bytes
from orchestrator.plan.records import DimPlan, PlanData, PlannedEdge, Residency
from orchestrator.plan.steps import LoopStep, iter_steps
from orchestrator.specs import StepsDim, TensorSpec, plain_dim, show_spec
from orchestrator.tables import table

__all__ = ["least_copies", "render", "show_bytes"]

FEW = 3
"""How many values are named that remain on a device."""


def render(plan: PlanData) -> str:
    """Returns the whole plan as text."""
    return "\n".join(
        [
            *_head(plan),
            "",
            *_edges(plan),
            "",
            *_programs(plan),
            *_applications(plan),
            *_locks(plan),
            *_compiled(plan),
            *_totals(plan),
            *_notes(plan),
        ]
    )


def _edges(plan: PlanData) -> list[str]:
    """A line for each edge; those of a loop in an indented block under what is said of it."""
    rows: list[tuple[str, ...]] = [("from", "to", "tensor", "where", "bytes", "adapters", "why")]
    heads: dict[int, list[str]] = {}

    describer = LoopDescriber(plan)

    def write(block: Block, indent: str) -> None:
        if block.step is not None:
            heads.setdefault(len(rows), []).extend(
                f"  {indent}{line}" for line in describer.describe(block.step)
            )
            indent += "    "
        for item in block.items:
            if isinstance(item, Block):
                write(item, indent)
            else:
                first, *rest = _row(item)
                rows.append((indent + first, *rest))

    # All edges are rows of one table, so that columns align across blocks; heads of blocks go between, unaligned.
    write(outline(plan), "")
    lines = table(rows)
    return [line for at, row in enumerate(lines) for line in (*heads.get(at, ()), row)]


def _head(plan: PlanData) -> list[str]:
    lines = [f"Plan of {plan.pipeline!r}: {len(plan.calls)} calls on {', '.join(_places(plan))}"]
    counts = {plain_dim(spec.dims[0]): loop.name for loop, spec in _loop_slices(plan)}
    for dim in plan.dims:
        if dim.name in counts or isinstance(dim.name, StepsDim):
            of = counts.get(dim.name) or dim.decided_by.removesuffix(".steps")
            lines.append(f"  {dim.name}: how often {of!r} runs, at most {dim.buckets[-1]} times")
            continue
        facts = [f"born by {dim.decided_by}"] if dim.decided_by else []
        lines.append(f"  {dim.name}: {'; '.join([*_sizes(dim), *facts])}")
    return lines


def _sizes(dim: DimPlan) -> Iterator[str]:
    """Which sizes of a dim run, and how."""
    if dim.any:
        yield "any size"
        return
    if dim.loose:
        yield "any size, since no stage on a device sees it"
        return
    yield f"buckets {', '.join(map(str, dim.buckets))}"
    yield "smaller sizes are padded" if dim.can_pad else "exact sizes only"
    if dim.can_chunk:
        yield "larger ones run in chunks"
    else:
        yield f"larger ones are refused: {dim.whole or 'batch=True is not promised'}"


def _loop_slices(plan: PlanData) -> Iterator[tuple[LoopStep, TensorSpec]]:
    """Yields loops with what is sliced for them."""
    for loop in iter_steps(plan.steps, LoopStep):
        for entry in loop.slices:
            spec = plan.values[entry.whole].spec
            if isinstance(spec, TensorSpec):
                yield loop, spec


def _programs(plan: PlanData) -> list[str]:
    """A line for each program of devices that compile, with the flags of NxD Inference that follow from its edges."""
    if not plan.programs:
        return []
    rows: list[tuple[str, ...]] = [("program", "takes", "gives", "compiled for", "result")]
    for program in plan.programs:
        takes = ", ".join(_port_terms(item.port, item.adapters, item.state) for item in program.inputs) or "-"
        gives = ", ".join(_port_terms(item.port, item.adapters, item.state) for item in program.outputs)
        sizes = program.combinations({dim.name: dim.buckets for dim in plan.dims})
        count = f"{len(sizes)} bucket{'s' if len(sizes) > 1 else ''}" if sizes[0] else "fixed sizes"
        rows.append((program.name, takes, gives, count, "to the host" if program.to_host else "stays ranked"))
    return ["Programs, each with one output buffer for each bucket:", *table(rows), ""]


def _applications(plan: PlanData) -> list[str]:
    """A line for the stages that share weights, and for each state that they keep."""
    if not plan.applications:
        return []
    rows = [("device", "stages", "weights")]
    rows += [(item.device, ", ".join(item.stages), show_bytes(item.weights)) for item in plan.applications]
    states = [("state", "form", "bytes", "begins with", "updated in place by")]
    states += [
        (
            item.name,
            show_spec(item.spec),
            show_bytes(item.spec.nbytes({})),
            item.start,
            ", ".join(update.output for update in item.updates),
        )
        for item in plan.states
    ]
    more = (
        ["States, each in its application, where loops update it:", *table(states), ""] if plan.states else []
    )
    return ["Applications of several stages, which have one set of weights:", *table(rows), "", *more]


def _locks(plan: PlanData) -> list[str]:
    """A line for each stretch of steps in which no other request may use a program or a state."""
    if not plan.locks:
        return []
    members = {lock.name: ", ".join(lock.members) for lock in plan.locks}
    rows = [("program or state", "from", "until", "host stages meanwhile")]
    rows += [
        (members[span.lock], span.first, span.last, ", ".join(span.host_calls) or "-")
        for span in lock_spans(plan.steps)
    ]
    return ["Held by one request at a time; others go on beside it:", *table(rows), ""]


def _compiled(plan: PlanData) -> list[str]:
    """A line for each region that runs as one program."""
    if not plan.compiled:
        return []
    runs = runs_of(plan)
    rows = [("region", "device", "calls", "compiled for", "results")]
    for region in plan.compiled:
        sizes = sizes_of(plan, runs[region.name])
        count = f"{len(sizes)} combination{'s' if len(sizes) > 1 else ''} of sizes"
        near = f"within {region.tolerance:g}" if region.tolerance else "within what suits their dtypes"
        calls = str(len(region.calls))
        rows.append((region.name, region.device, calls, count if sizes[0] else "fixed sizes", near))
    return ["Compiled regions, each one program for each combination of sizes:", *table(rows), ""]


def _port_terms(port: str, adapters: tuple[Adapter, ...], state: str) -> str:
    terms = "a state" if state else " and ".join(str(replace(adapter, place="")) for adapter in adapters)
    return f"{port} ({terms})" if terms else port


def _notes(plan: PlanData) -> list[str]:
    return ["", "Notes:", *(f"  {note}" for note in plan.notes)] if plan.notes else []


def _places(plan: PlanData) -> list[str]:
    names = [group.device for group in plan.groups]
    return names + (["host"] if any(call.device == "host" for call in plan.calls) else [])


def _row(edge: PlannedEdge) -> tuple[str, ...]:
    size = show_bytes(edge.bytes) if isinstance(edge.spec, TensorSpec) else "-"
    adapters = ", ".join(str(adapter) for adapter in edge.adapters) or "-"
    return edge.source, edge.target, show_spec(edge.spec), edge.residency.value, size, adapters, edge.reason


def _totals(plan: PlanData) -> list[str]:
    counts = summarise(plan, {})
    up, down = least_copies(plan)
    weights, buffers = dict(plan.weights), dict(plan.buffers)
    lines = [
        "One request at the largest buckets:",
        f"  uploads     {counts['uploads']} ({show_bytes(counts['upload_bytes'])}); least possible {up[0]} "
        f"({show_bytes(up[1])})",
        f"  downloads   {counts['downloads']} ({show_bytes(counts['download_bytes'])}); least possible {down[0]} "
        f"({show_bytes(down[1])})",
        *_remains(plan),
        f"  dispatches  {counts['dispatches']}",
        f"  pad waste   {counts['pad_waste']:.1%}",
    ]
    # Each device by itself: of a request the values, since load the weights and the buffers of programs.
    for group in plan.groups:
        peak = counts["peak_bytes"].get(group.device, 0)
        memory = (
            f"{show_bytes(peak)} of values at the peak, {show_bytes(weights.get(group.device, 0))} of weights"
        )
        if group.device in buffers:
            memory += f", {show_bytes(buffers[group.device])} of output buffers"
        ranks = f", on each of {group.ranks} ranks" if group.ranks > 1 else ""
        lines.append(f"  memory      {group.device}: {memory}{ranks}")
    return lines


def _remains(plan: PlanData) -> list[str]:
    """A line for what stages hand on where it was made; what loops keep is said of each loop."""
    devices = {group.device for group in plan.groups if not group.host_memory}
    stages = {call.name for call in plan.calls if call.device in devices}
    sizes = {
        edge.source: edge.bytes
        for edge in outline(plan).items
        if isinstance(edge, PlannedEdge)
        and edge.residency is Residency.DEVICE
        and edge.source.rpartition(".")[0] in stages
    }
    if not sizes:
        return []
    # In the order of the plan, so that what an encoder gives comes before the caches that follow from it.
    names = list(sizes)[:FEW]
    more = len(sizes) - len(names)
    *first, last = [*names, f"{more} more"] if more else names
    subject = f"{', '.join(first)} and {last}" if first else last
    verb = "remain" if first else "remains"
    return [f"  on device   {subject} {verb} on the device ({show_bytes(sum(sizes.values()))})"]


def least_copies(plan: PlanData) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns copies and bytes, up and down, that no plan can do without.

    Inputs that devices read go up, to every rank; results made there come down.
    """
    groups = {group.memory: group for group in plan.groups if not group.host_memory}
    device_of = {call.name: call.device for call in plan.calls}
    largest = {dim.name: dim.buckets[-1] for dim in plan.dims}
    inputs, outputs = dict(plan.inputs), {name for name, _ in plan.outputs}
    before = {edge.target: edge.source for edge in plan.edges}
    spec_at = {edge.target: edge.spec for edge in reversed(plan.edges)}
    # A chain of loops hands one input on and on: each link starts from where the one before it ended.
    roots: dict[str, str] = {}
    up: dict[tuple[str, str], int] = {}
    down: dict[str, tuple[int, int]] = {}
    for edge in plan.edges:
        value, first = plan.values[edge.value], roots.get(edge.source, edge.source)
        while first not in inputs and first in before:
            first = roots.get(before[first], before[first])  # through what enters a loop
        roots[edge.source] = first
        spec = inputs.get(first)
        if isinstance(spec, TensorSpec) and isinstance(value.spec, TensorSpec) and value.memory in groups:
            narrow = min(spec.dtype.itemsize, value.spec.dtype.itemsize)
            up[first, value.memory] = spec.numel(largest) * narrow * groups[value.memory].ranks
        producer = before.get(f"{edge.source}[next]", before.get(edge.source, edge.source))
        source = device_of.get(producer.rpartition(".")[0], "")
        if edge.target in outputs and source in groups and isinstance(edge.spec, TensorSpec):
            parts = groups[source].ranks if any(adapter.kind == "gather" for adapter in edge.adapters) else 1
            producer_spec = spec_at.get(edge.source, edge.spec)
            sizes = [
                spec.dtype.itemsize for spec in (edge.spec, producer_spec) if isinstance(spec, TensorSpec)
            ]
            down[edge.source] = parts, parts * edge.spec.numel(largest) * min(sizes)
    ranks = sum(groups[memory].ranks for _, memory in up)
    copies, size = (sum(column) for column in zip(*down.values(), strict=True)) if down else (0, 0)
    return (ranks, sum(up.values())), (copies, size)

"""Outputs that stay on their device: the plan without the downloads that only they would have needed.

A kept output is the value before its download. The download itself stays where somebody else reads what it brings:
a host stage, or the same value handed out under another name. Where a program owns its output buffer, the next request
overwrites it: there a kept output is a copy, which the device makes itself where it can and the request is at bucket
sizes. What has to be cut on the host, or copied over it, is what was downloaded, put on the device again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from orchestrator.adapter import CLONE, MOVES, Adapter
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedCall, PlannedGroup, PlannedValue
from orchestrator.plan.steps import HOST, AdaptStep, RegionStep, Step, body_of, iter_steps, with_body
from orchestrator.plan.updated import updatable_inputs
from orchestrator.runner.sharing import Sharing
from orchestrator.specs import PortSpec, TensorSpec, dim_names, plain_dims

__all__ = ["dims_on_devices", "keep_on_device", "with_frees", "without_unread"]


def keep_on_device(plan: Plan, names: Collection[str], copying_devices: Collection[str] = ()) -> Plan:
    """Returns the plan that hands these outputs out where they were made; those made in host memory stay there.

    Args:
        plan: The plan.
        names: The outputs.
        copying_devices: Devices that run programs and copy values by themselves. What they copy keeps its size, so such
            a plan is for requests in which the dims of these outputs are at buckets.
    """
    copying_groups = {group.memory: group for group in plan.groups if group.device in copying_devices}
    sources = {} if not copying_groups else _values_to_copy(plan, names, copying_groups)
    if sources:
        plan = _with_device_copies(plan, sources, {group.device for group in copying_groups.values()})
        names = [name for name in names if name not in sources]
    outputs_before, values_before = {index for _, index in plan.outputs}, len(plan.values)
    # Where the next request overwrites an output, it is downloaded and put on the device again.
    copies = _outputs_to_copy(plan, names)
    if copies:
        plan = _with_copies(plan, copies)
        names = [name for name in names if name not in copies]
    # What is updated in place after its download is handed out as it was then.
    plan = _with_clones(plan, {index for name, index in plan.outputs if name in names})
    # The others are handed out as they are before their download, which goes unless somebody else reads what it brings.
    before = {
        step.outputs[0]: step.inputs[0]
        for step in iter_steps(plan.steps, AdaptStep)
        if step.adapter.kind == "download"
    }
    outputs = tuple(
        (name, before.get(index, index) if name in names else index) for name, index in plan.outputs
    )
    unused_values = {index for _, index in plan.outputs} - {index for _, index in outputs}
    new_outputs = {index for _, index in outputs} - {index for _, index in plan.outputs}
    unused_values -= {index for step in _doers(plan.steps) for index in step.inputs}
    # Outputs are freed by nobody; those that are outputs no more, and what copying made on the way, die like any value.
    new_values = set(range(values_before, len(plan.values)))
    dying = (outputs_before | new_values) - {index for _, index in outputs} - unused_values
    return replace(
        plan, outputs=outputs, steps=with_frees(_steps(plan.steps, new_outputs, unused_values), dying)
    )


def _steps(steps: Iterable[Step], new_outputs: set[int], unused_values: set[int]) -> tuple[Step, ...]:
    """Steps that do not free new outputs and do not make values that nobody reads; regions hand new outputs out."""
    new_steps = []
    for step in steps:
        match step:
            case AdaptStep(outputs=(target,)) if target in unused_values:
                continue
        inner = {index for part in body_of(step) for index in part.outputs}
        outputs = [index for index in step.outputs if index not in unused_values]
        outputs += [index for index in sorted(new_outputs & inner) if index not in outputs]
        frees = tuple(index for index in step.frees if index not in new_outputs)
        block = with_body(step, _steps(body_of(step), new_outputs, unused_values))
        new_steps.append(replace(block, outputs=tuple(outputs), frees=frees))
    return tuple(new_steps)


def with_frees(steps: Sequence[Step], indices: set[int]) -> tuple[Step, ...]:
    """Has the last step that makes or reads a value free it."""
    last = {
        index: at
        for at, step in enumerate(steps)
        for index in (*step.outputs, *step.inputs)
        if index in indices
    }
    frees: dict[int, list[int]] = {}
    for index, at in sorted(last.items()):
        frees.setdefault(at, []).append(index)
    return tuple(
        replace(step, frees=(*step.frees, *frees[at])) if at in frees else step
        for at, step in enumerate(steps)
    )


def _with_clones(plan: Plan, indices: Collection[int]) -> Plan:
    """Puts a copy on the device before downloads, where a later step updates what they read."""
    calls = {call.name: call for call in plan.calls}
    if not any(call.aliases for call in plan.calls):
        return plan
    values = list(plan.values)
    steps = _cloning_steps(plan.steps, indices, calls, values, Sharing(plan))
    return replace(plan, steps=steps, values=tuple(values))


def _cloning_steps(
    steps: Sequence[Step],
    indices: Collection[int],
    calls: Mapping[str, PlannedCall],
    values: list[PlannedValue],
    sharing: Sharing,
) -> tuple[Step, ...]:
    """Steps in which the downloads that give these values read a copy, where a later step updates what they read."""
    # What is read later in these steps is told by their order alone; a body has values of its own.
    result: list[Step] = []
    for at, step in enumerate(steps):
        match step:
            case AdaptStep(inputs=(source,), outputs=(target,), adapter=adapter) if (
                target in indices and adapter.kind == "download"
            ):
                later = {index for other in steps[at + 1 :] for index in updatable_inputs(calls, other)}
                if any(sharing.is_joined(source, index) for index in later):
                    values.append(values[source])
                    clone = len(values) - 1
                    result.append(replace(step, outputs=(clone,), adapter=CLONE))
                    step = replace(step, inputs=(clone,), frees=())
        result.append(with_body(step, _cloning_steps(body_of(step), indices, calls, values, sharing)))
    return tuple(result)


def _doers(steps: Iterable[Step]) -> Iterator[Step]:
    """All steps that read and make values themselves; a region only hands on what its body reads and makes."""
    for step in iter_steps(steps):
        match step:
            case RegionStep():
                continue
        yield step


def _values_to_copy(
    plan: Plan, names: Collection[str], groups: Mapping[str, PlannedGroup]
) -> dict[str, tuple[int, ...]]:
    """Outputs of which a device of these memories can make a copy at bucket sizes.

    Returns:
        By name the value to copy, and what is made of it on its way to the host, the output last.
    """
    steps = {index: step for step in plan.steps for index in step.outputs}
    own_dims = {dim.name for dim in plan.dims if not dim.decided_by}
    sources: dict[str, tuple[int, ...]] = {}
    for name, index in plan.outputs:
        # Back over what changes nothing at bucket sizes, but for a wider dtype, to the value as the device holds it.
        way, step = [index], steps.get(index)
        while isinstance(step, AdaptStep) and plan.values[way[0]].memory == HOST:
            source, target = (plan.values[at].spec for at in (step.inputs[0], way[0]))
            if not _keeps_size(step.adapter, source, target, own_dims):
                break
            way.insert(0, step.inputs[0])
            step = steps.get(way[0])
        group = groups.get(plan.values[way[0]].memory)
        if name in names and group is not None and group.overwrites_outputs and step is not None:
            sources[name] = tuple(way)
    return sources


def dims_on_devices(plan: Plan, names: Collection[str]) -> frozenset[str]:
    """Returns the dims of those of these outputs that are on a device."""
    values = [plan.values[index] for name, index in plan.outputs if name in names]
    specs = [value.spec for value in values if value.memory != HOST and isinstance(value.spec, TensorSpec)]
    return frozenset(name for spec in specs for dim in spec.dims for name in dim_names(dim))


def _keeps_size(adapter: Adapter, source: PortSpec, target: PortSpec, own_dims: set[str]) -> bool:
    """Tells whether an adapter leaves the size of a value as it is where dims of the pipeline are at buckets."""
    if not isinstance(source, TensorSpec) or not isinstance(target, TensorSpec):
        return False
    names = {name for dim in target.dims for name in dim_names(dim)}
    is_cut = adapter.kind == "cut" and plain_dims(source.dims) == plain_dims(target.dims)
    return adapter.kind in ("download", "cast") or (is_cut and names <= own_dims)


def _with_device_copies(plan: Plan, sources: Mapping[str, tuple[int, ...]], devices: Collection[str]) -> Plan:
    """Hands out a copy of each of these values as the output."""
    # A copy is made where the value was about to be downloaded: until then nothing overwrites it.
    values, steps, outputs = list(plan.values), list(plan.steps), dict(plan.outputs)
    for name, (source, target, *_) in sources.items():
        at = next(at for at, step in enumerate(steps) if target in step.outputs)
        value = values[source]
        steps.insert(at, AdaptStep((source,), (len(values),), value.origin, CLONE, device=value.memory))
        outputs[name] = len(values)
        values.append(value)
    # What nobody reads any more is not made; the others die with their last reader, as any value does.
    way = {index for indices in sources.values() for index in indices}
    made = way - {indices[0] for indices in sources.values()}
    remaining = without_unread(steps, made, outputs.values())
    remaining = [
        replace(step, frees=tuple(index for index in step.frees if index not in way)) for step in remaining
    ]
    return replace(
        plan,
        values=tuple(values),
        programs=tuple(
            replace(program, to_host=program.to_host and program.device not in devices)
            for program in plan.programs
        ),
        steps=with_frees(remaining, way - {*outputs.values()}),
        outputs=tuple(outputs.items()),
    )


def without_unread(steps: Iterable[Step], candidates: set[int], outputs: Iterable[int]) -> list[Step]:
    """Steps without those that make a candidate which nobody reads.

    Args:
        steps: The steps.
        candidates: Values that need not be made.
        outputs: What is read in the end.
    """
    remaining, results = list(steps), {*outputs}
    while True:
        reads = {at for step in iter_steps(remaining) for at in step.inputs} | results
        unread = candidates - reads
        fewer = [step for step in remaining if not (step.outputs and set(step.outputs) <= unread)]
        if len(fewer) == len(remaining):
            return fewer
        remaining = fewer


def _outputs_to_copy(plan: Plan, names: Collection[str]) -> dict[str, tuple[str, PortSpec]]:
    """Outputs to put on a device again, with the device and their spec there.

    Those in a buffer that the next request overwrites, and those that are cut or cast on the host after their download,
    as a device that computes at its buckets alone cannot.
    """
    makers = {index: step for step in _doers(plan.steps) for index in step.outputs}
    kinds = {step.outputs[0]: step.adapter.kind for step in iter_steps(plan.steps, AdaptStep)}
    groups = {group.memory: group for group in plan.groups if group.memory != HOST}
    copies: dict[str, tuple[str, PortSpec]] = {}
    for name, index in plan.outputs:
        if name not in names:
            continue
        # Back over the download and what follows it on the host, to the value as the device holds it.
        step, last_kind = makers.get(index), kinds.get(index, "download")
        while step is not None and index in kinds and plan.values[index].memory == HOST:
            index = step.inputs[0]
            step = makers.get(index)
        value = plan.values[index]
        group = groups.get(value.memory)
        if group is not None and (last_kind not in MOVES or group.overwrites_outputs):
            copies[name] = group.device, value.spec
    return copies


def _with_copies(plan: Plan, copies: Mapping[str, tuple[str, PortSpec]]) -> Plan:
    """Puts outputs on their device again, in the dtype that it holds."""
    values, steps, outputs = list(plan.values), list(plan.steps), []

    def add(source: int, adapter: Adapter, memory: str, spec: PortSpec) -> int:
        values.append(replace(values[source], memory=memory, spec=spec))
        steps.append(AdaptStep((source,), (len(values) - 1,), values[source].origin, adapter, device=memory))
        return len(values) - 1

    # The copy is of the result at its own size; only a dtype that the device does not hold is narrowed again.
    for name, index in plan.outputs:
        if name in copies:
            device, device_spec = copies[name]
            spec = values[index].spec
            if (
                isinstance(spec, TensorSpec)
                and isinstance(device_spec, TensorSpec)
                and spec.dtype != device_spec.dtype
            ):
                spec = replace(spec, dtype=device_spec.dtype)
                index = add(index, Adapter("cast", dtype=device_spec.dtype), HOST, spec)
            index = add(index, Adapter("upload", device=device), device, spec)
        outputs.append((name, index))
    return replace(plan, values=tuple(values), steps=tuple(steps), outputs=tuple(outputs))

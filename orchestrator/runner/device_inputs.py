"""Inputs that are on their device already: outputs of an earlier request that stayed there.

The plan puts an input on its devices by uploads. Where the request gives a value that is on one of them, the plan is
rewritten: that value stands for what the upload would have made, and whoever reads the input elsewhere reads what a
download brings. The value is the caller's, and nobody frees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from orchestrator.adapter import CLONE, Adapter
from orchestrator.errors import InputError
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BranchStep,
    LoopLikeStep,
    LoopStep,
    Step,
    body_of,
    with_body,
)
from orchestrator.plan.updated import updatable_inputs
from orchestrator.runner.closing import Closing
from orchestrator.runner.device_outputs import with_frees, without_unread
from orchestrator.runner.device_values import device_value_of
from orchestrator.runner.sharing import Sharing
from orchestrator.specs import TensorSpec

__all__ = ["check_buckets", "find_device_inputs", "with_device_inputs"]

_WAY_OUT = "Leave the output out of keep_on_device, and give what comes to the host."


def find_device_inputs(plan: Plan, inputs: Any, session: Closing) -> dict[str, str]:
    """Returns the inputs of a request that are on a device, each with the device.

    Args:
        plan: The plan.
        inputs: The request, unchecked.
        session: The end of the session that it is a request of.

    Raises:
        InputError: A value is of another session, or the input is read on no device that the value is on.
    """
    if not isinstance(inputs, Mapping):
        return {}
    # First whose it is, for a handle of another session says nothing here; then whether the plan wants it there.
    places: dict[str, str] = {}
    for index, (name, spec) in enumerate(plan.inputs):
        value = device_value_of(inputs.get(name))
        if value is None or not isinstance(spec, TensorSpec):
            continue
        owner = value.session()
        where = f"Input {name!r} was given output {value.output!r}, which stayed on {value.device!r}"
        if owner is not session:
            which = "was closed" if owner is None or owner.flag else "is another one"
            raise InputError(
                f"{where}, by a session that {which}: it is of use to that session alone. {_WAY_OUT}",
                input=name,
                device=value.device,
            )
        if not _uploads(plan, index, value.device):
            devices = sorted({step.device for step in _all_uploads(plan, index)}) or [HOST]
            raise InputError(
                f"{where}, but the input is read on {', '.join(map(repr, devices))}. {_WAY_OUT}",
                input=name,
                device=value.device,
            )
        places[name] = value.device
    return places


def check_buckets(
    plan: Plan, places: Mapping[str, str], sizes: Mapping[str, int], bucket: Mapping[str, int]
) -> None:
    """Makes sure that inputs on devices need no padding that is not done there, and no cutting into chunks.

    Args:
        plan: The plan for such a request.
        places: Inputs that are on a device, each with the device.
        sizes: Of the request.
        bucket: What each name runs in; 0: it is cut into chunks.

    Raises:
        InputError: One does.
    """
    # A request in chunks is refused whatever the input's own dims are: chunks of all inputs are cut alike. Where the
    # plan pads on the host, before the upload that does not happen now, the value has to be at a bucket as it is.
    for index, (name, spec) in enumerate(plan.inputs):
        if name not in places or not isinstance(spec, TensorSpec):
            continue
        chunked = next((dim for dim, size in bucket.items() if not size), None)
        if chunked is not None:
            raise InputError(
                f"Input {name!r} is on {places[name]!r}, and the request has {chunked}={sizes[chunked]}, above the "
                f"largest bucket: it runs in chunks, which are cut from what is on the host. {_WAY_OUT}",
                input=name,
                dim=chunked,
                size=sizes[chunked],
            )
        odd = next((dim for dim in spec.names if dim in bucket and sizes[dim] != bucket[dim]), None)
        if odd is not None and not plan.values[index].unpadded:
            raise InputError(
                f"Input {name!r} is on {places[name]!r} at {odd}={sizes[odd]}, which is no bucket, and nothing is "
                f"padded there outside of programs. Make it at {odd}={bucket[odd]}, the bucket that it would be padded "
                f"to; or leave the output out of keep_on_device, and give what comes to the host.",
                input=name,
                dim=odd,
                size=sizes[odd],
            )


def with_device_inputs(plan: Plan, places: Mapping[str, str]) -> Plan:
    """Returns the plan whose inputs are on devices already.

    Args:
        plan: The plan.
        places: Inputs by name, each with a device that the plan uploads it to.
    """
    for index, (name, _) in enumerate(plan.inputs):
        if name in places:
            plan = _with_device_input(plan, index, places[name])
    return plan


def _with_device_input(plan: Plan, index: int, device: str) -> Plan:
    """Has one input stand for what its first upload to the device makes."""
    # 1. Uploads that make the same form as the first one go, and all read the input itself in place of what they made.
    first, *others = _uploads(plan, index, device)
    form = plan.values[first.outputs[0]]
    same_form = [step for step in (first, *others) if _has_form(plan.values[step.outputs[0]], form)]
    # What the plan updates in place is a copy: the input is the caller's.
    clones = [replace(step, adapter=CLONE) for step in same_form if _is_updated(plan, step.outputs[0])]
    cloned = {step.outputs[0] for step in clones}
    targets = {step.outputs[0]: index for step in same_form if step.outputs[0] not in cloned}
    readers = [step for step in plan.steps if step not in same_form]
    # 2. Who reads the input itself, or what the host makes of it, reads a download; what nobody reads is not made.
    values = list(plan.values)
    host_values = _host_values(plan, index)
    steps = without_unread(readers, host_values - {index}, dict(plan.outputs).values())
    downloads: list[Step] = []
    host_index = index
    if any(index in step.inputs for step in steps) or index in dict(plan.outputs).values():
        downloads, host_index = _download(values, index, form, device)
    # 3. Names change at once, and lives are told anew: the input is the caller's, what the host holds dies here.
    names = {**targets, index: host_index}
    new_steps = [*downloads, *clones, *(_rename(step, names) for step in steps)]
    outputs = tuple((name, names.get(at, at)) for name, at in plan.outputs)
    on_host = (host_values - {index}) | set(range(len(plan.values), len(values)))
    caller_owned = {index} | on_host
    new_steps = [_without_frees(step, caller_owned) for step in new_steps]
    new_steps = list(with_frees(new_steps, on_host - {at for _, at in outputs}))
    values[index] = replace(form, origin=plan.values[index].origin)
    inputs = list(plan.inputs)
    name, spec = inputs[index]
    assert isinstance(spec, TensorSpec)
    assert isinstance(form.spec, TensorSpec)
    inputs[index] = name, replace(spec, dtype=form.spec.dtype)
    return replace(plan, inputs=tuple(inputs), values=tuple(values), steps=tuple(new_steps), outputs=outputs)


def _is_updated(plan: Plan, index: int) -> bool:
    """Tells whether a step may update the memory of a value in place."""
    calls = {call.name: call for call in plan.calls}
    updates = {other for step in plan.steps for other in updatable_inputs(calls, step)}
    return bool(updates) and any(map(partial(Sharing(plan).is_joined, index), updates))


def _has_form(value: PlannedValue, form: PlannedValue) -> bool:
    return (value.spec, value.unpadded) == (form.spec, form.unpadded)


def _host_values(plan: Plan, index: int) -> set[int]:
    """The input, and what steps of the host alone make of it on its way to a device."""
    host_values = {index}
    for step in plan.steps:
        match step:
            case AdaptStep(inputs=(source,), outputs=(target,)) if source in host_values:
                host_values |= {target} if plan.values[target].memory == HOST else set()
    return host_values


def _all_uploads(plan: Plan, index: int) -> list[AdaptStep]:
    """The uploads of an input, of those that are not in the body of a block."""
    host_values = _host_values(plan, index)
    uploads = [step for step in plan.steps if isinstance(step, AdaptStep) and step.adapter.kind == "upload"]
    return [step for step in uploads if step.inputs[0] in host_values]


def _uploads(plan: Plan, index: int, device: str) -> list[AdaptStep]:
    return [step for step in _all_uploads(plan, index) if plan.values[step.outputs[0]].memory == device]


def _download(
    values: list[PlannedValue], index: int, form: PlannedValue, device: str
) -> tuple[list[Step], int]:
    """Steps that bring an input to the host as a request would have given it, and the value there."""
    # As the device holds it first; then, where that is narrower, in the dtype that the host reads.
    whole = values[index]
    assert isinstance(whole.spec, TensorSpec)
    assert isinstance(form.spec, TensorSpec)
    values.append(replace(whole, spec=replace(whole.spec, dtype=form.spec.dtype)))
    target = len(values) - 1
    steps: list[Step] = [
        AdaptStep((index,), (target,), whole.origin, Adapter("download", device=HOST), device=device)
    ]
    if form.spec.dtype != whole.spec.dtype:
        values.append(whole)
        cast = Adapter("cast", dtype=whole.spec.dtype)
        steps.append(AdaptStep((target,), (target + 1,), whole.origin, cast))
        target += 1
    return steps, target


def _rename(step: Step, names: Mapping[int, int]) -> Step:
    """A step that reads other values in place of some."""
    # What a block reads from outside goes by the outer names, in its list of inputs as in its body; names of values
    # that a body makes are not among those that change.
    name: Callable[[int], int] = lambda index: names.get(index, index)  # noqa: E731
    step = replace(
        step,
        inputs=tuple(dict.fromkeys(map(name, step.inputs)))
        if body_of(step)
        else tuple(map(name, step.inputs)),
        frees=tuple(index for index in step.frees if index not in names),
    )
    step = with_body(step, tuple(_rename(inner, names) for inner in body_of(step)))
    match step:
        case LoopLikeStep(carries=carries, slices=slices):
            step = replace(
                step,
                carries=tuple(replace(carry, initial=name(carry.initial)) for carry in carries),
                slices=tuple(replace(entry, whole=name(entry.whole)) for entry in slices),
            )
    match step:
        case BranchStep(condition=int(condition)) | LoopStep(condition=int(condition)):
            step = replace(step, condition=name(condition))
    return step


def _without_frees(step: Step, indices: set[int]) -> Step:
    step = with_body(step, tuple(_without_frees(inner, indices) for inner in body_of(step)))
    return replace(step, frees=tuple(index for index in step.frees if index not in indices))

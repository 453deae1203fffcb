"""Admitting a request: names, types, dtypes, ranks and sizes against the plan, before any stage runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from orchestrator.errors import InputError, nearest
from orchestrator.plan.chunks import size_error, ways_out
from orchestrator.plan.model import Plan
from orchestrator.plan.records import DimPlan
from orchestrator.plan.run_record import RunRecord
from orchestrator.specs import PortSpec, TensorSpec, plain_dims, show_spec, show_tensor

__all__ = ["admit", "positional_error"]


def admit(plan: Plan, inputs: Mapping[str, Any], on_device: Collection[str] = ()) -> RunRecord:
    """Checks a request.

    Args:
        plan: The plan.
        inputs: Names to host tensors and Python values.
        on_device: Inputs that are handles on the device where the plan wants them.

    Returns:
        The size of every named dim of the inputs, and which inputs are left out.

    Raises:
        InputError: The request does not fit.
    """
    specs = dict(plan.inputs)
    # Names come first: a wrong size is of interest only where all inputs are there, and nothing else.
    if not isinstance(inputs, Mapping):
        raise InputError(f"A request is a dict of inputs by name, not {show_tensor(inputs)}.")
    for name in inputs:
        if name not in specs:
            raise InputError(
                f"Pipeline {plan.pipeline!r} has no input {name!r}.{nearest(name, specs)}", input=name
            )
    absent = tuple(name for name in plan.optional if inputs.get(name) is None)
    missing = [name for name in specs if name not in inputs and name not in absent]
    if missing:
        names = ", ".join(f"{name!r} ({show_spec(specs[name])})" for name in missing)
        raise InputError(f"The request lacks {names}.", inputs=tuple(missing))
    # Each dim has one size in all inputs; who gave it first is named where another one differs.
    sizes: dict[str, tuple[str, int]] = {}
    for name, spec in specs.items():
        if name not in absent:
            _check(name, spec, inputs[name], sizes, name in on_device)
    # Only then whether the plan runs at that size: a bucket, padded up to one, or in chunks.
    for dim in plan.dims:
        if dim.name in sizes:
            _check_size(plan, dim, *sizes[dim.name])
    return RunRecord({dim: size for dim, (_, size) in sizes.items()}, absent=frozenset(absent))


def _unfit(name: str, spec: PortSpec, value: Any, text: str) -> InputError:
    return InputError(
        f"Input {name!r} takes {show_spec(spec)}, but got {show_tensor(value)}: {text}",
        input=name,
        spec=spec,
    )


def _check(
    name: str, spec: PortSpec, value: Any, sizes: dict[str, tuple[str, int]], is_on_device: bool
) -> None:
    if not isinstance(spec, TensorSpec):
        if not isinstance(value, spec):
            raise _unfit(name, spec, value, f"pass a {spec.__name__}.")
        return
    if not is_on_device:
        _check_form(name, spec, value)
    _check_element(name, spec, value)
    # The form has told the rank, so dims and sizes pair up.
    for axis, (dim, size) in enumerate(zip(plain_dims(spec.dims), value.shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise _unfit(name, spec, value, f"dim {axis} is {size}, it takes {dim}.")
        if isinstance(dim, str):
            if not size:
                raise _unfit(name, spec, value, f"dim {axis} ({dim}) is 0; a request has at least one.")
            other, expected_size = sizes.setdefault(dim, (name, size))
            if expected_size != size:
                raise _unfit(
                    name, spec, value, f"{dim} is {size} here but {expected_size} in input {other!r}."
                )


def _check_form(name: str, spec: TensorSpec, value: Any) -> None:
    # From what any object tells to what only a plain dense tensor does: a subclass may answer in any way.
    if not isinstance(value, torch.Tensor):
        raise _unfit(name, spec, value, "pass a torch.Tensor (torch.from_numpy or torch.tensor make one).")
    if value.layout is not torch.strided or value.is_nested:
        raise _unfit(name, spec, value, "it is sparse or nested; pass a dense tensor.")
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise _unfit(
            name, spec, value, "it is of a class of its own; pass .as_subclass(torch.Tensor), or a plain one."
        )
    if not value.is_cpu:
        raise _unfit(
            name,
            spec,
            value,
            "a request's inputs come from the host, or are what keep_on_device left on a device; pass .cpu().",
        )


def _check_element(name: str, spec: TensorSpec, value: Any) -> None:
    """Checks dtype and rank, which a handle on a device tells as well."""
    if value.dtype != spec.dtype:
        raise _unfit(name, spec, value, f"wrong dtype; convert it with .to({spec.dtype}).")
    if len(value.shape) != len(spec.dims):
        raise _unfit(name, spec, value, f"wrong rank {len(value.shape)}, it takes {len(spec.dims)} dims.")


def _check_size(plan: Plan, dim: DimPlan, name: str, size: int) -> None:
    fault = size_error(dim, size)
    if fault == "large":
        raise InputError(
            f"Input {name!r} has {dim.name}={size}, above its largest bucket {dim.buckets[-1]}. {ways_out(dim, size)}",
            input=name,
            dim=dim.name,
            size=size,
        )
    # A size that is no bucket would be padded: say why not, and what to do for that reason.
    if fault == "odd":
        why = f"{_ruleless(plan, dim.name)} has no pad rule. Declare it with pad=0 or pad='repeat_first'"
        why = "the dim is declared exact. Fill the input up to a bucket yourself" if dim.exact else why
        raise InputError(
            f"Input {name!r} has {dim.name}={size}, which is no bucket {dim.buckets}, and smaller sizes are "
            f"not padded: {why}, or plan for that size.",
            input=name,
            dim=dim.name,
            size=size,
        )


def _ruleless(plan: Plan, dim: str) -> str:
    """The edge that would have to be padded along a dim and has no rule; an input's is told by the input."""
    inputs = {name for name, _ in plan.inputs}
    for edge in plan.edges:
        for adapter in edge.adapters:
            if adapter.kind == "pad" and adapter.rule is None and dim in TensorSpec(adapter.dims).names:
                return f"an input with that dim ({edge.source!r})" if edge.source in inputs else f"'{edge}'"
    return "an input with that dim"


def positional_error(plan: Plan, arguments: tuple[object, ...]) -> InputError:
    """Returns the error of a session that was called with inputs by position, or with a dict of them."""
    names = [name for name, _ in plan.inputs]
    if isinstance(arguments[0], Mapping):
        form = "session.run(inputs) takes a dict of them, and so does session(**inputs)"
    else:
        form = f"write session({', '.join(f'{name}=...' for name in names)})"
    return InputError(
        f"A session is called with inputs by name, not with {show_tensor(arguments[0])}; {form}.",
        inputs=tuple(names),
    )

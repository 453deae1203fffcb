"""Memory: weights, constants, the programs' own output buffers and the peak of all other values against the budget.

It is checked before anything is loaded. A device that knows its memory has a budget without being given one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.errors import PlanError, PlanOptionError, nearest
from orchestrator.plan.count import constant_bytes
from orchestrator.plan.model import Plan
from orchestrator.planner.context import PlanContext
from orchestrator.tables import table

__all__ = ["check_budget", "parse_bytes", "weigh"]

#: Device, weights, constants, output buffers, other values at the peak, needed, budget.
Row = tuple[str, int, int, int, int, int, int]

_UNITS = {
    "": 1,
    "K": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
    "KI": 1024,
    "MI": 1024**2,
    "GI": 1024**3,
    "TI": 1024**4,
}


def weigh(context: PlanContext) -> PlanContext:
    """Adds up the bytes of output buffers on each device, and reads the budget.

    Raises:
        PlanError: A budget that is no size, or for a device that is not in the plan.
    """
    return replace(context, buffers=_buffers(context), budget=_budget(context))


def _buffers(context: PlanContext) -> dict[str, int]:
    """Bytes of states, and of the output buffers of each program, one for each combination of buckets."""
    sizes_by_device = {
        device: 0 for device, backend in context.groups.items() if backend.capabilities.output_buffers
    }
    for program in context.programs:
        if program.device not in sizes_by_device:
            continue
        for sizes in program.combinations(context.buckets):
            results = (item for item in program.outputs if not item.state)
            sizes_by_device[program.device] += sum(item.spec.nbytes(sizes) for item in results)
    for state in context.states:
        sizes_by_device[state.device] = sizes_by_device.get(state.device, 0) + state.spec.nbytes({})
    return {device: size for device, size in sizes_by_device.items() if size}


def parse_bytes(text: int | str) -> int:
    """Returns the bytes of ``16GB``, ``512MiB`` or a plain number.

    Raises:
        PlanError: It is no size.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(text).upper())
    if match is None or isinstance(text, bool) or not float(match[1]):
        raise PlanOptionError(
            f"A memory budget is a number of bytes or a size like '16GB' or '512MiB', not {text!r}."
        )
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _budget(context: PlanContext) -> dict[str, int]:
    option = context.options.memory
    capacities = {device: backend.capabilities.memory for device, backend in context.groups.items()}
    budget = {device: size for device, size in capacities.items() if size}
    # What the caller gives replaces what devices know of themselves: one size replaces all, a mapping those it names.
    if option is None:
        return budget
    if not isinstance(option, Mapping):
        return dict.fromkeys(context.groups, parse_bytes(option))
    for device, size in option.items():
        name = context.options.resolve(device)[1].canonical(device)
        if name not in context.groups:
            raise PlanOptionError(
                f"memory gives a budget for {device!r}, which the plan does not use.{nearest(device, context.groups)}",
                device=device,
            )
        budget[name] = parse_bytes(size)
    return budget


def check_budget(plan: Plan) -> None:
    """Compares the memory that a plan needs on each device with its budget.

    Raises:
        PlanError: It needs more; the message has a table and what to change.
    """
    if not plan.budget:
        return
    peak = plan.summary["peak_bytes"]
    constants = {group.device: constant_bytes(plan, group.device) for group in plan.groups}
    weights, buffers = dict(plan.weights), dict(plan.buffers)
    rows: list[Row] = []
    over = []
    # A row for every device, also for those that fit, so that the table shows where stages could go instead.
    for device, limit in plan.budget:
        if device not in constants or limit < 1:
            raise PlanError(f"The plan gives {device!r} a budget of {limit} bytes.", device=device)
        parts = (weights.get(device, 0), constants[device], buffers.get(device, 0), peak.get(device, 0))
        total = sum(parts)
        rows.append((device, *parts, total, limit))
        if total > limit:
            over.append(device)
    if over:
        raise PlanError(_over(plan, over, rows), devices=tuple(over), table=tuple(rows))


def _over(plan: Plan, over: list[str], rows: list[Row]) -> str:
    head = ("device", "weights", "constants", "buffers", "values at peak", "needed", "budget")
    cells = [(row[0], *(f"{number:,}" for number in row[1:])) for row in rows]
    lines = table([head, *cells], indent="", align=str.rjust)
    # Advice depends on what the plan has: buckets only where there are dims to choose for, compiler options only where
    # there are output buffers.
    dims = ", ".join(f"{dim.name} (now {dim.buckets[-1]})" for dim in plan.dims if not dim.any)
    smaller = f"choose smaller buckets for {dims}, or " if dims else ""
    if plan.buffers:
        smaller += (
            "compile fewer buckets, use a narrower dtype (options={'torch_dtype': 'bfloat16'}), cut weights over ranks "
            "(tp_degree with shard_weights), or "
        )
    return (
        f"The plan of {plan.pipeline!r} needs more memory than its budget on {', '.join(over)} (bytes, one rank):\n"
        + "\n".join(lines)
        + f"\nTo fit: {smaller}place stages on another device (placement=), keep large edges on the host "
        f"(residency=), or raise the budget (memory=)."
    )

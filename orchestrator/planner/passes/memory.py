"""Memory: weights, constants and the peak of resident values against the budget, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from orchestrator.errors import PlanError, nearest
from orchestrator.plan.model import HOST, Plan
from orchestrator.planner.draft import Draft
from orchestrator.specs import TensorSpec
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["check_budget", "parse_bytes", "weigh"]

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


def weigh(draft: Draft) -> Draft:
    """Adds up the bytes of weights on each device, each storage once, and reads the budget.

    Raises:
        PlanError: A budget that is no size, or for a device that is not in the plan.
    """
    seen: dict[str, set[Any]] = {device: set() for device in draft.groups}
    weights = dict.fromkeys(draft.groups, 0)
    owners = []
    for stage in draft.graph.stages.values():
        device = draft.devices[stage.name]
        if device == HOST:
            continue
        # Held until the end: the identity of a tensor that was freed may come again.
        owners.append(_owner(stage))
        for key, size in _tensors(owners[-1]):
            if key not in seen[device]:
                seen[device].add(key)
                weights[device] += size
    return replace(draft, weights=weights, budget=_budget(draft))


def _owner(stage: Stage) -> Any:
    """What holds a stage's weights; a wrapper's model that is not built yet is built without memory."""
    wrapper = stage.wrapper
    if wrapper is None:
        return getattr(stage.target, "__self__", stage.target)
    if wrapper.model_cls is None:
        return wrapper.__dict__.get("_model")
    return wrapper.__dict__.get("_model") or _skeleton(wrapper)


def _tensors(owner: Any) -> Iterator[tuple[Any, int]]:
    """Yields identity and bytes of parameters and buffers."""
    if isinstance(owner, torch.nn.Module):
        for tensor in (*owner.parameters(), *owner.buffers()):
            storage = 0 if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr()
            yield storage or id(tensor), tensor.nbytes


def _skeleton(wrapper: ModelWrapper) -> Any:
    """The wrapper's model on the meta device; the real one where its class cannot be built there."""
    try:
        with torch.device("meta"):
            return wrapper.make_model()
    except Exception:
        return wrapper.model


def parse_bytes(text: int | str) -> int:
    """Returns the bytes of ``16GB``, ``512MiB`` or a plain number.

    Raises:
        PlanError: It is no size.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(text).upper())
    if match is None or isinstance(text, bool) or not float(match[1]):
        raise PlanError(
            f"A memory budget is a number of bytes or a size like '16GB' or '512MiB', not {text!r}."
        )
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _budget(draft: Draft) -> dict[str, int]:
    asked = draft.request.memory
    if asked is None:
        return {}
    if not isinstance(asked, Mapping):
        return dict.fromkeys(draft.groups, parse_bytes(asked))
    budget = {}
    for device, size in asked.items():
        name = draft.request.resolve(device)[1].canonical(device)
        if name not in draft.groups:
            raise PlanError(
                f"memory gives a budget for {device!r}, which the plan does not use.{nearest(device, draft.groups)}",
                device=device,
            )
        budget[name] = parse_bytes(size)
    return budget


def check_budget(plan: Plan) -> None:
    """Compares what a plan needs on each device with its budget.

    Raises:
        PlanError: It needs more; the message has a table and what to change.
    """
    if not plan.budget:
        return
    peak = plan.summary["peak_bytes"]
    constants = dict.fromkeys((group.device for group in plan.groups), 0)
    for value in plan.values:
        if value.constant and isinstance(value.spec, TensorSpec):
            for group in plan.groups:
                if group.memory == value.memory:
                    constants[group.device] += value.spec.nbytes({})
    weights = dict(plan.weights)
    rows, over = [], []
    for device, limit in plan.budget:
        if device not in constants or limit < 1:
            raise PlanError(f"The plan gives {device!r} a budget of {limit} bytes.", device=device)
        needed = weights.get(device, 0) + constants[device] + peak.get(device, 0)
        rows.append((device, weights.get(device, 0), constants[device], peak.get(device, 0), needed, limit))
        if needed > limit:
            over.append(device)
    if over:
        raise PlanError(_over(plan, over, rows), devices=tuple(over), table=tuple(rows))


def _over(plan: Plan, over: list[str], rows: list[tuple[str, int, int, int, int, int]]) -> str:
    head = ("device", "weights", "constants", "values at peak", "needed", "budget")
    table = [head, *((row[0], *(f"{number:,}" for number in row[1:])) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    dims = ", ".join(f"{dim.name} (now {dim.buckets[-1]})" for dim in plan.dims if not dim.any)
    smaller = f"choose smaller buckets for {dims}, or " if dims else ""
    return (
        f"The plan of {plan.pipeline!r} needs more memory than its budget on {', '.join(over)} (bytes, one rank):\n"
        + "\n".join(lines)
        + f"\nTo fit: {smaller}place stages on another device (placement=), keep large edges on the host "
        f"(residency=), or raise the budget (memory=)."
    )

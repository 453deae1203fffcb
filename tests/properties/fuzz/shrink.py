"""Shrinking: a recipe with a fault, made smaller as long as it has the same one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

from tests.properties.fuzz.recipe import Block, Op, Recipe

__all__ = ["shrink"]


def shrink(recipe: Recipe, has_fault: Callable[[Recipe], bool], seconds: float = 60) -> Recipe:
    """Returns a smaller recipe.

    Args:
        recipe: One with a fault.
        has_fault: Tells whether another one has the same fault; what it raises counts as no.
        seconds: When to stop.
    """
    until = time.monotonic() + seconds
    again = True
    while again and time.monotonic() < until:
        again = False
        for smaller in _smaller(recipe):
            if time.monotonic() > until:
                break
            if _holds(has_fault, smaller):
                recipe, again = smaller, True
                break
    return recipe


def _holds(has_fault: Callable[[Recipe], bool], recipe: Recipe) -> bool:
    try:
        return has_fault(recipe)
    except Exception:
        return False


def _smaller(recipe: Recipe) -> Iterator[Recipe]:
    """Yields recipes with one thing less, the largest steps first."""
    yield from _requests(recipe)
    yield from _without(recipe, lambda block: block.outputs, least=1)
    yield from _plans(recipe)
    for at, block in enumerate(recipe.main.blocks()):
        for position in reversed(range(len(block.ops))):
            yield from _without_op(recipe, at, position)
    yield from _without_inputs(recipe)


def _requests(recipe: Recipe) -> Iterator[Recipe]:
    for at in range(len(recipe.requests)):
        if len(recipe.requests) > 1:
            smaller = copy.deepcopy(recipe)
            del smaller.requests[at], smaller.sizes[at]
            yield smaller


def _plans(recipe: Recipe) -> Iterator[Recipe]:
    """Everything on the processor; one stage there; one option less."""
    for way in ("through_json", "forced", "streamed"):
        if getattr(recipe, way):
            smaller = copy.deepcopy(recipe)
            setattr(smaller, way, False)
            yield smaller
    placement = recipe.plan.get("placement", {})
    if placement:
        smaller = copy.deepcopy(recipe)
        del smaller.plan["placement"]
        smaller.plan.pop("options", None)
        yield smaller
    for name in placement:
        smaller = copy.deepcopy(recipe)
        if placement[name] != "cpu":
            smaller.plan["placement"][name] = "cpu"
            yield smaller
    for name in recipe.plan.get("options", {}):
        smaller = copy.deepcopy(recipe)
        del smaller.plan["options"][name]
        yield smaller


def _without(recipe: Recipe, part: Callable[[Block], list[list[str]]], least: int) -> Iterator[Recipe]:
    for at in range(len(part(recipe.main))):
        if len(part(recipe.main)) > least:
            smaller = copy.deepcopy(recipe)
            del part(smaller.main)[at]
            yield smaller


def _without_op(recipe: Recipe, at: int, position: int) -> Iterator[Recipe]:
    """Leaves out an operation: what it gave is replaced by something that it read, or by any input."""
    block = list(recipe.main.blocks())[at]
    op = block.ops[position]
    read = [value for value in dict.fromkeys(op.reads()) if value.startswith("v")]
    others = [item.value for item in block.inputs if item.value not in read]
    used = _is_read(block, op)
    for other in (read + others)[:5] if used else [""]:
        smaller = copy.deepcopy(recipe)
        inner = list(smaller.main.blocks())[at]
        del inner.ops[position]
        for out in op.outs:
            _replace(inner, out, other)
        _forget_stages(smaller)
        yield smaller


def _is_read(block: Block, op: Op) -> bool:
    outs = set(op.outs)
    read = {value for other in block.ops for value in other.reads()} | {value for _, value in block.outputs}
    return bool(outs & read)


def _replace(block: Block, old: str, new: str) -> None:
    for op in block.ops:
        op.replace(old, new)
    block.outputs = [[port, new if value == old else value] for port, value in block.outputs]


def _forget_stages(recipe: Recipe) -> None:
    """Leaves out stages that are never called, and their placement."""
    for block in recipe.main.blocks():
        called = sorted({op.stage for op in block.ops if op.kind == "call"})
        block.stages = [block.stages[at] for at in called]
        for op in block.ops:
            if op.kind == "call":
                op.stage = called.index(op.stage)
    if "placement" in recipe.plan:
        known = set(_paths(recipe.main, ""))
        recipe.plan["placement"] = {
            name: device for name, device in recipe.plan["placement"].items() if name in known
        }


def _paths(block: Block, around: str) -> Iterator[str]:
    yield from (around + stage.name for stage in block.stages)
    for op in block.ops:
        if op.body is not None:
            yield from _paths(op.body, f"{around}{op.name}/")


def _without_inputs(recipe: Recipe) -> Iterator[Recipe]:
    block = recipe.main
    read = {value for op in block.ops for value in op.reads()} | {value for _, value in block.outputs}
    for at, item in enumerate(block.inputs):
        if item.value not in read:
            smaller = copy.deepcopy(recipe)
            del smaller.main.inputs[at]
            for request in smaller.requests:
                request.pop(item.name, None)
            yield smaller

"""What is asked of the steps of a plan in several places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.plan.model import Plan, Step

__all__ = ["spent_starts", "split_entry", "walk"]


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """Yields every step, those of a body after the region or loop itself."""
    for step in steps:
        yield step
        yield from walk(step.body)


def split_entry(plan: Plan) -> tuple[dict[str, tuple[Step, ...]], tuple[Step, ...]]:
    """Parts the steps in those that prepare one input each, and the rest.

    What prepares an input depends on that input alone, so that a request in chunks does it once for an input
    that is not cut.

    Returns:
        For each input the adapter steps rooted in it, and all other steps in order.
    """
    roots = {value: name for value, (name, _) in enumerate(plan.inputs)}
    entry: dict[str, list[Step]] = {name: [] for name, _ in plan.inputs}
    rest = []
    for step in plan.steps:
        if step.op == "adapt" and step.inputs[0] in roots:
            root = roots[step.outputs[0]] = roots[step.inputs[0]]
            entry[root].append(step)
        else:
            rest.append(step)
    return {name: tuple(steps) for name, steps in entry.items()}, tuple(rest)


def spent_starts(step: Step) -> list[int]:
    """Returns the values that a loop's carries start with and that nobody reads any more once it has begun."""
    assert step.loop is not None
    read = {index for inner in walk(step.body) for index in inner.inputs} | set(step.loop.ends)
    read |= {whole for whole, _ in step.loop.slices}
    starts = {start for start, _, _ in step.loop.carries}
    return sorted((starts & set(step.frees)) - read)

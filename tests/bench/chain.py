"""A chain of trivial stages, ``x + 1`` on ``[1, 64]``: nearly all time is what stands between the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from orchestrator import Pipeline, TensorSpec
from tests.bench.measure import Effort, Pair, Row, compare

LIMIT = 0.3
NOTE = "0.1 is the aim; request validation and counting are included"

Function = Callable[[Tensor], Tensor]


def stage(x: Tensor) -> Tensor:
    """The stage."""
    return x + 1


def by_hand(count: int, device: str = "cpu") -> Function:
    """Writes ``count`` calls one under the other, as a person would: no loop to pay for."""
    lines = ["def chain(x):", "    x = to_device(x)", *["    x = stage(x)"] * count, "    return x.cpu()"]
    if device == "cpu":
        lines = ["def chain(x):", *["    x = stage(x)"] * count, "    return x"]
    scope: dict[str, Any] = {"stage": stage, "to_device": lambda x: x.to(device)}
    exec("\n".join(lines), scope)
    function: Function = scope["chain"]
    return function


def pipeline(count: int) -> Pipeline:
    """The same chain as a pipeline."""
    chain = Pipeline("chain")
    value = chain.input("x", TensorSpec((1, 64)))
    for number in range(count):
        value = chain.add(f"s{number}", stage)(value)
    chain.output("y", value)
    return chain


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    if device == "cpu":
        yield _control(effort)
    for count in (10, 50):
        yield _inference(effort, device, count)
    if device == "cpu":
        yield _grad(effort)


def _row(case: str, pair: Pair, count: int, equal: bool, limit: float | None = None, note: str = "") -> Row:
    each = pair.difference * 1e6 / count
    return Row(
        "chain",
        case,
        "us",
        pair.ours * 1e6,
        pair.reference * 1e6,
        each,
        "us a stage",
        limit,
        equal=equal,
        note=note,
    )


def _control(effort: Effort) -> Row:
    """Two copies of the hand-written chain: what they differ by is noise."""
    x, first, second = torch.zeros(1, 64), by_hand(10), by_hand(10)
    with torch.inference_mode():
        pair = compare(lambda: first(x), lambda: second(x), effort.rounds(500))
    return _row("10 stages, by hand against by hand", pair, 10, True, note="what noise alone gives")


def _inference(effort: Effort, device: str, count: int) -> Row:
    x, chain = torch.zeros(1, 64), by_hand(count, device)
    with pipeline(count).plan(device=device).load() as session, torch.inference_mode():
        equal = torch.equal(session(x=x)["y"], chain(x))
        pair = compare(lambda: session(x=x), lambda: chain(x), effort.rounds(500))
    judged = count == 10 and device == "cpu"
    case = f"{count} stages" if device == "cpu" else f"{count} stages on {device}"
    return _row(case, pair, count, equal, LIMIT if judged else None, NOTE if judged else "")


def _grad(effort: Effort) -> Row:
    """The caller has gradients on: both sides turn them off for the request."""
    x, chain = torch.zeros(1, 64), by_hand(10)

    def without_grad() -> Tensor:
        with torch.no_grad():
            return chain(x)

    with pipeline(10).plan().load() as session:
        equal = torch.equal(session(x=x)["y"], without_grad())
        pair = compare(lambda: session(x=x), without_grad, effort.rounds(500))
    return _row(
        "10 stages, gradients on at the caller", pair, 10, equal, note="by hand: `with torch.no_grad():`"
    )

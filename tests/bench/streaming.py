"""``session.stream`` over two equal stages on the CPU, one torch thread each, against one request after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from orchestrator import Pipeline, TensorSpec
from tests.bench.measure import Effort, Row, compare

LIMIT = 1.7
WIDTH, BATCH, REQUESTS = 1024, 256, 32


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    assert device == "cpu"
    width = 64 if effort.quick else WIDTH
    first, second = nn.Linear(width, width).eval(), nn.Linear(width, width).eval()
    chain = Pipeline("stream")
    x = chain.input("x", TensorSpec((BATCH, width)))
    chain.output("y", chain.add("second", second)(chain.add("first", first)(x)))
    requests = [{"x": torch.rand(BATCH, width)} for _ in range(REQUESTS)]

    def sequential() -> list[Tensor]:
        return [second(first(request["x"])) for request in requests]

    def one(request: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():  # torch keeps the mode for each thread
            result: Tensor = second(first(request["x"]))
            return result

    with chain.plan().load() as session, torch.inference_mode():

        def streamed() -> list[Tensor]:
            return [result["y"] for result in session.stream(requests, depth=2)]

        equal = all(torch.equal(a, b) for a, b in zip(streamed(), sequential(), strict=True))
        pair = compare(sequential, streamed, effort.rounds(31))
        yield _row("session.stream", pair.reference, pair.ours, pair.ratio, equal)

        def pooled() -> list[Tensor]:
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(one, requests))

        pair = compare(sequential, pooled, effort.rounds(31))
        yield _row("two threads by hand", pair.reference, pair.ours, pair.ratio, None)


def _row(case: str, ours: float, sequential: float, gain: float, equal: bool | None) -> Row:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    judged = equal is not None and cores >= 2
    return Row(
        "stream",
        f"{REQUESTS} requests, {case}",
        "ms",
        ours * 1e3,
        sequential * 1e3,
        gain,
        "x the rate",
        LIMIT if judged else None,
        at_least=True,
        equal=equal,
        note="against one after the other" if judged else "what this machine gives at this moment",
    )

"""How long a plan takes, by the number of stages.

Run as a module, this times the first plans of a process and prints them as JSON: torch loads what it needs for fake
tensors when it is asked for the first one.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from orchestrator import Pipeline, TensorSpec
from tests.bench.measure import Effort, Row, compare, in_process

LIMIT_SECONDS = 1.0
LIMIT_GROWTH = 2.0
COUNTS = (10, 100, 1000)
LIMIT_SHAPE_GROWTH = 1.3
GROWTH = "1 is linear, 10 quadratic"
EMULATED = "neuron-emulated"
SPEC = TensorSpec((4, 8))


def pipeline(count: int, *, widths: bool = False) -> Pipeline:
    """A chain of linear layers, all of one size or each of its own."""
    chain = Pipeline("plan")
    value = chain.input("x", TensorSpec(("batch", 32)))
    for number in range(count):
        into, out = (32 + number, 33 + number) if widths else (32, 32)
        value = chain.add(f"s{number}", nn.Linear(into, out, device="meta" if widths else None))(value)
    chain.output("y", value)
    return chain


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    assert device == "cpu"
    seconds: dict[int, float] = {}
    for count in COUNTS[:2] if effort.quick else COUNTS:
        seconds[count] = _seconds(effort, pipeline(count))
        limit = LIMIT_SECONDS if count == COUNTS[-1] else None
        yield Row("plan", f"{count} stages", "s", seconds[count], None, seconds[count], "s", limit)
    yield _growth(seconds)
    most = COUNTS[1] if effort.quick else COUNTS[-1]
    wide = _seconds(effort, pipeline(most, widths=True))
    yield Row("plan", f"{most} stages, each of its own size", "s", wide, None, wide, "s")
    yield from _shapes(effort)
    firsts = [in_process("planning") for _ in range(1 if effort.quick else 3)]
    first, again = (statistics.median(run[number] for run in firsts) for number in (0, 1))
    note = f"torch loads its machinery for fake tensors; the second takes {again:.3f} s"
    yield Row("plan", "10 stages, first plan of a process", "s", first, None, first, "s", note=note)


def _growth(seconds: dict[int, float]) -> Row:
    """Time for each stage of the longest chain over that of the one before; 10 if it grew with the square."""
    few, many = sorted(seconds)[-2:]
    each, before = (seconds[count] / count * 1e3 for count in (many, few))
    case = f"a stage of {many}, against one of {few}"
    return Row("plan", case, "ms", each, before, each / before, "x", LIMIT_GROWTH, note=GROWTH)


def _loops(count: int) -> Pipeline:
    """Loops one after another."""
    body = Pipeline("body")
    body.output("x", body.add("s", nn.Identity())(body.input("x", SPEC)))
    pipeline = Pipeline("loops")
    value = pipeline.input("x", SPEC)
    for number in range(count):
        value = pipeline.loop(f"l{number}", body, carry={"x": value}, max_steps=2)
    pipeline.output("y", value)
    return pipeline


def _calls(count: int) -> Pipeline:
    """One stage called again and again."""
    pipeline = Pipeline("calls")
    value, stage = pipeline.input("x", SPEC), pipeline.add("s", nn.Identity())
    for _ in range(count):
        value = stage(value)
    pipeline.output("y", value)
    return pipeline


def _nested(count: int) -> Pipeline:
    """Pipelines in one another."""
    body = Pipeline("b0")
    body.output("x", body.add("s", nn.Identity())(body.input("x", SPEC)))
    for level in range(1, count):
        outer = Pipeline(f"b{level}")
        outer.output("x", outer.add("b", body)(x=outer.input("x", SPEC)))
        body = outer
    return body


def _shapes(effort: Effort) -> Iterator[Row]:
    """Graphs of other shapes at a tenth of a size and at the size, on one device each."""
    for what, make, most, device in (
        ("calls of one stage", _calls, 5000, "cpu"),
        ("loops", _loops, 1000, "cpu"),
        ("loops on the emulated device", _loops, 400, EMULATED),
        ("nested pipelines", _nested, 400, "cpu"),
    ):
        count = most // 10 if effort.quick else most
        few, many = (
            _cpu_seconds(make(size), device, 1 if effort.quick else 3) for size in (count // 10, count)
        )
        yield Row("plan", f"{count} {what}", "s", many, None, many, "s")
        each, before = many / count * 1e3, few / (count // 10) * 1e3
        case = f"one of {count} {what}, against one of {count // 10}"
        limit = None if effort.quick else LIMIT_SHAPE_GROWTH
        yield Row("plan", case, "ms", each, before, each / before, "x", limit, note=GROWTH)


def _cpu_seconds(pipeline: Pipeline, device: str, plans: int, **options: Any) -> float:
    """Processor time of the fastest of some plans."""
    times = []
    for _ in range(plans):
        started = time.process_time()
        pipeline.plan(device, **options)
        times.append(time.process_time() - started)
    return min(times)


def _seconds(effort: Effort, chain: Pipeline) -> float:
    if effort.quick:
        return _cpu_seconds(chain, "cpu", 1, sizes={"batch": 8})
    plan = partial(chain.plan, sizes={"batch": 8})
    return compare(plan, _nothing, effort.rounds(9)).ours


def _nothing() -> None:
    """There is no plan by hand."""


def _first() -> list[float]:
    times = []
    for _ in range(2):
        chain = pipeline(10)
        started = time.perf_counter()
        chain.plan(sizes={"batch": 8})
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    print(json.dumps(_first()))

"""Pipelines with adapters between two stages of a device that compiles, and what a plan says of their place."""

from __future__ import annotations

import re

import torch

from orchestrator import Pipeline, Plan, Residency
from orchestrator_neuron.family import LINK
from tests.kit import Double, spec
from tests.planner.devices import Plus, edge_of, ranked

__all__ = ["EDGE", "PLACES", "chained", "expected", "fan", "place", "told"]

EDGE = "enc.output -> r0.x"
PLACES = ("producer", "consumer", "program", "host")


def fan(
    rows: int = 2,
    wanted: int = 6,
    *,
    consumers: int = 1,
    raw: bool = False,
    calls: int = 1,
    producer: str = "enc",
    reader: str = "r",
) -> Pipeline:
    """``enc`` gives ``[rows, 4]``; consumers ``r0``, ``r1``, ... take ``[wanted, 4]``; ``raw`` takes it as it is."""
    pipeline = ranked()
    x = pipeline.input("x", spec(rows, 4))
    enc = pipeline.add(producer, Double())
    value = enc(x)
    takes = spec(wanted, 4, pad=0, allow_slice=True)
    for number in range(consumers):
        stage = pipeline.add(f"{reader}{number}", Plus(), inputs={"x": takes})
        pipeline.output(f"y{number}", stage(value))
    if raw:
        pipeline.output("z", pipeline.add("raw", Plus())(value))
    for number in range(1, calls):
        pipeline.output(f"again{number}", enc(pipeline.add(f"m{number}", Plus())(x)))
    return pipeline


def chained() -> Pipeline:
    """An edge with a slice, a cast and a pad."""
    pipeline = ranked()
    value = pipeline.add("enc", Double())(pipeline.input("x", spec(4, 8)))
    takes = spec(6, 4, dtype=torch.float16, pad=0, allow_slice=True, allow_cast=True)
    pipeline.output("y0", pipeline.add("r0", Plus(), inputs={"x": takes})(value))
    return pipeline


def expected(
    rows: int, wanted: int, *, consumers: int = 1, raw: bool = False, calls: int = 1, ranks: int = 1
) -> dict[str, float]:
    """Seconds of each place, by the formulas of the pass's docstring and the figures of the device."""
    b, a, n, r = 16 * rows, 16 * wanted, consumers, calls
    memory, link = 1 / LINK.memory_bytes_per_second, 1 / LINK.bytes_per_second
    return {
        "producer": (r * a + (r * b if raw else 0) + n * a) * memory,
        "consumer": (r * b + n * (b + 2 * a)) * memory,
        "program": (r * b + b + a + n * a) * memory + LINK.dispatch_seconds,
        "host": (r * b + n * a) * memory + (b + ranks * a) * link,
    }


def place(plan: Plan, edge: str = EDGE) -> str:
    """Where the adapters of an edge are, by its adapters and residency."""
    found = edge_of(plan, edge)
    if found.residency is Residency.HOST:
        assert all(not adapter.place for adapter in found.adapters)
        return "host"
    places = {adapter.place for adapter in found.adapters}
    return "program" if "program" in places else next(iter(places))


def told(reason: str) -> dict[str, float]:
    """The microseconds that a reason names: of the choice (``""``), and of each alternative."""
    chosen = re.search(r": (\S+) us \(estimate\)", reason)
    assert chosen is not None, reason
    others = re.findall(r"(producer|consumer|program|host) (\S+) us", reason.partition("against")[2])
    return {"": float(chosen[1]), **{name: float(number) for name, number in others}}

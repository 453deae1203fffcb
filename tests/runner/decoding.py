"""What tests of watched loops share: a loop that decides how often it runs, and requests for it."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator import Dim, Pipeline, Session
from tests.bodies import DEVICES, Halve, body, new
from tests.kit import Double, batch, host, spec

__all__ = ["MOST", "STEPS", "decoder", "halving", "load", "loop_in_loop", "request", "together"]

#: How often the loop of :func:`decoder` runs, and how often at most.
STEPS, MOST = 5, 8


def decoder(**bounds: Any) -> Pipeline:
    """A carry, a counter, and something collected, until the counter says so."""

    def step(x: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * 0.5 + k, k + 1, (k >= STEPS - 1).reshape(1), x.sum(1)

    inner = new("step")
    made = inner.add("step", step, outputs=("x", "k", "done", "token"))(
        inner.input("x", spec(batch("batch"), 4)), inner.input("k", spec(1))
    )
    for name, value in zip(("x", "k", "done", "token"), made, strict=True):
        inner.output(name, value)
    pipeline = new("decoding")
    start = pipeline.add("before", Double())(pipeline.input("start", spec(batch("batch"), 4, pad=0)))
    bounds = bounds or {"until": "done", "max_steps": MOST}
    carry = {"x": start, "k": torch.zeros(1)}
    x, tokens = pipeline.loop(
        "decode", inner, carry=carry, collect=("token",), outputs=("x", "token"), **bounds
    )
    pipeline.output("x", pipeline.add("after", Double())(x))
    pipeline.output("tokens", tokens)
    return pipeline


def request(rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """A request of so many rows."""
    return {"start": torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))}


def load(pipeline: Pipeline, device: str, sizes: Any = None) -> Session:
    """A session on a device, by its name in :data:`tests.bodies.DEVICES`."""
    place, options = DEVICES[device]
    return pipeline.plan(place, sizes={"batch": (2, 4)} if sizes is None else sizes, options=options).load()


def loop_in_loop() -> Pipeline:
    """A loop in a loop in an inlined pipeline."""
    inner = body(Double(), output="x", x=spec("batch", 4))
    middle = new("middle")
    y = middle.loop("in", inner, carry={"x": middle.input("x", spec(batch("batch"), 4))}, max_steps=2)
    middle.output("x", y)
    middle.output("sum", middle.add("sum", lambda x: x.sum(1))(y))
    sub = new("sub")
    start = sub.input("x", spec(batch("batch"), 4))
    asked: dict[str, Any] = {"carry": {"x": start}, "collect": ("sum",), "outputs": ("x", "sum")}
    for name, value in zip(("x", "sums"), sub.loop("out", middle, **asked, max_steps=3), strict=True):
        sub.output(name, value)
    pipeline = new("nested")
    x, sums = pipeline.add("sub", sub)(pipeline.input("start", spec(batch("batch"), 4, pad=0)))
    pipeline.output("x", pipeline.add("after", Double())(x))
    pipeline.output("sums", sums)
    return pipeline


def halving(kind: str) -> Pipeline:
    """A loop whose body is that of a map, of a branch, or runs in the chunks of a region."""
    step = new("step")
    lead = {"map": ("n", 3, "w"), "when": ("batch", 4), "region": ("rows", 3)}[kind]
    halved, done = step.add("halve", Halve(), outputs=("x", "done"))(step.input("x", spec(*lead)))
    step.output("x", halved)
    step.output("done", done)
    bounds: dict[str, Any] = {"until": "done", "max_steps": 6}
    pipeline = new(kind)
    if kind == "region":
        found = host(
            pipeline,
            "find",
            lambda x: x[x[:, 0] > 0],
            rows=spec(Dim("rows", (2, 4), batch=True), 3, pad="repeat_first"),
        )
        start = pipeline.add("before", Double())(found(pipeline.input("x", spec(9, 3))))
        pipeline.output("y", pipeline.loop("loop", step, carry={"x": start}, **bounds))
        return pipeline
    inner = new("inner")
    of = {"map": spec(Dim("n", (1, 2, 4), batch=True), 3, Dim("w", (4, 8)), pad=0), "when": spec("batch", 4)}[
        kind
    ]
    inner.output("y", inner.loop("loop", step, carry={"x": inner.input("x", of)}, **bounds))
    if kind == "map":
        pipeline.output("y", pipeline.map("all", inner, over={"x": pipeline.input("x", list)}))
    else:
        x = pipeline.input("x", spec(batch("batch"), 4, pad="repeat_first"), optional=True)
        other = pipeline.input("other", spec(batch("batch"), 4, pad=0))
        pipeline.output("y", pipeline.when("all", inner, inputs={"x": x}, otherwise={"y": other}))
    return pipeline


def together(stream: Any) -> list[dict[str, list[Any]]]:
    """For each request what was yielded for it, by name, in order."""
    streams: dict[int, dict[str, list[Any]]] = {}
    for number, name, value in stream:
        streams.setdefault(number, {}).setdefault(name, []).append(value)
    return [streams[number] for number in sorted(streams)]

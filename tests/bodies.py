"""Pipelines with maps and branches, and a check of what they give on all devices, for tests of several folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from orchestrator import Dim, Pipeline, Plan
from orchestrator.testing import assert_same, recording, run_reference
from tests.kit import COMPUTE, Double, batch, linear, spec
from tests.planner.devices import DEVICE as NEURON
from tests.planner.devices import ranked as new

__all__ = [
    "BOOL",
    "DEVICES",
    "IMAGE",
    "NEURON",
    "ROWS",
    "SIZES",
    "Halve",
    "body",
    "check",
    "items",
    "mapped",
    "new",
    "picture_model",
    "picture_or_ones",
    "reader",
    "requests",
    "seeing",
]

LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")
SUMS = (*LINK, "dispatches")

#: Devices, each with options: what computes eagerly, what compiles, and what frees by call.
DEVICES: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("cpu", {}),
    "neuron": (NEURON, {}),
    "null": ("null", COMPUTE),
    "null-compiled": ("null", {**COMPUTE, "eager": False, "output_buffers": 1}),
    "null-deferred": ("null", {**COMPUTE, "deferred": True, "ranks": 2}),
}


#: Forms of what is asked with and without a picture, and how many rows are compiled for.
ROWS, IMAGE = spec(batch("batch"), 4, pad=0), spec(batch("batch"), 6, pad=0)
BOOL = spec(1, dtype=torch.bool)
SIZES = {"batch": (2, 4)}


class Halve(nn.Module):
    """Half its input, and whether all of it is below one."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x / 2
        return x, (x.abs() < 1).all().reshape(1)


def body(stage: Any, name: str = "body", *, output: str = "y", **inputs: Any) -> Pipeline:
    """A pipeline of one stage: inputs by name, one output."""
    made = new(name)
    values = [made.input(port, one) for port, one in inputs.items()]
    made.output(output, made.add("stage", stage)(*values))
    return made


def reader(stage: Any = None, n: tuple[int, ...] = (1, 2, 4), w: tuple[int, ...] = (4, 8)) -> Pipeline:
    """A body for crops ``[3, w]``."""
    return body(stage or Double(), "reader", crop=spec(Dim("n", n, batch=True), 3, Dim("w", w), pad=0))


def items(*widths: int, seed: int = 0) -> list[torch.Tensor]:
    """Crops of these widths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, width, generator=generator) for width in widths]


def mapped(inner: Pipeline | None = None, **inputs: Any) -> Pipeline:
    """``crops``, a list, through the body of a map to ``texts``; the body's other inputs by spec."""
    pipeline = new("mapped")
    given = {name: pipeline.input(name, one) for name, one in inputs.items()}
    crops = pipeline.input("crops", list)
    pipeline.output("texts", pipeline.map("read", inner or reader(), over={"crop": crops}, inputs=given))
    return pipeline


def seeing(stage: Any = None, image: Any = None) -> Pipeline:
    """A body that makes ``f`` of ``image``."""
    return body(stage or linear(6, 4), "seeing", output="f", image=image or spec("batch", 6))


def picture_model(*, condition: bool = False, fuses: bool = True) -> Pipeline:
    """A model of pictures and texts that may be asked without a picture."""
    pipeline = new("asked")
    image, text = pipeline.input("image", IMAGE, optional=True), pipeline.input("text", ROWS)
    more = {"condition": pipeline.input("look", BOOL)} if condition else {}
    result = pipeline.when("see", seeing(), inputs={"image": image}, otherwise={"f": text}, **more)
    if fuses:
        result = pipeline.add("fuse", lambda a, b: torch.cat([a, b], -1))(result, text)
    pipeline.output("y", result)
    return pipeline


def requests(*counts: int, **more: Any) -> list[dict[str, Any]]:
    """For each number of rows a request with a picture, one without, and one where it is None."""
    rows = []
    for count in counts:
        text = {"text": torch.randn(count, 4), **more}
        rows += [{**text, "image": torch.randn(count, 6)}, text, {**text, "image": None}]
    return rows


def picture_or_ones(pad: int | None = None) -> Pipeline:
    """The same, where ones stand in for what is seen of a picture."""
    pipeline = new()
    image = pipeline.input("image", spec("batch", 6, pad=pad), optional=True)
    text = pipeline.input("text", spec("batch", 4, pad=pad))
    result = pipeline.when("see", seeing(), inputs={"image": image}, otherwise={"f": torch.ones(4, 4)})
    pipeline.output("y", pipeline.add("sum", lambda a, b: a + b)(result, text))
    return pipeline


def check(
    pipeline: Pipeline,
    requests: Iterable[Mapping[str, Any]],
    device: str,
    sizes: Mapping[str, Any] | None = None,
    summaries: Iterable[Mapping[str, int] | None] = (),
) -> Plan:
    """Runs requests on a device: results as by hand, nothing left over, copies as counted there; returns the plan.

    Args:
        pipeline: The pipeline.
        requests: Its inputs, a request each.
        device: A name in :data:`DEVICES`.
        sizes: Sizes to plan with.
        summaries: For each request the sizes at which the plan foretells its counts, or None.
    """
    place, options = DEVICES[device]
    plan = pipeline.plan(place, sizes=sizes, options=options)
    assert Plan.from_json(plan.to_json()) == plan
    assert str(plan)
    foretold = [*summaries]
    with pipeline.bind(Plan.from_json(plan.to_json())).load() as session:
        before: dict[str, Any] = dict.fromkeys(SUMS, 0)
        for number, request in enumerate(requests):
            expected = run_reference(pipeline.freeze(), request)
            with recording() as record:
                found = session.run(request)
                record.assert_no_leaks()
            assert_same(found, expected, exact=False, rtol=1e-4, atol=1e-4)
            stats = session.stats
            cost = {name: stats[name] - before[name] for name in SUMS}
            if device.startswith("null"):
                assert {name: record.counts()[name] for name in LINK} == {name: cost[name] for name in LINK}
            if NEURON in stats.get("measured", {}):
                measured = stats["measured"][NEURON]
                assert {name: measured[name] for name in LINK} == {name: stats[name] for name in LINK}
                assert number or measured["peak_bytes"] == stats["peak_bytes"][NEURON]
            if number < len(foretold) and foretold[number] is not None:
                summary = plan.summary_for(foretold[number])
                assert {name: summary[name] for name in SUMS} == cost
            before = stats
    return plan

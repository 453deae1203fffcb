"""Pipelines with maps and branches, and a check of what they give on all devices: shared by tests of several folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from orchestrator import Dim, Pipeline, Plan
from orchestrator.testing import assert_same, recording, run_by_hand
from tests.kit import COMPUTE, Double, spec
from tests.planner.devices import DEVICE as NEURON
from tests.planner.devices import ranked as new

__all__ = ["DEVICES", "NEURON", "Halve", "body", "check", "items", "mapped", "new", "reader"]

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
    return body(stage or Double(), "reader", crop=spec(Dim("n", n), 3, Dim("w", w), pad=0))


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
            expected = run_by_hand(pipeline.graph, request)
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

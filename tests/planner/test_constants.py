"""Constants at ports with named dims: they are put in place once, so they have the size of the one bucket there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator import Pipeline, PlanError
from orchestrator.testing import run_reference
from tests.bodies import DEVICES, body, check, new
from tests.kit import refuses, spec

everywhere = pytest.mark.parametrize("device", DEVICES)


def added(rows: int, **rule: Any) -> Pipeline:
    """``x`` and so many rows of a constant."""
    pipeline = new()
    ports = {"x": spec("b", 3), "more": spec("b", 3, **rule)}
    add = pipeline.add("add", lambda x, more: x + more, inputs=ports)
    pipeline.output("y", add(pipeline.input("x", spec("b", 3, pad=0)), torch.ones(rows, 3)))
    return pipeline


@everywhere
@pytest.mark.parametrize(("rows", "rule"), [(4, {}), (1, {"pad": "repeat_first"})])
def test_a_constant_fills_the_one_bucket(device: str, rows: int, rule: dict[str, Any]):
    check(added(rows, **rule), [{"x": torch.randn(count, 3)} for count in (4, 3)], device, {"b": 4})


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_constant_has_no_size_that_a_request_decides(rows: int):
    words = (
        f"A constant has one size, but 'add.more' takes [b, 3] float32, whose 'b' a request decides (buckets (2, 4)), "
        f"and 'constant#1' is [{rows}, 3] float32.",
        "torch.zeros_like",
    )
    refuses(PlanError, words, lambda: added(rows, pad=0, allow_slice=True).plan(sizes={"b": (2, 4)}))


@everywhere
@pytest.mark.parametrize("pad", [None, 0])
def test_a_carry_may_start_as_a_constant(device: str, pad: Any):
    inner = body(lambda x, by: x + by, output="x", x=spec("b", 3, pad=pad), by=spec("b", 3))
    pipeline = new()
    by = pipeline.input("by", spec("b", 3, pad=0))
    asked: dict[str, Any] = {"carry": {"x": torch.zeros(4, 3)}, "inputs": {"by": by}}
    pipeline.output("x", pipeline.loop("loop", inner, **asked, max_steps=2))
    given = [{"by": torch.randn(count, 3)} for count in (4, 3)]
    check(pipeline, given, device, {"b": 4})
    assert run_reference(pipeline.freeze(), given[1])["x"].shape == (3, 3)

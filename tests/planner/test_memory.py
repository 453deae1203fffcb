"""Memory: weights once for each storage, values at their peak, a budget that is kept before anything is loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator import Dim, ModelWrapper, PlanError
from orchestrator.errors import PlanOptionError
from orchestrator.planner.memory import parse_bytes
from tests.kit import Double, chain, host, linear, new, pair, refuses, spec


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (16, 16),
        ("16", 16),
        ("16B", 16),
        ("2kB", 2000),
        ("2 KiB", 2048),
        ("1.5GB", 1_500_000_000),
        ("3g", 3 * 10**9),
        ("1TiB", 1 << 40),
        (2.5e3, 2500),
    ],
)
def test_a_budget_is_bytes_or_a_size(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1XB", "0", 0, -5, True, None, [1], "1e9"])
def test_what_is_no_size_is_refused(text):
    refuses(PlanOptionError, "memory budget", lambda: parse_bytes(text))
    if text is not None:
        refuses(PlanOptionError, "memory budget", lambda: chain(Double()).plan(memory=text))
        refuses(PlanOptionError, "memory budget", lambda: chain(Double()).plan(memory={"cpu": text}))


def test_a_budget_for_a_device_the_plan_does_not_use_is_refused():
    refuses(PlanOptionError, "'cuda:1'", lambda: chain(Double()).plan(memory={"cuda:1": "1GB"}))
    refuses(PlanError, "no device 'gpu'", lambda: chain(Double()).plan(memory={"gpu": "1GB"}))


def test_a_budget_that_is_too_small_comes_with_a_table_and_what_to_change():
    error = refuses(
        PlanError,
        (
            "'pair'",
            "cuda:0",
            "weights",
            "constants",
            "values at peak",
            "needed",
            "budget",
            "4,000",
            "batch (now 64)",
            "placement=",
            "memory=",
        ),
        lambda: pair()[0].plan("cuda", sizes={"batch": 64}, memory={"cuda": 4000}),
    )
    assert error.devices == ("cuda:0",)
    ((device, weights, constants, buffers, peak, needed, budget),) = error.table
    assert (device, constants, budget) == ("cuda:0", 0, 4000)
    assert needed == weights + constants + buffers + peak > budget
    assert weights == 4 * (8 * 4 + 4 + 8 * 5 + 5)


def test_a_budget_is_kept_to_the_byte():
    pipeline = pair()[0]
    plan = pipeline.plan("cuda", sizes={"batch": 64})
    needed = dict(plan.weights)["cuda:0"] + plan.summary["peak_bytes"]["cuda:0"]
    assert pipeline.plan("cuda", sizes={"batch": 64}, memory=needed).budget == (("cuda:0", needed),)
    refuses(PlanError, "more memory", lambda: pipeline.plan("cuda", sizes={"batch": 64}, memory=needed - 1))


def test_smaller_buckets_need_less():
    pipeline = pair()[0]
    refuses(PlanError, "more memory", lambda: pipeline.plan("cuda", sizes={"batch": 64}, memory=4000))
    pipeline.plan("cuda", sizes={"batch": 4}, memory=4000)


def test_weights_are_counted_once_for_each_storage():
    module = linear(4, 4)
    tied = nn.Sequential(module, nn.ReLU(), module)
    half = nn.Linear(4, 4)
    half.weight = nn.Parameter(module.weight.data)
    pipeline = chain(module, tied, half, takes=spec(2, 4))
    assert dict(pipeline.plan().weights) == {"cpu": 4 * (16 + 4 + 4)}


def test_weights_are_those_of_each_device():
    pipeline = chain(linear(4, 8), linear(8, 2), takes=spec(2, 4))
    plan = pipeline.plan(placement={"a": "cuda:0", "b": "cuda:1"})
    assert dict(plan.weights) == {"cuda:0": 4 * 40, "cuda:1": 4 * 18}


def test_buffers_and_dtypes_count():
    module = nn.BatchNorm1d(4).half().eval()
    plan = chain(module, takes=spec(2, 4, dtype=torch.float16)).plan()
    assert dict(plan.weights) == {"cpu": 2 * 16 + 8}


def test_weights_of_a_wrapper_count_before_it_is_built():
    wrapper = ModelWrapper({"in_features": 4, "out_features": 3}, nn.Linear)
    assert dict(chain(wrapper, takes=spec(2, 4)).plan().weights) == {"cpu": 60}
    assert wrapper._model is None


def peak(*stages, n: int, device: str = "cuda") -> int:
    plan = chain(*stages, takes=spec("n", 4, pad=0)).plan(device, sizes={"n": (2, 8)})
    return plan.summary_for({"n": n})["peak_bytes"][f"{device}:0"]


def test_a_chain_holds_two_values_at_a_time():
    for length in (2, 3, 6):
        assert peak(*[Double() for _ in range(length)], n=8) == 2 * 8 * 4 * 4


def test_the_peak_follows_the_bucket_that_is_taken():
    stages = Double(), Double(), Double()
    assert peak(*stages, n=2) == 2 * 2 * 16
    assert peak(*stages, n=5) == 2 * 8 * 16


def test_a_view_takes_no_bytes_of_its_own():
    pipeline = chain(Double(), takes=spec(8))
    stage = pipeline.add("z", Double(), inputs={"x": spec(6, allow_slice=True)})
    pipeline.output("w", stage(pipeline.input("q", spec(8))))
    assert pipeline.plan("cuda").summary["peak_bytes"]["cuda:0"] <= 2 * 8 * 4


def test_a_value_with_two_readers_lives_until_the_second():
    pipeline = new()
    value = pipeline.add("make", Double())(pipeline.input("x", spec(8)))
    middle = pipeline.add("two", Double())(pipeline.add("one", Double())(value))
    pipeline.output("y", pipeline.add("join", lambda a, b: a + b)(middle, value))
    assert pipeline.plan("cuda").summary["peak_bytes"]["cuda:0"] == 3 * 32


def test_constants_count_against_the_budget_but_not_as_values():
    pipeline = new()
    stage = pipeline.add("add", lambda x, c: x + c)
    pipeline.output("y", stage(pipeline.input("x", spec(2)), torch.ones(1000, 2)))
    assert pipeline.plan("cuda").summary["peak_bytes"]["cuda:0"] == 8 + 8000
    error = refuses(PlanError, "constants", lambda: pipeline.plan("cuda", memory=8000))
    assert error.table[0][1:5] == (0, 8000, 0, 8008)


def test_a_region_counts_its_largest_chunk():
    pipeline = new()
    stage = host(pipeline, "find", lambda x: x, crops=spec(Dim("n", (2, 8), batch=True), 4, pad=0))
    pipeline.output("y", pipeline.add("net", Double())(stage(pipeline.input("x", spec(2, 4)))))
    plan = pipeline.plan("cuda")
    sizes = {n: plan.summary_for({"n": n})["peak_bytes"]["cuda:0"] for n in (0, 1, 2, 3, 8, 30)}
    assert sizes == {0: 0, 1: 2 * 2 * 16, 2: 2 * 2 * 16, 3: 2 * 8 * 16, 8: 2 * 8 * 16, 30: 2 * 8 * 16}

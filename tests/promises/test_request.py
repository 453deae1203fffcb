"""What is checked: on which request, in which tolerance, on which device; and that nothing of the user's changes."""

from __future__ import annotations

import copy
import math
import random

import pytest
import torch
from torch import nn

from orchestrator import CheckReport, Dim, InputError, Pipeline, PlanError, StageError, TensorSpec

BATCH = Dim("batch", buckets=(2, 4), batch=True)


def one(stage=None, pad=0, **dim) -> Pipeline:
    pipeline = Pipeline("one")
    x = pipeline.input("x", TensorSpec((Dim("batch", buckets=(2, 4), batch=True, **dim), 3), pad=pad))
    pipeline.output("y", pipeline.add("stage", nn.Linear(3, 3).eval() if stage is None else stage)(x))
    return pipeline


def test_without_a_request_the_examples_are_taken():
    pipeline = one()
    with pytest.raises(InputError, match=r"no example inputs.*check\(inputs=\{\.\.\.\}\)"):
        pipeline.check()
    seen = []
    pipeline.example_inputs = lambda sizes: seen.append(dict(sizes)) or {"x": torch.randn(sizes["batch"], 3)}
    report = pipeline.check()
    assert report.ok
    assert seen == [{"batch": 4}]
    assert {row.sizes for row in report.rows if "pad" in row.promise} == {"batch 1 in 2"}


def test_examples_that_cannot_be_made_are_told():
    pipeline = one()
    pipeline.example_inputs = lambda sizes: {"x": sizes["rows"]}
    with pytest.raises(InputError, match="example inputs of 'one' cannot be made"):
        pipeline.check()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "lacks 'x'"),
        ({"y": torch.ones(2, 3)}, "no input 'y'"),
        ({"x": torch.ones(2, 5)}, "dim 1 is 5"),
        ([1], "dict of inputs"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_before_any_stage_runs(request_, words: str):
    with pytest.raises(InputError, match=words):
        one(lambda x: pytest.fail("it ran") if not torch._C._len_torch_dispatch_stack() else x).check(
            request_
        )


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf, "much", True])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(InputError, match="tolerance is the largest relative difference"):
        one().check({"x": torch.ones(2, 3)}, tolerance=tolerance)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(PlanError, match="no device 'quantum'"):
        one().check({"x": torch.ones(2, 3)}, device="quantum")


def test_the_tolerance_decides():
    """A stage that leans on the other items by a thousandth of what it gives."""
    pipeline = one(lambda x: x + 1e-3 * x.sum(0))
    request = {"x": torch.randn(3, 3)}
    assert not pipeline.check(request).ok
    assert pipeline.check(request, tolerance=0.1).ok


def test_a_stage_that_raises_on_the_request_is_a_stage_error():
    def picky(x):
        raise ValueError("not today")

    pipeline = Pipeline("picky")
    x = pipeline.input("x", TensorSpec((BATCH, 3), pad=0))
    given = pipeline.add("picky", picky, device="host", outputs={"y": TensorSpec(("batch", 3))})(x)
    pipeline.output("y", given)
    with pytest.raises(StageError, match=r"'picky'.*batch=3.*ValueError: not today") as caught:
        pipeline.check({"x": torch.ones(3, 3)})
    assert isinstance(caught.value.__cause__, ValueError)


def test_integers_are_equal_or_not():
    pipeline = one(lambda x: x.argmax(1) + x.shape[0])
    row = pipeline.check({"x": torch.randn(3, 3)}).first
    assert row is not None
    assert row.error == math.inf


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


def test_nothing_of_the_users_changes():
    module = Counting().eval()
    pipeline = one(module)
    request = {"x": torch.randn(4, 3)}
    before = copy.deepcopy((request, module.state_dict()))
    versions = [tensor._version for tensor in (*module.parameters(), *module.buffers(), request["x"])]
    random_states = random.getstate(), torch.get_rng_state()
    pipeline.check(request)
    assert torch.equal(request["x"], before[0]["x"])
    assert all(torch.equal(value, before[1][name]) for name, value in module.state_dict().items())
    assert versions == [tensor._version for tensor in (*module.parameters(), *module.buffers(), request["x"])]
    assert random.getstate() == random_states[0]
    assert torch.equal(torch.get_rng_state(), random_states[1])
    assert torch.is_grad_enabled()


def test_a_pipeline_that_promises_nothing_has_an_empty_report():
    pipeline = Pipeline("fixed")
    x = pipeline.input("x", TensorSpec((2, 3)))
    pipeline.output("y", pipeline.add("norm", lambda x: x - x.mean(0))(x))
    report = pipeline.check({"x": torch.ones(2, 3)})
    assert report.ok
    assert report.rows == ()
    assert "none is given" in str(report)


def test_an_exact_dim_is_not_padded():
    stage = nn.Conv1d(3, 3, 3, padding=1).eval()
    dims = (Dim("batch", buckets=(2, 4)), 3, Dim("width", buckets=(4, 8), exact=True))
    pipeline = Pipeline("exact")
    x = pipeline.input("x", TensorSpec(dims, pad=1))
    pipeline.output("y", pipeline.add("conv", stage)(x))
    report = pipeline.check({"x": torch.randn(3, 3, 4)})
    assert [row.promise for row in report.rows] == ["pad of 'batch'"]
    with pipeline.plan().load() as session:
        value = torch.randn(3, 3, 8)
        with torch.no_grad():
            torch.testing.assert_close(session(x=value)["y"], stage(value))
        with pytest.raises(InputError, match=r"width=5, which is no bucket .*declared exact"):
            session(x=torch.randn(3, 3, 5))


def test_what_did_not_run_is_told():
    body = Pipeline("body")
    body.output("y", body.add("double", lambda x: x * 2)(body.input("x", TensorSpec(("batch", 3)))))
    pipeline = Pipeline("branch")
    x = pipeline.input("x", TensorSpec((BATCH, 3), pad=0))
    extra = pipeline.input("extra", TensorSpec((BATCH, 3), pad=0), optional=True)
    pipeline.output("y", pipeline.when("see", body, inputs={"x": extra}, otherwise={"y": x}))
    report = pipeline.check({"x": torch.ones(3, 3)})
    assert [(row.stage, row.holds, row.why) for row in report.rows] == [
        ("see/double", None, "it did not run in this request")
    ]


def test_on_a_device_that_compiles_results_are_compared():
    report = one().check({"x": torch.randn(4, 3)}, device="neuron-emulated")
    assert report.ok, str(report)
    assert report.device == "neuron-emulated:0" or report.device == "neuron-emulated"
    ways = {row.promise for row in report.rows if row.stage == "output 'y'"}
    assert ways == {f"result of a request {way}" for way in ("as it is", "padded", "in chunks")}
    report = one(lambda x: x - x.mean(0)).check({"x": torch.randn(4, 3)}, device="neuron-emulated")
    assert report.first is not None
    assert report.first.stage == "stage"
    assert {row.stage for row in report.broken} == {"stage", "output 'y'"}


def test_a_report_is_data():
    report = one().check({"x": torch.randn(3, 3)})
    assert isinstance(report, CheckReport)
    assert {row.stage for row in report.rows} == {"stage"}
    assert all(row.verdict in str(report) and row.sizes in str(report) for row in report.rows)
    assert report == copy.copy(report)

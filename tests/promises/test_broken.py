"""K1, K7: what an author promises and a stage does not keep is found, by the name of the first stage that breaks it."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from orchestrator import Dim, ModelWrapper, Pipeline, TensorSpec
from orchestrator.promises.report import CheckReport, CheckRow

BATCH = Dim("batch", buckets=(2, 4), batch=True)
TOKENS = Dim("tokens", buckets=(4, 8))


def chain(name: str, stage, *, pad=0, batch: Dim = BATCH, host=False) -> Pipeline:
    """A good stage, one under suspicion, and another good one, on ``[batch, tokens, 4]``."""
    pipeline = Pipeline("suspicious")
    x = pipeline.input("x", TensorSpec((batch, TOKENS, 4), pad=pad))
    before = pipeline.add("before", nn.Linear(4, 4).eval())(x)
    given = pipeline.add(
        name,
        stage,
        device="host" if host else None,
        outputs={"output": TensorSpec(("batch", "tokens", 4), pad=pad)} if host else None,
    )(before)
    pipeline.output("y", pipeline.add("after", nn.Tanh())(given))
    return pipeline


def request(rows: int = 3, tokens: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(rows, tokens, 4, generator=generator)}


def broken(report: CheckReport) -> set[tuple[str, str]]:
    return {(row.stage, row.promise) for row in report.broken}


class Norm(nn.Module):
    """Batch norm in training form, written by hand, so that nothing looks at a mode."""

    def forward(self, x):
        return (x - x.mean(0, keepdim=True)) / (x.var(0, keepdim=True, correction=0) + 1e-5).sqrt()


class Attention(nn.Module):
    """Attention along one dim of ``[batch, tokens, 4]`` without a mask."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x):
        x = x.transpose(self.dim, 1)
        return torch.softmax(x @ x.mT, -1).matmul(x).transpose(self.dim, 1)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, kernel_size=3, padding=1)

    def forward(self, x):
        return self.conv(x.mT).mT


def norm_of_all(x):
    return (x - x.mean()) / x.std()


def sees_size(x):
    return x * x.shape[0]


PADDED = {
    "a mean over a padded dim": lambda x: x - x.mean(1, keepdim=True),
    "a softmax over padded tokens": lambda x: x.softmax(1),
    "attention without a mask": Attention(1),
    "a conv that reads its neighbours": Conv().eval(),
    "a largest token": lambda x: x - x.amax(1, keepdim=True),
    "a flip": lambda x: x.flip(1),
}

BATCHED = {
    "a batch norm in training form": Norm().eval(),
    "attention across the batch": Attention(0),
    "a sort along it": lambda x: x.sort(0).values,
    "a cumulative sum": lambda x: x.cumsum(0),
    "a count of rows": sees_size,
    "positions along it": lambda x: x + torch.arange(x.shape[0], device=x.device)[:, None, None],
    "neighbours": lambda x: x + x.roll(1, 0),
    "the largest row": lambda x: x / x.abs().amax(0, keepdim=True),
}


@pytest.mark.parametrize(("rows", "tokens"), [(3, 5), (1, 3), (4, 8)], ids=["between", "small", "largest"])
@pytest.mark.parametrize("kind", PADDED)
def test_a_stage_that_reads_its_padding_is_found(kind: str, rows: int, tokens: int):
    report = chain("suspect", PADDED[kind]).check(request(rows, tokens))
    assert not report.ok
    assert report.first is not None
    assert (report.first.stage, report.first.promise) == ("suspect", "pad of 'tokens'")
    assert {stage for stage, _ in broken(report)} == {"suspect"}  # those after it are not blamed
    assert "'suspect'" in report.conclusion
    assert report.conclusion in str(report)


@pytest.mark.parametrize(("rows", "tokens"), [(3, 4), (1, 4), (2, 8)], ids=["between", "one", "a bucket"])
@pytest.mark.parametrize("kind", BATCHED)
def test_a_stage_that_looks_at_other_items_is_found(kind: str, rows: int, tokens: int):
    report = chain("suspect", BATCHED[kind], pad="repeat_first").check(request(rows, tokens))
    assert not report.ok
    assert report.first is not None
    assert report.first.stage == "suspect"
    assert {stage for stage, _ in broken(report)} == {"suspect"}
    assert any(promise.startswith("batch 'batch'") for _, promise in broken(report))


@pytest.mark.parametrize("kind", BATCHED)
def test_what_nobody_promised_is_not_tried(kind: str):
    report = chain("suspect", BATCHED[kind], batch=Dim("batch", buckets=(2, 4)), pad="repeat_first").check(
        request()
    )
    assert not any(row.promise.startswith("batch") for row in report.rows)


def test_a_host_stage_that_normalises_by_the_whole_batch_is_found():
    report = chain("suspect", norm_of_all, host=True).check(request())
    assert report.first is not None
    assert report.first.stage == "suspect"
    assert {stage for stage, _ in broken(report)} == {"suspect"}


def test_a_value_that_loses_the_dim_is_compared_whole():
    pipeline = Pipeline("lost")
    x = pipeline.input("x", TensorSpec((BATCH, TOKENS, 4), pad=0))
    pooled = pipeline.add("pool", lambda x: x.mean((1, 2)))(x)
    least = pipeline.add("least", lambda x: (x.min() > 0.5).reshape(1), outputs=("flag",))(pooled)
    pipeline.output("pooled", pooled)
    pipeline.output("least", least)
    report = pipeline.check({"x": torch.ones(3, 5, 4)})
    assert broken(report) == {("pool", "pad of 'tokens'"), ("least", "pad of 'batch'")}
    assert report.first is not None
    assert report.first.stage == "pool"


def test_the_condition_of_a_branch_that_reads_padding_is_found():
    body = Pipeline("body")
    body.output("y", body.add("double", lambda x: x * 2)(body.input("x", TensorSpec(("batch", 4)))))
    pipeline = Pipeline("branch")
    x = pipeline.input("x", TensorSpec((Dim("batch", buckets=(2, 4)), 4), pad=0))
    sure = pipeline.add("sure", lambda x: (x.min() > 0.5).reshape(1), outputs=("flag",))(x)
    pipeline.output("y", pipeline.when("w", body, inputs={"x": x}, otherwise={"y": x}, condition=sure))
    report = pipeline.check({"x": torch.ones(3, 4)})
    assert report.first is not None
    assert report.first.stage == "sure"


def test_padding_is_followed_to_where_it_matters():
    """Zeros are no fault of a sum over tokens; what a bias makes of them is, one stage later."""
    pipeline = Pipeline("flow")
    x = pipeline.input("x", TensorSpec((1, TOKENS, 4), pad=0))
    pipeline.output("at once", pipeline.add("early", lambda x: x.sum(1))(x))
    moved = pipeline.add("bias", lambda x: x + 1)(x)
    pipeline.output("later", pipeline.add("late", lambda x: x.sum(1))(moved))
    cut = pipeline.add("relu", lambda x: (x - 2).relu())(moved)
    pipeline.output("cut", pipeline.add("again", lambda x: x.sum(1))(cut))
    report = pipeline.check({"x": torch.rand(1, 5, 4)})
    assert broken(report) == {("late", "pad of 'tokens'")}
    (row,) = [row for row in report.rows if row.stage == "again"]
    assert row.holds
    assert "reads the padding" in row.why


def test_the_stages_of_loops_and_branches_are_tried():
    step = Pipeline("step")
    x = step.input("x", TensorSpec(("batch", 4)))
    good = step.add("good", nn.Linear(4, 4).eval())(x)
    step.output("x", step.add("centred", lambda x: x - x.mean(0))(good))
    pipeline = Pipeline("looped")
    x = pipeline.input("x", TensorSpec((BATCH, 4), pad=0))
    pipeline.output("x", pipeline.loop("repeat", step, carry={"x": x}, max_steps=3))
    report = pipeline.check({"x": torch.randn(3, 4)})
    assert {stage for stage, _ in broken(report)} == {"repeat/centred"}


def test_an_until_that_padding_keeps_from_ending_is_found():
    """A row of zeros never ends; one that repeats the first row ends with it."""

    def step(x, count):
        x = x * 2
        return x, count + 1, (x > 8).all().reshape(1)

    def looped(pad) -> Pipeline:
        body = Pipeline("body")
        x = body.input("x", TensorSpec(("batch",)))
        count = body.input("count", TensorSpec((1,)))
        made = body.add("step", step, outputs=("x", "count", "done"))(x, count)
        for name in ("x", "count", "done"):
            body.output(name, made[name])
        pipeline = Pipeline("until")
        x = pipeline.input("x", TensorSpec((Dim("batch", buckets=(1, 4)),), pad=pad))
        carry = {"x": x, "count": torch.zeros(1)}
        pipeline.output(
            "count",
            pipeline.loop("repeat", body, carry=carry, until="done", max_steps=9, outputs=("count",)),
        )
        return pipeline

    report = looped(0).check({"x": torch.ones(3)})
    assert report.first is not None
    assert report.first.stage == "repeat/step"
    assert looped("repeat_first").check({"x": torch.ones(3)}).ok


@pytest.mark.parametrize(
    "rows", [torch.tensor([1.0, 1.0, 1.0, 9.0, 9.0]), torch.ones(3), torch.tensor([5.0])]
)
@pytest.mark.parametrize("careful", [False, True])
def test_a_loop_that_goes_on_with_items_that_are_done_is_found(rows: torch.Tensor, careful: bool):
    """K1: halved until all are below one, small items go on being halved beside a large one; in chunks they do not."""

    def halved(x):
        return torch.where(x < 1, x, x / 2) if careful else x / 2

    body = Pipeline("body")
    x = body.add("halve", halved)(body.input("x", TensorSpec(("batch",))))
    body.output("x", x)
    body.output("done", body.add("done", lambda x: (x.amax() < 1).reshape(1))(x))
    pipeline = Pipeline("until")
    x = pipeline.input("x", TensorSpec((BATCH,), pad=0))
    pipeline.output("x", pipeline.loop("repeat", body, carry={"x": x}, until="done", max_steps=9))
    report = pipeline.check({"x": rows})
    assert report.ok == careful
    assert careful or "'repeat' goes on with 'x'" in str(report)
    assert careful or (report.first is not None and report.first.stage == "repeat/done")


def test_the_items_of_a_map_are_a_batch():
    body = Pipeline("body")
    items = body.input(
        "x", TensorSpec((Dim("items", buckets=(1, 4), batch=True), Dim("width", buckets=(4, 8))), pad=0)
    )
    fine = body.add("fine", lambda x: x * 2)(items)
    body.output("y", body.add("compared", lambda x: x - x.mean(0, keepdim=True))(fine))
    pipeline = Pipeline("mapped")
    given = pipeline.input("x", list)
    pipeline.output("y", pipeline.map("each", body, over={"x": given}))
    report = pipeline.check({"x": [torch.rand(3), torch.rand(7), torch.rand(3), torch.rand(8)]})
    assert {stage for stage, _ in broken(report)} == {"each/compared"}


def test_what_a_stage_gives_birth_to_is_a_batch_to_the_stages_after_it():
    def born(x):
        return x.repeat(3, 1)

    pipeline = Pipeline("born")
    x = pipeline.input("x", TensorSpec((1, 4)))
    outputs = {"rows": TensorSpec((Dim("rows", buckets=(2, 4), batch=True), 4), pad=0)}
    rows = pipeline.add("born", born, device="host", outputs=outputs)(x)
    judged = pipeline.add("judge", lambda x: x - x.amax(0))(rows)
    # A host stage sees all rows of a request: it may compare them.
    best = pipeline.add("best", lambda x: x.amax(0), device="host", outputs={"best": TensorSpec((4,))})
    pipeline.output("best", best(judged))
    report = pipeline.check({"x": torch.rand(1, 4)})
    assert {stage for stage, _ in broken(report)} == {"judge"}


def test_a_stage_that_raises_on_padding_breaks_its_promise():
    class Picky(ModelWrapper):
        opaque = True
        outputs: ClassVar = {"output": TensorSpec(("batch", "tokens", 4))}

        def forward(self, x):
            if not x.abs().sum(-1).min() > 0:
                raise ValueError("an empty token")
            return x

    pipeline = Pipeline("picky")
    x = pipeline.input("x", TensorSpec((BATCH, TOKENS, 4), pad=0))
    pipeline.output("y", pipeline.add("picky", Picky())(x))
    report = pipeline.check({"x": torch.ones(3, 5, 4)})
    assert report.first is not None
    assert "it raises ValueError: an empty token" in report.first.why


def test_a_stage_that_draws_is_not_tried():
    report = chain("noisy", lambda x: x + torch.rand_like(x)).check(request())
    assert report.ok
    rows = [row for row in report.rows if row.stage == "noisy"]
    assert rows
    assert all(row.holds is None and "random numbers" in row.why for row in rows)


def test_the_worst_row_stays():
    row = CheckRow("s", "p", True, 0.1)
    assert row.worse(CheckRow("s", "p", False, 0.0)).holds is False
    assert row.worse(CheckRow("s", "p", None)) is row
    assert row.worse(CheckRow("s", "p", True, 0.2)).error == 0.2

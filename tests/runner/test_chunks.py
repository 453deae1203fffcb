"""Nothing is cut without a promise (kind K1), and what a cut dim does not reach runs once for a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Dim, InputError, Pipeline, PlanError, StageError, TensorSpec
from orchestrator.testing import recording
from tests.kit import batch, host, linear, new, refuses, spec
from tests.planner.devices import DEVICE, ranked

DEVICES: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("cpu", {}),
    "null": ("null", {"compute": True}),
    "null-one-buffer": ("null", {"compute": True, "output_buffers": 1}),
}
WAYS_OUT = ("larger bucket", "batch=True")


def attend(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.transpose(-1, -2)).softmax(-1) @ x


def test_a_size_above_the_largest_bucket_is_refused_without_the_promise():
    pipeline = new()
    x = pipeline.input("x", spec(Dim("tokens", (4, 8)), 3, pad=0))
    pipeline.output("y", pipeline.add("attend", attend)(x))
    plan = pipeline.plan()
    assert "tokens: buckets 4, 8; smaller sizes are padded; larger ones are refused: batch=True" in str(plan)
    with plan.load() as session:
        error = refuses(InputError, ("tokens=9", "8", *WAYS_OUT), lambda: session(x=torch.ones(9, 3)))
        assert (error.dim, error.size) == ("tokens", 9)
        session(x=torch.ones(8, 3))
    refuses(PlanError, ("'tokens' at 9", *WAYS_OUT), lambda: plan.summary_for({"tokens": 9}))


@pytest.mark.parametrize(
    ("dim", "sizes", "advice"),
    [
        (Dim("n", (2, 4)), {}, "Dim('n', buckets=(2, 4, 5))"),
        (Dim("n", (2, 4, 8)), {"n": (2, 4)}, "sizes={'n': (2, 4, 8)}"),
        (Dim("n"), {"n": (2, 4)}, "sizes={'n': (2, 4, 5)}"),
    ],
)
def test_the_larger_bucket_that_an_error_advises_can_be_had(dim, sizes, advice):
    def build(dim: Dim) -> Pipeline:
        pipeline = new()
        pipeline.output("y", pipeline.add("attend", attend)(pipeline.input("x", spec(dim, 3))))
        return pipeline

    value = torch.randn(5, 3)
    with build(dim).plan(sizes=sizes).load() as session:
        refuses(InputError, advice, lambda: session(x=value))
    if advice.startswith("Dim"):
        dim, sizes = Dim("n", (2, 4, 5)), {}
    else:
        sizes = {"n": (2, 4, 8 if dim.buckets else 5)}
    plan = build(dim).plan(sizes=sizes)
    assert plan.dims[0].buckets[-1] >= 5


def test_a_size_that_a_stage_decides_is_refused_alike():
    pipeline = new()
    crops = host(pipeline, "find", lambda x: x[1:], crops=spec(Dim("n", (2, 4)), 3, pad=0))
    pipeline.output(
        "y", pipeline.add("attend", attend)(crops(pipeline.input("x", spec(Dim.dynamic("k"), 3))))
    )
    with pipeline.plan().load() as session:
        error = refuses(
            StageError, ("'find'", "'find.crops'", "n=5", "4", *WAYS_OUT), lambda: session(x=torch.ones(6, 3))
        )
        assert (error.call, error.dim, error.size) == ("find", "n", 5)
        assert session(x=torch.zeros(1, 3))["y"].shape == (0, 3), "zero items still skip their stages"


def test_a_dim_that_only_the_host_sees_runs_at_any_size():
    pipeline = new()
    x = pipeline.input("x", spec(Dim("n", (4,)), 3))
    pipeline.output("y", host(pipeline, "norm", lambda x: x / x.max(), y=spec("n", 3))(x))
    plan = pipeline.plan()
    assert "n: any size" in str(plan)
    value = torch.rand(9, 3) + 1
    with plan.load() as session:
        assert torch.equal(session(x=value)["y"], value / value.max())


@pytest.mark.parametrize("obstacle", ["condition", "python", "unreached", "count", "until", "collected"])
def test_what_cannot_be_joined_is_said_though_the_promise_is_given(obstacle):
    pipeline = new()
    x = pipeline.input("x", spec(batch("n", (2, 4)), 3, pad=0))
    double = pipeline.add("double", lambda x: x * 2)(x)
    if obstacle == "condition":
        body = new("body")
        body.output("y", body.add("more", lambda x: x + 1)(body.input("x", spec("n", 3))))
        answer = host(pipeline, "ask", lambda x: bool(x.sum() > 0), yes=bool)(double)
        pipeline.output("y", pipeline.when("w", body, inputs={"x": x}, otherwise={"y": x}, condition=answer))
        words = "'ask.yes' depends on it"
    elif obstacle == "python":
        count = host(pipeline, "count", lambda x: len(x), n=int)(double)
        pipeline.output("y", host(pipeline, "use", lambda x, n: x * n, y=spec("n", 3))(double, count))
        words = "'count.n' depends on it and is a int"
    elif obstacle == "unreached":
        k = pipeline.input("k", int)
        other = host(pipeline, "make", lambda k: torch.ones(k, 3), y=spec("n", 3, pad=0))(k)
        pipeline.output("y", pipeline.add("sum", lambda a, b: a + b)(double, other))
        words = "'make.y' has it"
    elif obstacle == "until":
        pipeline.output("k", counted_loop(pipeline, double, "rows")["k"])
        words = "output 'k' depends on it but lacks it"
    elif obstacle == "collected":
        pipeline.output("all", counted_loop(pipeline, double, "rows", collect=("x",)))
        words = "output 'all' has 'steps of l' beside it, whose size every chunk decides anew"
    else:
        step = new("step")
        step.output(
            "s", step.add("add", lambda s, x: s + x)(step.input("s", spec(3)), step.input("x", spec(3)))
        )
        start = pipeline.input("s", spec(3))
        pipeline.output("s", pipeline.loop("l", step, carry={"s": start}, each={"x": double}))
        words = "how often loop 'l' runs"
    plan = pipeline.plan()
    assert not plan.dims[0].can_chunk
    refuses(PlanError, ("cannot run in chunks", words), lambda: plan.summary_for({"n": 5}))


def counted_loop(pipeline: Pipeline, x: Any, ends: str, **options: Any) -> Any:
    """Doubles rows and counts the iterations, until the rows or the count say that it is enough."""
    step = new("step")
    rows = step.add("grow", lambda x: x * 2)(step.input("x", spec("n", 3)))
    count = step.add("more", lambda k: k + 1)(step.input("k", spec(1, dtype=torch.int64)))
    step.output("x", rows)
    step.output("k", count)
    ends_at = (
        step.add("far", lambda x: (x > 50).all())
        if ends == "rows"
        else step.add("full", lambda k: (k > 3).all())
    )
    step.output("done", ends_at(rows if ends == "rows" else count))
    start = pipeline.input("k", spec(1, dtype=torch.int64))
    return pipeline.loop("l", step, carry={"x": x, "k": start}, until="done", max_steps=9, **options)


@pytest.mark.parametrize("device", DEVICES)
def test_what_a_loop_gives_beside_the_rows_is_taken_from_one_chunk(device):
    """Kind K1: a loop runs for each chunk; a carry that no chunk reaches is the same in each, and is not joined."""
    pipeline = new()
    x = pipeline.input("x", spec(batch("n", (2, 4)), 3, pad=0))
    loop = counted_loop(pipeline, x, "count")
    pipeline.output("x", loop["x"])
    pipeline.output("k", loop["k"])
    pipeline.output("twice", pipeline.add("twice", lambda k: k * 2)(loop["k"]))
    place, options = DEVICES[device]
    plan = pipeline.plan(place, options=options)
    value = torch.randn(7, 3)
    with recording() as records, plan.load() as session:
        for _ in range(2):
            result = session(x=value, k=torch.tensor([0]))
            assert torch.equal(result["x"], value * 2**4)
            assert (result["k"].tolist(), result["twice"].tolist()) == ([4], [8])
        stats, expected = session.stats, plan.summary_for({"n": 7, "steps of l": 4})
        assert stats["uploads"] == 2 * expected["uploads"]
        assert stats["peak_bytes"] == expected["peak_bytes"]
    if place == "null":
        records.assert_no_leaks()


class Trial:
    """Pictures against prompts: towers, a tower called twice, what nothing cuts, and a host stage."""

    def __init__(self, twice: bool, on_host: bool, make: Callable[[], Pipeline] = new) -> None:
        self.vision, self.words, self.mix = linear(3, 4), linear(3, 4, 1), linear(4, 4, 2)
        pipeline = make()
        image = pipeline.input("image", spec(batch("images", (1, 2)), 3, pad=0))
        text = pipeline.input("text", spec(batch("texts", (2, 4)), 3, pad=0))
        scale = pipeline.add("scale", lambda s: s * 3)(pipeline.input("s", spec(1)))
        tower, words = pipeline.add("vision", self.vision), pipeline.add("words", self.words)
        seen, read = tower(image), words(text)
        if twice:
            mix = pipeline.add("mix", self.mix)
            seen, read = mix(seen), mix(read)
        if on_host:
            read = host(pipeline, "shift", lambda x: x + 1, y=spec("texts", 4, pad=0))(read)
        pipeline.output("scores", pipeline.add("dot", lambda i, t, s: s * i @ t.T)(seen, read, scale))
        pipeline.output("seen", seen)
        pipeline.output("scale", scale)
        self.pipeline, self.twice, self.on_host = pipeline, twice, on_host

    def by_hand(self, image: torch.Tensor, text: torch.Tensor, s: torch.Tensor) -> dict[str, torch.Tensor]:
        seen, read = self.vision(image), self.words(text)
        if self.twice:
            seen, read = self.mix(seen), self.mix(read)
        if self.on_host:
            read = read + 1
        return {"scores": s * 3 * seen @ read.T, "seen": seen, "scale": s * 3}

    def check(self, device: str, options: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
        plan = self.pipeline.plan(device, options=options)
        with plan.load() as session:
            for images, texts in sizes:
                request = {
                    "image": torch.randn(images, 3),
                    "text": torch.randn(texts, 3),
                    "s": torch.randn(1),
                }
                before = session.stats
                result = session.run(request)
                with torch.no_grad():
                    for name, value in self.by_hand(**request).items():
                        torch.testing.assert_close(result[name], value, rtol=1e-3, atol=1e-4)
                stats = session.stats
                expected = plan.summary_for({"images": images, "texts": texts})
                for name in ("uploads", "upload_bytes", "downloads", "download_bytes", "dispatches"):
                    assert stats[name] - before[name] == expected[name], (name, images, texts)
                for name, counts in (stats.get("measured") or {}).items():
                    for count in ("uploads", "upload_bytes", "downloads", "download_bytes"):
                        assert counts[count] == stats[count], (name, count)


SIZES = st.tuples(st.integers(1, 7), st.integers(1, 11))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=12, deadline=None)
@given(st.booleans(), st.booleans(), st.lists(SIZES, min_size=1, max_size=4))
def test_two_cut_dims_give_what_the_modules_give_on_the_whole(device, twice, on_host, sizes):
    place, options = DEVICES[device]
    with recording() as records:
        Trial(twice, on_host).check(place, options, sizes)
    if place == "null":
        records.assert_no_leaks()


@pytest.mark.parametrize("twice", [False, True])
def test_what_a_chunk_reads_is_not_what_another_call_left_in_its_buffer(twice):
    Trial(twice, False, ranked).check(DEVICE, {}, [(1, 9), (5, 3), (5, 11)])


def test_what_a_cut_dim_does_not_reach_runs_once_for_a_request():
    pipeline = new()
    image = pipeline.input("image", spec(1, 3))
    text = pipeline.input("text", spec(batch("texts", (4,)), 3, pad=0))
    seen, read = pipeline.add("vision", linear(3, 4))(image), pipeline.add("words", linear(3, 4))(text)
    pipeline.output("scores", pipeline.add("dot", lambda i, t: t @ i.T)(seen, read))
    plan = pipeline.plan()
    assert plan.summary_for({"texts": 40})["dispatches"] == 1 + 10 + 10
    with plan.load() as session, session.trace() as trace:
        session(image=torch.ones(1, 3), text=torch.ones(40, 3))
        assert session.stats["dispatches"] == 21
    assert [span.name for span in trace.spans].count("vision") == 1


def test_chunks_along_an_inner_dim_are_dense():
    """Kind K8: views that the product makes reach a stage that calls .view."""
    pipeline = new()
    x = pipeline.input("x", TensorSpec((3, Dim("b", (4,), batch=True), 4), pad=0))
    pipeline.output("y", pipeline.add("flat", lambda x: (x.view(-1, 4) * 2).view(x.shape))(x))
    with pipeline.plan().load() as session:
        for size in (4, 8, 6, 3):
            value = torch.randn(3, size, 4)
            result = session(x=value)["y"]
            assert torch.equal(result, value * 2)
            assert result.untyped_storage().nbytes() == result.nbytes, (
                "kind K16: a result holds its own bytes alone"
            )

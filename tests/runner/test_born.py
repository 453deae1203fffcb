"""Host stages and the sizes they decide: none, one, a bucket's edge, more than the largest."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Dim, Pipeline, StageError
from tests.kit import COMPUTE, Double, batch, host, linear, new, refuses, spec

COUNTS = (0, 1, 2, 3, 4, 5, 8, 9, 21)
NETS = linear(4, 3), linear(3, 2)


def crops(x: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    n = int(count)
    return torch.arange(n * 4.0).reshape(n, 4) + x.sum(), list(range(n))


def finder(dim: Dim | None = None, pad: object = 0) -> tuple[Pipeline, object, object]:
    """A pipeline whose host stage gives as many crops as the request says; and the crops and notes."""
    pipeline = new("finder")
    x, count = pipeline.input("x", spec(4)), pipeline.input("count", spec(dtype=torch.int64))
    outputs = {"crops": spec(dim or Dim("n", (2, 4), batch=True), 4, pad=pad), "notes": list}
    rows, notes = host(pipeline, "find", crops, **outputs)(x, count)
    return pipeline, rows, notes


def ask(n: int) -> dict[str, torch.Tensor]:
    return {"x": torch.arange(4.0), "count": torch.tensor(n)}


@pytest.mark.parametrize("device", ["cpu", "null"])
@pytest.mark.parametrize("n", COUNTS)
def test_what_a_stage_decides_runs_padded_in_chunks_or_not_at_all(n: int, device: str):
    pipeline, rows, notes = finder()
    value = pipeline.add("b", NETS[1])(pipeline.add("a", NETS[0])(rows))
    pipeline.output("y", value)
    pipeline.output("raw", rows)
    total = host(pipeline, "sum", lambda v, notes: (v.shape[0], len(notes)), shape=int, notes=int)(
        value, notes
    )
    pipeline.output("shape", total["shape"])
    pipeline.output("notes", total["notes"])
    plan = pipeline.plan(device, options=COMPUTE if device == "null" else None)
    raw, _ = crops(**ask(n))
    with plan.load() as session:
        result = session(**ask(n))
        assert session.stats == {"requests": 1, **plan.summary_for({"n": n})}
    assert torch.allclose(result["y"], NETS[1](NETS[0](raw)), rtol=1e-4, atol=1e-4)
    assert torch.equal(result["raw"], raw)
    assert (result["shape"], result["notes"]) == (n, n)
    assert result["y"].dtype is torch.float32


def test_the_next_host_stage_sees_true_sizes():
    log = []
    pipeline, crops, _ = finder()
    stage = host(pipeline, "look", lambda v: log.append(tuple(v.shape)) or v, out=spec("n", 4, pad=0))
    pipeline.output("y", pipeline.add("b", Double())(stage(pipeline.add("a", Double())(crops))))
    with pipeline.plan().load() as session:
        for n in COUNTS:
            session(**ask(n))
    assert log == [(n, 4) for n in COUNTS]


def test_host_stages_see_true_sizes_of_inputs_too():
    log = []
    pipeline = new()
    x = pipeline.input("x", spec(batch("n"), 3, pad=0))
    value = pipeline.add("d", Double())(x)
    stage = host(pipeline, "look", lambda v, x: log.append((len(v), len(x))) or v + x, out=spec("n", 3))
    pipeline.output("y", pipeline.add("e", Double(), inputs={"x": spec("n", 3, pad=0)})(stage(value, x)))
    with pipeline.plan(sizes={"n": (2, 4)}).load() as session:
        for size in (1, 2, 3, 4, 9):
            value = torch.randn(size, 3)
            assert torch.equal(session(x=value)["y"], (value * 2 + value) * 2)
    assert log == [(1, 1), (2, 2), (3, 3), (4, 4), (4, 4), (4, 4), (1, 1)]


@pytest.mark.parametrize("device", ["cpu", "null"])
def test_two_regions_in_a_row_as_in_a_cascade(device: str):
    pipeline, rows, _ = finder()
    first = pipeline.add("first", NETS[0])(rows)
    keep = host(
        pipeline,
        "keep",
        lambda c, s: c[s[:, 0] > s[:, 0].median()],
        kept=spec(Dim("m", (1, 3), batch=True), 4, pad=0),
    )
    pipeline.output("y", pipeline.add("second", linear(4, 2, seed=3))(keep(rows, first)))
    plan = pipeline.plan(device, options=COMPUTE if device == "null" else None)
    with plan.load() as session:
        for n in (1, 2, 5, 9, 20):
            raw, _ = crops(**ask(n))
            scores = NETS[0](raw)[:, 0]
            expected = linear(4, 2, seed=3)(raw[scores > scores.median()])
            assert torch.allclose(session(**ask(n))["y"], expected, rtol=1e-4, atol=1e-3)


def test_a_dim_that_another_request_would_pad_with_its_first_item():
    log = []

    def look(v):
        log.append(v.clone())
        return v * 2

    pipeline, crops, _ = finder(pad="repeat_first")
    pipeline.output("y", pipeline.add("a", look)(crops))
    session = pipeline.plan().load()
    log.clear()
    session(**ask(3))
    assert torch.equal(log[0][3], log[0][0])


def test_no_pad_rule_means_exact_sizes():
    pipeline, crops, _ = finder(pad=None)
    pipeline.output("y", pipeline.add("a", Double())(crops))
    with pipeline.plan().load() as session:
        for n in (0, 2, 4, 6, 8, 10):
            assert session(**ask(n))["y"].shape == (n, 4)
        for n in (1, 3, 5, 7):
            error = refuses(StageError, ("'find.crops'", f"n={n}", "pad=0"), lambda n=n: session(**ask(n)))
            assert (error.stage, error.dim, error.size) == ("find", "n", n)


def test_a_value_that_leaves_without_the_dim_bounds_the_size():
    pipeline, rows, _ = finder()
    pipeline.output("y", pipeline.add("max", lambda v: v.amax(0))(rows))
    with pipeline.plan().load() as session:
        raw, _ = crops(**ask(4))
        assert torch.equal(session(**ask(4))["y"], raw.amax(0))
        error = refuses(StageError, ("'find.crops'", "n=5", "largest bucket 4"), lambda: session(**ask(5)))
        assert (error.dim, error.size) == ("n", 5)
        error = refuses(StageError, ("'max.output'", "no items"), lambda: session(**ask(0)))
        assert error.dim == "n"
        assert session(**ask(3))["y"].shape == (4,)


def test_one_dim_in_two_outputs_is_one_size():
    pipeline = new()
    x = pipeline.input("x", spec(2, dtype=torch.int64))
    n = Dim("n", (2, 4), batch=True)
    a, b = host(
        pipeline,
        "h",
        lambda x: (torch.ones(int(x[0])), torch.ones(int(x[1]))),
        a=spec(n, pad=0),
        b=spec(n, pad=0),
    )(x)
    pipeline.output("y", pipeline.add("add", lambda a, b: a + b)(a, b))
    with pipeline.plan().load() as session:
        assert session(x=torch.tensor([3, 3]))["y"].tolist() == [2.0] * 3
        refuses(StageError, ("'h.b'", "Dim 'n' is 3", "[2] float32"), lambda: session(x=torch.tensor([3, 2])))


@pytest.mark.parametrize("device", ["cpu", "null"])
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0), (1, 1), (5, 3), (9, 7)])
def test_two_born_dims_meet(n: int, m: int, device: str):
    pipeline = new()
    x = pipeline.input("x", spec(2, dtype=torch.int64))

    def give(x):
        return torch.ones(int(x[0]), 3), torch.arange(int(x[1]) * 3.0).reshape(-1, 3)

    a, b = host(
        pipeline,
        "h",
        give,
        a=spec(Dim("n", (2, 4), batch=True), 3, pad=0),
        b=spec(Dim("m", (3,), batch=True), 3, pad=0),
    )(x)
    pipeline.output("y", pipeline.add("cross", lambda a, b: a @ b.T)(a, b))
    with pipeline.plan(device, options=COMPUTE if device == "null" else None).load() as session:
        left, right = give(torch.tensor([n, m]))
        assert torch.equal(session(x=torch.tensor([n, m]))["y"], left @ right.T)


def test_a_born_dim_and_a_request_in_chunks_that_must_not_join():
    """Chunks of a request decide sizes of their own; ragged results cannot be joined along the request's dim."""
    pipeline = new()
    x = pipeline.input("x", spec(batch("b"), 4, pad=0))
    crops = host(
        pipeline, "find", lambda x: x[x[:, 0] > 0], kept=spec(Dim("n", (2, 4), batch=True), 4, pad=0)
    )(x)
    pipeline.output("y", pipeline.add("d", Double())(crops))
    plan = pipeline.plan(sizes={"b": (2, 4)})
    assert {dim.name: dim.can_chunk for dim in plan.dims} == {"b": False, "n": True}
    x = torch.tensor([[1.0] * 4, [-1.0] * 4, [2.0] * 4])
    assert plan.load()(x=x)["y"][:, 0].tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    "given",
    [
        lambda: (torch.ones(2), 5),
        lambda: [torch.ones(2), 5],
        lambda: {"b": 5, "a": torch.ones(2)},
    ],
)
def test_a_host_stage_gives_a_tuple_or_a_dict(given):
    pipeline = new()
    a, b = host(pipeline, "h", lambda x: given(), a=spec(2), b=int)(pipeline.input("x", spec(1)))
    pipeline.output("a", a)
    pipeline.output("b", b)
    result = pipeline.plan().load()(x=torch.ones(1))
    assert (result["a"].tolist(), result["b"]) == ([1.0, 1.0], 5)


@pytest.mark.parametrize("given", [torch.ones(2), (torch.ones(2),), {"out": torch.ones(2)}])
def test_a_host_stage_with_one_output_gives_it_plain_in_a_tuple_or_a_dict(given):
    pipeline = new()
    pipeline.output("y", host(pipeline, "h", lambda x: given, out=spec(2))(pipeline.input("x", spec(1))))
    assert pipeline.plan().load()(x=torch.ones(1))["y"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("given", [(1, 2), {"a": 1}, [3], "text", None, object])
def test_a_python_value_is_handed_over_as_it_is(given):
    pipeline = new()
    first = host(pipeline, "h", lambda x: given, out=object)(pipeline.input("x", spec(1)))
    pipeline.output("y", host(pipeline, "i", lambda v: v, out=object)(first))
    assert pipeline.plan().load()(x=torch.ones(1))["y"] is given


def test_a_host_stage_runs_under_no_grad_on_cpu_tensors():
    log = []

    def look(v):
        log.append((torch.is_grad_enabled(), v.device.type, type(v)))
        return v

    pipeline = new()
    value = pipeline.add("d", Double(), device="null")(pipeline.input("x", spec(batch("n"), pad=0)))
    pipeline.output("y", host(pipeline, "look", look, out=spec("n"))(value))
    with pipeline.plan(sizes={"n": 4}, options=COMPUTE).load() as session:
        session(x=torch.ones(3, requires_grad=True))
    assert log == [(False, "cpu", torch.Tensor)]


def test_a_dim_of_any_size_may_be_born():
    pipeline, crops, _ = finder(Dim.dynamic("n"))
    pipeline.output("y", pipeline.add("a", NETS[0])(crops))
    with pipeline.plan().load() as session:
        for n in (0, 1, 7, 100):
            assert session(**ask(n))["y"].shape == (n, 3)
        assert session.stats["requests"] == 4

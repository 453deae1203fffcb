"""Held: parts of a value on each rank of a group, which are joined on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator import Pipeline, PlanError, Residency
from tests.kit import Double, host, refuses, spec
from tests.planner.devices import DEVICE, Plus, edge_of, on, programs_of, ranked, way
from tests.planner.replay import stale_reads


def parts(dims: tuple[Any, ...] = (2, 4), axis: int = 1, port: str = "output", **more: Any) -> Pipeline:
    """``part`` gives a part on each rank; a stage on the device reads the whole, and so does the caller."""
    pipeline = ranked()
    x = pipeline.input("x", spec(*dims, pad=0))
    made = pipeline.add("part", Double(), config={"sharded": {port: axis}}, **more)(x)
    pipeline.output("used", pipeline.add("use", Plus())(made))
    pipeline.output("whole", made)
    return pipeline


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_parts_are_joined_on_the_host_along_their_dim(ranks: int, axis: int):
    plan = on(parts(axis=axis), tp_degree=ranks)
    whole = [2, 4]
    whole[axis] *= ranks
    gather = f"gather to {whole} on the host"
    assert way(plan, "part.output -> use.x") == [gather, f"upload to {DEVICE}"]
    assert way(plan, "part.output -> whole") == [gather]
    edge = edge_of(plan, "part.output -> use.x")
    assert edge.residency is Residency.HOST
    assert edge.reason == f"each rank of {DEVICE} holds a part; they are joined on the host"
    assert edge.bytes == 32  # of one rank
    assert dict(plan.call("use").inputs)["x"].dims == tuple(whole)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_gather_is_one_download_for_each_rank_and_is_done_once(ranks: int):
    plan = on(parts(), tp_degree=ranks)
    assert [step.adapter.kind for step in plan.steps if step.label == "part.output"] == ["gather", "upload"]
    assert plan.summary["downloads"] == ranks + 1
    assert plan.summary["download_bytes"] == ranks * 32 + ranks * 32
    assert plan.summary["uploads"] == 2 * ranks
    inputs = {"x": torch.arange(8.0).reshape(2, 4)}
    with plan.load() as session:
        given = session(**inputs)
        stats = session.stats
    whole = torch.cat([inputs["x"] * 2] * ranks, 1)
    assert torch.equal(given["whole"], whole)
    assert torch.equal(given["used"], whole + 1)
    for name in ("uploads", "upload_bytes", "downloads", "download_bytes"):
        assert stats["measured"][DEVICE][name] == plan.summary[name]


def test_parts_are_what_a_program_gives_whoever_reads_it():
    """Nobody can tell NxD Inference to return rank 0 alone."""
    pipeline = ranked()
    made = pipeline.add("part", Double(), config={"sharded": {"output": 1}})(pipeline.input("x", spec(2, 4)))
    pipeline.output("whole", made)
    assert not on(pipeline, tp_degree=2).program("part").to_host


def test_parts_with_a_named_dim_are_cut_along_that_alone():
    pipeline = parts(("b", 4))
    plan = on(pipeline, sizes={"b": (2, 4)}, tp_degree=2)
    assert way(plan, "part.output -> whole") == ["gather to [b, 8] on the host", "cut to [b, 8]"]
    x = torch.arange(12.0).reshape(3, 4)
    with plan.load() as session:
        given = session(x=x)
    assert torch.equal(given["used"], torch.cat([x * 2, x * 2], 1) + 1)
    assert torch.equal(given["whole"], torch.cat([x * 2, x * 2], 1))


def test_parts_cannot_be_forced_to_stay():
    edge = "part.output -> use.x"
    error = refuses(
        PlanError,
        (repr(edge), "cannot stay on the device", "holds a part"),
        lambda: on(parts(), tp_degree=2, residency={edge: "device"}),
    )
    assert error.edge == edge
    assert on(parts(), tp_degree=2, residency={edge: "host"})


def test_the_place_of_adapters_says_nothing_about_parts():
    pipeline = ranked()
    made = pipeline.add("part", Double(), config={"sharded": {"output": 1}})(pipeline.input("x", spec(2, 4)))
    wide = pipeline.add("wide", Plus(), inputs={"x": spec(3, 8, pad=0)})
    pipeline.output("y", wide(made))
    for place in ("cost", "producer", "consumer", "program", "host"):
        plan = on(pipeline, tp_degree=2, adapters=place)
        assert [one.kind for one in edge_of(plan, "part.output -> wide.x").adapters] == [
            "gather",
            "pad",
            "upload",
        ]
    refuses(
        PlanError,
        "no adapters between two stages",
        lambda: on(pipeline, tp_degree=2, adapters={"part.output -> wide.x": "producer"}),
    )


def test_parts_of_an_overwritten_buffer_are_joined_in_time():
    pipeline = ranked()
    x = pipeline.input("x", spec(2, 4))
    part = pipeline.add("part", Double(), config={"sharded": {"output": 1}})
    first, second = part(x), part(pipeline.add("mid", Plus())(x))
    pipeline.output("y", pipeline.add("join", lambda a, b: a + b)(first, second))
    plan = on(pipeline, tp_degree=2)
    assert "part[route 1]" not in programs_of(plan)
    assert stale_reads(plan) == []


def test_a_port_that_there_is_not_holds_no_parts():
    error = refuses(
        PlanError,
        ("'part'", "declares 'outptu' as sharded", "no such output", "Did you mean 'output'?"),
        lambda: on(parts(port="outptu", outputs=("output",)), tp_degree=2),
    )
    assert (error.stage, error.port) == ("part", "outptu")
    refuses(PlanError, "no such output", lambda: on(parts(port="outptu"), tp_degree=2))


@pytest.mark.parametrize(("dims", "axis"), [((2, 4), 2), ((2, 4), -3), (("b", 4), 0), (("b", 4), -2)])
def test_parts_are_joined_along_a_dim_of_fixed_size(dims: tuple[Any, ...], axis: int):
    sizes = {"b": (2, 4)} if "b" in dims else {}
    error = refuses(
        PlanError,
        ("'part.output'", f"sharded along dim {axis}", "dims of fixed size"),
        lambda: on(parts(dims, axis), sizes=sizes, tp_degree=2),
    )
    assert error.edge.startswith("part.output -> ")


def test_a_host_stage_gets_the_whole():
    pipeline = ranked()
    made = pipeline.add("part", Double(), config={"sharded": {"output": 1}})(pipeline.input("x", spec(2, 4)))
    pipeline.output("y", host(pipeline, "see", lambda v: v + 1, out=spec(2, 8))(made))
    plan = on(pipeline, tp_degree=2)
    assert way(plan, "part.output -> see.v") == ["gather to [2, 8] on the host"]
    with plan.load() as session:
        assert session(x=torch.ones(2, 4))["y"].tolist() == [[3.0] * 8] * 2

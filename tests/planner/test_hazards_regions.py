"""Hazards in regions: chunk after chunk runs the same programs, and what leaves a region is read later."""

from __future__ import annotations

from orchestrator import Pipeline
from tests.kit import Double, host, spec
from tests.planner.devices import DEVICE, STIFF, Plus, edge_of, on, ranked, runs
from tests.planner.overwriting import CROPS, add, on_host
from tests.planner.replay import stale_reads


def region(name: str = "enc") -> Pipeline:
    """Two calls of one stage for each chunk."""
    pipeline = ranked()
    crops = host(pipeline, "find", lambda x: x, crops=CROPS)(pipeline.input("x", spec(3, 4)))
    enc = pipeline.add(name, Double())
    first, second = enc(crops), enc(pipeline.add("mid", Plus())(crops))
    pipeline.output("y", pipeline.add("join", add)(first, second))
    return pipeline


def test_a_region_has_hazards_of_its_own():
    plan = on(region())
    assert dict(runs(plan))["enc#2"] == "enc[route 1]"
    assert stale_reads(plan) == []
    plan = on(region("own"), STIFF)
    assert on_host(plan) == ["find.crops -> own.x", "find.crops -> mid.x", "own.output -> join.a"]
    assert stale_reads(plan) == []
    for device, name in ((STIFF, "own"), (DEVICE, "enc")):
        assert stale_reads(on(region(name), device, hazards="ignore"))


def test_a_stage_that_reads_late_in_a_region_is_moved():
    pipeline = ranked()
    crops = host(pipeline, "find", lambda x: x, crops=CROPS)(pipeline.input("x", spec(3, 4)))
    enc = pipeline.add("enc", Double())
    first, second = enc(crops), enc(pipeline.add("mid", Plus())(crops))
    pipeline.output("late", pipeline.add("blue", Plus())(second))
    pipeline.output("early", pipeline.add("red", Plus())(first))
    plan = on(pipeline)
    assert [name for name, _ in runs(plan)] == ["find", "enc", "mid", "red", "enc#2", "blue"]
    assert stale_reads(plan) == []


def inside_and_outside(name: str = "enc") -> Pipeline:
    """What a call gives outside is read in every chunk, while another region runs the same stage."""
    pipeline = ranked()
    x = pipeline.input("x", spec(3, 4))
    crops = host(pipeline, "find", lambda x: x, crops=CROPS)(x)
    enc = pipeline.add(name, Double())
    outside, again = enc(pipeline.add("near", Plus())(x)), enc(pipeline.add("far", Plus())(x))
    used = pipeline.add("use", lambda c, o: c + o.sum(0))
    pipeline.output("y", used(enc(crops), outside))
    pipeline.output("z", pipeline.add("tail", add)(again, outside))
    return pipeline


def test_calls_of_one_stage_inside_and_outside_a_region():
    """A chunk has another shape, so it is another program; outside, two calls share theirs."""
    plan = on(inside_and_outside())
    found = dict(runs(plan))
    assert len({found["enc"], found["enc#2"], found["enc#3"]}) == 3
    assert stale_reads(plan) == []
    assert stale_reads(on(inside_and_outside("own"), STIFF)) == []
    assert stale_reads(on(inside_and_outside(), hazards="ignore"))


def two_regions(pooled: bool) -> Pipeline:
    """A stage runs in two regions of one dim, and what it gave in the first is read after the second."""
    pipeline = ranked()
    crops = host(pipeline, "find", lambda x: x, crops=CROPS)(pipeline.input("x", spec(3, 4)))
    stage = pipeline.add("stage", (lambda x: x.mean(0)) if pooled else Double())
    kept = host(pipeline, "keep", lambda x: x, kept=spec("n", 4, pad=0))
    one = stage(crops)
    two = stage(kept(pipeline.add("mid", Plus())(crops)))
    pipeline.output("y", pipeline.add("join", add)(one, two))
    return pipeline


def test_chunks_are_joined_on_the_host_so_that_another_region_may_run_the_program():
    plan = on(two_regions(pooled=False))
    assert "chunks are joined on the host" in edge_of(plan, "stage.output -> join.a").reason
    assert [program for name, program in runs(plan) if name.startswith("stage")] == ["stage", "stage"]
    assert stale_reads(plan) == []


def test_what_leaves_a_region_without_its_dim_is_saved_from_the_next_region():
    plan = on(two_regions(pooled=True))
    assert stale_reads(plan) == []


def test_two_values_that_leave_a_region_without_its_dim():
    pipeline = ranked()
    crops = host(pipeline, "find", lambda x: x, crops=CROPS)(pipeline.input("x", spec(3, 4)))
    pool = pipeline.add("pool", lambda x: x.mean(0))
    pipeline.output("y", pipeline.add("join", add)(pool(crops), pool(pipeline.add("mid", Plus())(crops))))
    assert stale_reads(on(pipeline)) == []

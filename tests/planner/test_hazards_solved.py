"""Hazards: how a plan keeps what a later run of a program would destroy; reorder, then twin, then spill."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator import Pipeline, PlanError
from orchestrator.planner.context import MAX_REPLICAS
from tests.kit import Double, host, refuses, spec
from tests.planner.devices import STIFF, Plus, edge_of, on, programs_of, ranked, runs
from tests.planner.overwriting import add, both_read, is_safe, late_reader, on_host, own_output
from tests.planner.replay import stale_reads, wanted_results

# Reorder


def test_a_reader_comes_before_the_next_run_of_the_program():
    pipeline = late_reader()
    plan = on(pipeline)
    assert [name for name, _ in runs(plan)] == ["enc", "mid", "red", "enc#2", "blue"]
    assert programs_of(plan) == ["enc", "mid", "blue", "red"]
    assert plan.notes == ("'red' comes before 'enc#2', whose program overwrites what 'enc' gave.",)
    assert on_host(plan) == []
    assert is_safe(plan, pipeline)


def test_reordering_comes_first_even_where_no_twin_is_possible():
    pipeline = late_reader("own")
    plan = on(pipeline, STIFF)
    assert [name for name, _ in runs(plan)] == ["own", "mid", "red", "own#2", "blue"]
    assert on_host(plan) == []
    assert is_safe(plan, pipeline)


def test_without_hazards_the_order_is_the_graphs():
    pipeline = late_reader()
    plan = on(pipeline, hazards="ignore")
    assert [name for name, _ in runs(plan)] == ["enc", "mid", "enc#2", "blue", "red"]
    assert plan.notes == ()
    assert stale_reads(plan) == [
        ("red", "enc.output"),
        ("download red.output", "red.output"),
        ("result", "early"),
    ]
    assert not wanted_results(pipeline.freeze(), plan)


def test_a_result_is_brought_home_before_the_next_run():
    """Downloads read as well: both calls give results of the pipeline, and neither needs another program."""
    pipeline = ranked()
    x, enc = pipeline.input("x", spec(2, 4)), pipeline.add("enc", Double())
    for number in range(3):
        pipeline.output(f"y{number}", enc(pipeline.add(f"m{number}", Plus())(x)))
    plan = on(pipeline)
    assert {program for name, program in runs(plan) if name.startswith("enc")} == {"enc"}
    assert is_safe(plan, pipeline)


def test_a_host_stage_that_reads_late_gets_its_copy_in_time():
    pipeline = ranked()
    x, enc = pipeline.input("x", spec(2, 4)), pipeline.add("enc", Double())
    first = enc(x)
    second = enc(pipeline.add("mid", Plus())(x))
    later = host(pipeline, "later", add, out=spec(2, 4))
    pipeline.output("y", later(second, first))
    plan = on(pipeline)
    assert [program for name, program in runs(plan) if name.startswith("enc")] == ["enc", "enc"]
    order = [(step.op, step.label) for step in plan.steps]
    assert order.index(("adapt", "enc.output")) < order.index(("call", "enc#2"))
    assert plan.notes == ()
    assert is_safe(plan, pipeline)


# Twin


def test_a_second_program_where_both_values_are_needed_at_once():
    pipeline = both_read()
    plan = on(pipeline)
    assert [(name, program) for name, program in runs(plan) if name.startswith("enc")] == [
        ("enc", "enc"),
        ("enc#2", "enc[route 1]"),
    ]
    one, twin = plan.program("enc"), plan.program("enc[route 1]")
    assert (one.route, twin.route) == (0, 1)
    assert (one.inputs, one.outputs, one.stage) == (twin.inputs, twin.outputs, twin.stage)
    assert plan.notes == (
        "'enc#2' runs another program of 'enc' (route 1): each owns one output buffer, and what is in it is still to "
        "be read.",
    )
    assert on_host(plan) == []
    assert is_safe(plan, pipeline)


def test_a_twin_costs_a_buffer_but_no_weights():
    alone, both = on(both_read(calls=1)), on(both_read(calls=2))
    assert dict(alone.weights) == dict(both.weights)
    more = len(both.programs) - len(alone.programs)
    assert sum(dict(both.buffers).values()) - sum(dict(alone.buffers).values()) == more * 32


def test_a_stage_that_reads_its_own_output_has_two_programs_by_turns():
    for calls in (2, 3, 7):
        pipeline = own_output(calls=calls)
        plan = on(pipeline)
        turns = [program for _, program in runs(plan)]
        assert turns == (["enc", "enc[route 1]"] * calls)[:calls]
        assert programs_of(plan) == ["enc", "enc[route 1]"]
        assert on_host(plan) == []
        assert is_safe(plan, pipeline)


@pytest.mark.parametrize("calls", range(1, 2 * MAX_REPLICAS))
def test_more_values_at_once_than_programs_go_over_the_host(calls: int):
    pipeline = both_read(calls=calls)
    plan = on(pipeline)
    mine = [program for program in plan.programs if program.stage == "enc"]
    assert len(mine) == min(calls, MAX_REPLICAS)
    assert len(on_host(plan)) == max(0, calls - MAX_REPLICAS)
    assert is_safe(plan, pipeline)


# Spill


def test_a_stage_that_is_compiled_as_it_is_gives_a_copy():
    pipeline = both_read("own")
    plan = on(pipeline, STIFF)
    assert programs_of(plan) == ["m0", "own", "m1", "join"]
    assert on_host(plan) == ["own.output -> join.p0"]
    edge = edge_of(plan, "own.output -> join.p0")
    assert edge.reason == (
        "the program of 'own' has one output buffer and runs again in 'own#2' before 'join' reads it; the value is "
        "copied out over the host"
    )
    assert [adapter.kind for adapter in edge.adapters] == ["download", "upload"]
    assert (plan.summary["uploads"], plan.summary["downloads"]) == (2, 2)
    assert is_safe(plan, pipeline)


def test_its_own_output_goes_over_the_host_each_time():
    pipeline = own_output("own", 4)
    plan = on(pipeline, STIFF)
    assert programs_of(plan) == ["own"]
    assert on_host(plan) == ["own.output -> own#2.x", "own#2.output -> own#3.x", "own#3.output -> own#4.x"]
    assert is_safe(plan, pipeline)


@pytest.mark.parametrize("make", [both_read, own_output])
def test_a_value_that_is_destroyed_cannot_be_forced_to_stay(make: Callable[..., Pipeline]):
    pipeline = make("own")
    (edge,) = on_host(on(pipeline, STIFF))
    error = refuses(
        PlanError,
        (repr(edge), "cannot stay on the device", "one output buffer", "'own#2'"),
        lambda: on(pipeline, STIFF, residency={edge: "device"}),
    )
    assert error.edge == edge
    assert "runs again in 'own#2'" in error.reason
    asked = on(pipeline, STIFF, residency={edge: "host"})
    assert edge_of(asked, edge).reason.startswith("forced to the host")
    # With nobody looking for hazards it stays, and is destroyed.
    kept = on(pipeline, STIFF, residency={edge: "device"}, hazards="ignore")
    assert on_host(kept) == []
    assert stale_reads(kept)


def test_a_value_over_the_host_needs_no_twin():
    pipeline = both_read()
    plan = on(pipeline, residency={"enc.output -> join.p0": "host"})
    assert "enc[route 1]" not in programs_of(plan)
    assert edge_of(plan, "enc.output -> join.p0").reason.startswith("forced to the host")
    assert is_safe(plan, pipeline)


def test_a_spilled_value_with_adapters_is_adapted_on_the_host():
    pipeline = ranked()
    x, own = pipeline.input("x", spec(2, 4)), pipeline.add("own", Double())
    first, second = own(x), own(pipeline.add("mid", Plus())(x))
    join = pipeline.add("join", add, inputs={"a": spec(6, 4, pad=0), "b": spec(6, 4, pad=0)})
    pipeline.output("y", join(first, second))
    plan = on(pipeline, STIFF, adapters="consumer")
    edge = edge_of(plan, "own.output -> join.a")
    assert [adapter.kind for adapter in edge.adapters] == ["download", "pad", "upload"]
    assert all(not adapter.place for adapter in edge.adapters)
    assert "runs again in 'own#2'" in edge.reason
    assert [adapter.place for adapter in edge_of(plan, "own#2.output -> join.b").adapters] == ["consumer"]
    assert is_safe(plan, pipeline)


# What reads


@pytest.mark.parametrize("place", ["producer", "consumer", "program", "host"])
def test_adapters_read_where_they_are_done(place: str):
    """A value with adapters is overwritten like any other; a program of its own saves it, since it reads at once."""
    pipeline = ranked()
    x, enc = pipeline.input("x", spec(2, 4)), pipeline.add("enc", Double())
    first, second = enc(x), enc(pipeline.add("mid", Plus())(x))
    join = pipeline.add("join", add, inputs={"a": spec(6, 4, pad=0), "b": spec(6, 4, pad=0)})
    pipeline.output("y", join(first, second))
    plan = on(pipeline, adapters=place)
    twins = "enc[route 1]" in programs_of(plan)
    assert twins == (place in ("producer", "consumer"))
    assert is_safe(plan, pipeline)
    ignored = on(pipeline, adapters=place, hazards="ignore")
    assert stale_reads(ignored)


def test_a_value_that_is_read_raw_and_padded_in_the_producer_is_one_buffer():
    pipeline = ranked()
    x, enc = pipeline.input("x", spec(2, 4)), pipeline.add("enc", Double())
    first = enc(x)
    second = enc(pipeline.add("mid", Plus())(first))
    wide = pipeline.add("wide", add, inputs={"a": spec(6, 4, pad=0), "b": spec(6, 4, pad=0)})
    pipeline.output("y", wide(first, second))
    pipeline.output("z", pipeline.add("tail", Plus())(first))
    plan = on(pipeline, adapters="producer")
    assert dict(runs(plan))["enc#2"] == "enc[route 1]"
    assert [len(item.adapters) for item in plan.program("enc").outputs] == [0, 1]
    assert is_safe(plan, pipeline)


def test_a_program_of_adapters_owns_a_buffer_too():
    """Two calls share the program of one call's adapters only where it is the same value."""
    pipeline = ranked()
    x, enc = pipeline.input("x", spec(2, 4)), pipeline.add("enc", Double())
    for number in range(2):
        made = enc(pipeline.add(f"m{number}", Plus())(x))
        stage = pipeline.add(f"r{number}", Plus(), inputs={"x": spec(6, 4, pad=0)})
        pipeline.output(f"y{number}", stage(made))
    plan = on(pipeline, adapters="program")
    names = [name for name in programs_of(plan) if name.startswith("adapt")]
    assert names == ["adapt enc.output", "adapt enc#2.output"]
    assert is_safe(plan, pipeline)


def test_devices_without_eager_compute_alone_have_programs():
    plan = on(both_read(), placement={"enc": "null"})
    assert programs_of(plan) == ["m0", "m1", "join"]
    assert {step.program for step in plan.steps if step.label in ("enc", "enc#2")} == {""}

"""Fold: where adapters between two stages of a device that compiles go, what that costs, and that it can be forced."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Pipeline, Plan, PlanError
from orchestrator.errors import PlanOptionError
from orchestrator_neuron.family import LINK
from tests.kit import Double, refuses, spec
from tests.planner.devices import DEVICE, STIFF, Plus, edge_of, on, ranked
from tests.planner.folding import EDGE, PLACES, chained, expected, fan, place, told


def cheapest(costs: dict[str, float], able: list[str]) -> str:
    return min((*able, "host"), key=lambda name: costs[name])


def test_the_cheapest_place_follows_from_who_reads_what():
    small, large = (2, 6), (6, 2)
    assert place(on(fan(*small))) == "producer"
    assert place(on(fan(*large))) == "producer"
    # Somebody else reads the value as it is: the producer would give both.
    assert place(on(fan(2, 100, raw=True))) == "producer"
    assert place(on(fan(2, 3, raw=True))) == "producer"
    assert place(on(fan(100, 2, raw=True))) == "producer"
    # Every run of the producer would adapt, one consumer does it once.
    assert place(on(fan(2, 6, calls=4))) == "consumer"
    assert place(on(fan(6, 2, calls=4))) == "producer"
    assert place(on(fan(2, 6, calls=4, consumers=6))) == "producer"


def test_the_host_is_cheaper_for_small_values_than_a_program_of_their_own():
    """A program start takes as long as 2.2 MB take over the link."""
    both = {"producer": "own_enc", "reader": "own_r"}
    edge = "own_enc.output -> own_r0.x"
    even = LINK.dispatch_seconds * LINK.bytes_per_second / 16
    small, large = on(fan(2, int(even * 0.9), **both), STIFF), on(fan(2, int(even * 1.1), **both), STIFF)
    assert (place(small, edge), place(large, edge)) == ("host", "program")
    # Each rank gets a copy of its own, one after the other.
    assert place(on(fan(2, int(even * 0.6), **both), STIFF, tp_degree=2), edge) == "program"


@given(
    rows=st.integers(1, 400_000),
    wanted=st.integers(1, 400_000),
    consumers=st.integers(1, 4),
    raw=st.booleans(),
    calls=st.integers(1, 4),
    ranks=st.sampled_from([1, 2, 4]),
    stiff=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_place_is_the_cheapest_that_is_possible(
    rows: int, wanted: int, consumers: int, raw: bool, calls: int, ranks: int, stiff: tuple[bool, bool]
):
    if rows == wanted:
        return
    producer, reader = ("own_enc" if stiff[0] else "enc"), ("own_r" if stiff[1] else "r")
    shape: dict[str, Any] = {"consumers": consumers, "raw": raw, "calls": calls}
    plan = on(fan(rows, wanted, producer=producer, reader=reader, **shape), STIFF, tp_degree=ranks)
    costs = expected(rows, wanted, ranks=ranks, **shape)
    hindered = {name for name, held in zip(("producer", "consumer"), stiff, strict=True) if held}
    able = [name for name in PLACES[:3] if name not in hindered]
    wish = cheapest(costs, able)
    for number in range(consumers):
        edge = f"{producer}.output -> {reader}{number}.x"
        found = place(plan, edge)
        assert costs[found] == pytest.approx(costs[wish]), (found, wish)
        figures = told(edge_of(plan, edge).reason)
        assert figures.pop("") == pytest.approx(costs[found] * 1e6, rel=0.006)
        assert set(figures) == {*able, "host"} - {found}
        for name, microseconds in figures.items():
            assert microseconds == pytest.approx(costs[name] * 1e6, rel=0.006)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("producer", "the pad is compiled into 'enc', as asked"),
        ("consumer", "the pad is compiled into 'r0', as asked"),
        ("program", "the pad is a program of its own, as asked"),
        ("host", "the pad is done on the host, as asked"),
    ],
)
@pytest.mark.parametrize("by_edge", [False, True])
def test_a_place_may_be_forced(where: str, words: str, by_edge: bool):
    plan = on(fan(consumers=2), adapters={EDGE: where} if by_edge else where)
    assert place(plan) == where
    assert place(plan, "enc.output -> r1.x") == ("producer" if by_edge else where)
    edge = edge_of(plan, EDGE)
    assert edge.reason.startswith(f"both ends are on {DEVICE}; {words}: ")
    assert set(told(edge.reason)) == {"", *PLACES} - {where}
    bound = fan(consumers=2).bind(Plan.from_json(plan.to_json()))
    assert bound == plan


def test_an_edge_whose_place_was_chosen_says_what_the_others_would_cost():
    reason = edge_of(on(fan()), EDGE).reason
    costs = {name: f"{seconds * 1e6:.3g} us" for name, seconds in expected(2, 6).items()}
    assert reason == (
        f"both ends are on {DEVICE}; the pad is compiled into 'enc': {costs['producer']} (estimate), "
        f"against consumer {costs['consumer']}, program {costs['program']}, host {costs['host']}"
    )
    assert "as asked" not in reason


def test_a_program_that_is_forced_where_the_host_is_cheaper_is_noted():
    costs = expected(2, 6)
    plan = on(fan(), adapters="program")
    assert plan.notes == (
        f"'{EDGE}': a program of its own for the adapters takes {costs['program'] * 1e6:.3g} us (estimate), over the "
        f"host it would be {costs['host'] * 1e6:.3g} us.",
    )
    assert "Notes:" in str(plan)
    assert on(fan(2, 200_000), adapters="program").notes == ()
    for where in ("producer", "consumer", "host", "cost"):
        assert on(fan(), adapters=where).notes == ()


def test_a_place_of_no_edge_is_offered_the_nearest():
    error = refuses(
        PlanError,
        ("'enc.output -> r9.x'", "does not exist", f"Did you mean '{EDGE}'?"),
        lambda: on(fan(), adapters={"enc.output -> r9.x": "consumer"}),
    )
    assert error.edge == "enc.output -> r9.x"


@pytest.mark.parametrize("edge", ["x -> enc.x", "r0.output -> y0", "enc.output -> raw.x"])
def test_a_place_for_an_edge_without_adapters_is_refused(edge: str):
    error = refuses(
        PlanError,
        (repr(edge), "no adapters between two stages", "leave it out"),
        lambda: on(fan(raw=True), adapters={edge: "consumer"}),
    )
    assert error.edge == edge


@pytest.mark.parametrize("wish", ["moon", "", "cpu", {EDGE: "moon"}, {EDGE: 3}, {3: "host"}, 3])
def test_a_place_is_one_of_five(wish: Any):
    refuses(PlanOptionError, "'adapters'", lambda: on(fan(), adapters=wish))


@pytest.mark.parametrize(
    ("where", "stage", "names"),
    [("producer", "own_enc", {"producer": "own_enc"}), ("consumer", "own_r0", {"reader": "own_r"})],
)
@pytest.mark.parametrize("by_edge", [False, True])
def test_a_stage_that_is_compiled_as_it_is_takes_no_adapters(
    where: str, stage: str, names: dict[str, str], by_edge: bool
):
    pipeline = fan(**names)
    edge = f"{names.get('producer', 'enc')}.output -> {names.get('reader', 'r')}0.x"
    error = refuses(
        PlanError,
        (repr(edge), f"into the {where}", repr(stage), "as its author made it", "'program'"),
        lambda: on(pipeline, STIFF, adapters={edge: where} if by_edge else where),
    )
    assert (error.stage, error.edge) == (stage, edge)
    # What the message proposes is possible.
    assert place(on(pipeline, STIFF, adapters={edge: "program"}), edge) == "program"
    assert place(on(pipeline, STIFF), edge) == ({"producer", "consumer"} - {where}).pop()


def mixed(other: str) -> Pipeline:
    """Two consumers want the same of a value whose stage runs six times."""
    pipeline = ranked()
    enc, x = pipeline.add("enc", Double()), pipeline.input("x", spec(2, 4))
    made = enc(x)
    for name in ("r0", other):
        stage = pipeline.add(name, Plus(), inputs={"x": spec(6, 4, pad=0)})
        pipeline.output(f"y_{name}", stage(made))
    for number in range(5):
        pipeline.output(f"again{number}", enc(pipeline.add(f"m{number}", Plus())(x)))
    return pipeline


def test_one_stiff_consumer_of_several_keeps_all_of_them_from_folding():
    """Edges that want the same of one value are decided together."""
    edges = ["enc.output -> r0.x", "enc.output -> own_r.x"]
    assert place(on(mixed("r1"), STIFF)) == "consumer"
    plan = on(mixed("own_r"), STIFF)
    assert [place(plan, edge) for edge in edges] == ["producer", "producer"]
    refuses(PlanError, "'own_r'", lambda: on(mixed("own_r"), STIFF, adapters="consumer"))


def test_what_arrives_narrower_costs_less():
    """Sizes before and after count in bytes: 128 of float32 before, 48 of float16 after."""
    costs = told(edge_of(on(chained()), EDGE).reason)
    memory, link = 1e6 / LINK.memory_bytes_per_second, 1e6 / LINK.bytes_per_second
    assert costs[""] == pytest.approx((48 + 48) * memory, rel=0.006)
    assert costs["consumer"] == pytest.approx((128 + 128 + 2 * 48) * memory, rel=0.006)
    assert costs["host"] == pytest.approx((128 + 48) * memory + (128 + 48) * link, rel=0.006)


@pytest.mark.parametrize("buckets", [(2, 4), (1, 3)])
def test_the_costs_are_those_of_the_largest_bucket(buckets: tuple[int, ...]):
    pipeline = ranked()
    value = pipeline.add("enc", Double())(pipeline.input("x", spec("n", 4, pad=0)))
    pipeline.output("y", pipeline.add("r0", Plus(), inputs={"x": spec("n", 6, pad=0)})(value))
    figures = told(edge_of(on(pipeline, sizes={"n": buckets}), EDGE).reason)
    largest = buckets[-1]
    assert figures[""] == pytest.approx(2 * largest * 24 / LINK.memory_bytes_per_second * 1e6, rel=0.006)

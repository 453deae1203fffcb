"""Plans as JSON: equal after a round trip; truncated, foreign, edited or mutated at random: never trusted."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator import Plan, PlanError
from tests.kit import COMPUTE, Double, chain, host, linear, new, pair, refuses, spec
from tests.planner.broken import make

SAMPLE = make()
PLAN = SAMPLE.plan(sizes={"b": (2, 4)}, options=COMPUTE)
TEXT = PLAN.to_json()
REQUEST = {"x": torch.arange(12.0).reshape(3, 4)}


def result(plan: Plan) -> list[Any]:
    """What a plan gives for the request, and what it counts, in a form that compares."""
    with plan.load() as session:
        given = session.run(REQUEST)
        counts = session.stats
    values = [value.tolist() if isinstance(value, torch.Tensor) else value for value in given.values()]
    return [list(given), values, counts]


EXPECTED = result(PLAN)


def both_towers() -> Plan:
    return pair()[0].plan(sizes={"batch": (2, 4)}, placement={"vision": "cuda"}, memory="1GB")


def typed() -> Plan:
    pipeline = new()
    stage = host(pipeline, "h", lambda p: {"a": 1, "b": [p]}, a=int, b=list)
    a, b = stage(pipeline.input("prompt", str))
    pipeline.output("a", a)
    pipeline.output("b", b)
    return pipeline.plan()


def derived() -> Plan:
    return chain(lambda x: torch.cat([x, x]), lambda x: x.sum(), takes=spec("n")).plan(sizes={"n": (2, 4)})


@pytest.mark.parametrize(
    "plan", [PLAN, both_towers(), typed(), derived()], ids=["sample", "pair", "typed", "derived"]
)
def test_a_plan_is_equal_after_a_round_trip(plan: Plan):
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert not plan.diff(again)
    assert again.to_json() == plan.to_json()
    assert str(again) == str(plan)
    assert again.summary == plan.summary


@pytest.mark.parametrize("pad", [float("nan"), float("inf"), -float("inf"), 1e-40, -0.0])
def test_odd_numbers_survive_a_round_trip(pad: float):
    pipeline = chain(Double(), takes=spec("n", pad=pad))
    plan = pipeline.plan(sizes={"n": 4})
    again = pipeline.bind(Plan.from_json(plan.to_json()))
    assert again == plan
    assert again.load()(x=torch.ones(3))["y"].tolist() == [2.0] * 3


def test_a_plan_that_was_read_and_bound_runs_the_same():
    assert result(SAMPLE.bind(Plan.from_json(TEXT))) == EXPECTED


def test_the_json_is_for_programs_too():
    data = json.loads(TEXT)
    assert data["version"] == 9
    assert data["summary"]["uploads"] == PLAN.summary["uploads"]
    assert {edge["source"] for edge in data["edges"]} == {edge.source for edge in PLAN.edges}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_plan_is_refused(share: float):
    refuses(PlanError, ("no plan", "truncated"), lambda: Plan.from_json(TEXT[: int(len(TEXT) * share)]))


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, "5", None, [3], {}])
def test_a_plan_of_another_version_is_refused(version):
    data = {**json.loads(TEXT), "version": version}
    error = refuses(
        PlanError,
        ("version", "reads version 9", "plan the pipeline again"),
        lambda: Plan.from_json(json.dumps(data)),
    )
    assert error.version == version


def test_a_plan_without_a_version_is_refused():
    data = json.loads(TEXT)
    del data["version"]
    refuses(PlanError, "version None", lambda: Plan.from_json(json.dumps(data)))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "3", '"plan"', '{"format": "other"}', "[" * 100_000, "\x00", "{'a': 1}"]
)
def test_what_is_no_plan_is_refused(text: str):
    refuses(PlanError, "This is no plan", lambda: Plan.from_json(text))


@pytest.mark.parametrize("text", [None, 3, b"\xff\xfe\x00", ["a"]])
def test_what_is_no_text_is_refused(text):
    refuses(PlanError, "This is no plan", lambda: Plan.from_json(text))


@pytest.mark.parametrize("field", sorted(set(json.loads(TEXT)) - {"format", "version", "summary"}))
def test_a_plan_that_lacks_a_part_is_refused(field: str):
    data = json.loads(TEXT)
    del data[field]
    refuses(PlanError, ("malformed", repr(field)), lambda: Plan.from_json(json.dumps(data)))


@pytest.mark.parametrize("field", sorted(set(json.loads(TEXT)) - {"format", "version", "summary"}))
@pytest.mark.parametrize(
    "content", [None, 3, [3], [[]], {}, {"is": "CallStep"}, {"is": "dtype", "name": "cuda"}, {"is": "os"}]
)
def test_a_part_of_the_wrong_form_is_refused(field: str, content: object):
    data = {**json.loads(TEXT), field: content}
    refuses(PlanError, "malformed", lambda: Plan.from_json(json.dumps(data)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"is": "type", "name": "os.path:join"}, "os.path:join"),
        ({"is": "type", "name": "no.such.module:Thing"}, "import its module"),
        ({"is": "dtype", "name": "float31"}, "no dtype"),
        ({"is": "Residency", "name": "moon"}, "malformed"),
        ({"is": "CallStep", "name": "wide"}, "malformed"),
        ({"is": "DimPlan", "name": "b", "buckets": [2], "spin": 1}, "no 'spin'"),
        ({"is": "Dim", "name": "a.b"}, "malformed"),
    ],
)
def test_what_a_record_says_is_checked(kind: dict, words: str):
    data = json.loads(TEXT)
    data["inputs"][0][1] = kind
    refuses(PlanError, words, lambda: Plan.from_json(json.dumps(data)))


def test_reading_imports_nothing():
    import sys

    sys.modules.pop("antigravity", None)
    data = json.loads(TEXT)
    data["inputs"][0][1] = {"is": "type", "name": "antigravity:fly"}
    refuses(PlanError, "antigravity", lambda: Plan.from_json(json.dumps(data)))
    assert "antigravity" not in sys.modules


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to every entry of a JSON value."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    found = [] if not way else [way]
    for key, item in entries:
        found += places(item, (*way, key))
    return found


DATA = json.loads(TEXT)
#: Left out: what is not read, and the buckets of ``b``, which may be any.
PLACES = [
    way
    for way in places(DATA)
    if way[0] not in ("summary", "format", "version") and way[:3] != ("dims", 0, "buckets")
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(allow_nan=False),
    st.sampled_from(
        [
            "",
            "x",
            "b",
            "n",
            "q",
            "cpu",
            "null:0",
            "null:1",
            "host",
            "near",
            "near.output",
            "call",
            "pad",
            "cut",
        ]
    ),
)
CONTENT = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.sampled_from([DATA[key] for key in sorted(DATA)])
)


def other(old: Any, draw: Any) -> Any:
    """Something else of the same kind, most of the time."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return old + draw(st.sampled_from([-2, -1, 1, 2, 5]))
    if isinstance(old, list) and old:
        return draw(st.sampled_from([old[1:], old[::-1], old * 2, [], old[:1]]))
    return draw(CONTENT)


@st.composite
def mutations(draw: Any) -> tuple[tuple[Any, ...], str, Any]:
    """Where to change the JSON of the sample plan, how, and to what."""
    way = draw(st.sampled_from(PLACES))
    action = draw(st.sampled_from(["change", "change", "replace", "drop", "copy"]))
    if action == "change":
        return way, action, other(look(DATA, way), draw)
    if action == "copy":
        return way, action, look(DATA, draw(st.sampled_from(PLACES)))
    return way, action, draw(CONTENT) if action == "replace" else None


def look(data: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        data = data[key]
    return data


def mutate(way: tuple[Any, ...], action: str, content: Any) -> str:
    data = copy.deepcopy(DATA)
    holder = look(data, way[:-1])
    if action == "drop":
        del holder[way[-1]]
    else:
        holder[way[-1]] = content
    return json.dumps(data)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutations())
@example((("values", 9, "real"), "replace", True))
@example((("steps", 0, "device"), "replace", "null:1"))
@example((("steps", 12, "inputs"), "replace", [14, 14]))
@example((("outputs",), "replace", DATA["outputs"][::-1]))
def test_a_mutated_plan_is_refused_or_does_the_same(mutation: tuple[tuple[Any, ...], str, Any]):
    try:
        plan = SAMPLE.bind(Plan.from_json(mutate(*mutation)))
    except PlanError:
        return
    if plan != PLAN:
        assert result(plan) == EXPECTED


def test_a_plan_of_a_module_compares_by_what_it_says():
    one = chain(linear(4, 4, seed=1), Double(), takes=spec(2, 4)).plan()
    two = chain(linear(4, 4, seed=2), Double(), takes=spec(2, 4)).plan()
    assert one == two
    assert hash(one) == hash(two)

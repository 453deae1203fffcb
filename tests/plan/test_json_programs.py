"""Plans with programs as JSON: equal after a round trip, and nothing in a program may be changed on the way."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from orchestrator import Pipeline, Plan, PlanError
from orchestrator.plan import PlannedProgram
from tests.kit import Double, host, linear, refuses, spec
from tests.planner import program_breaks
from tests.planner.devices import DEVICE, on, ranked

SAMPLE = program_breaks.make()
PLAN = program_breaks.plan(SAMPLE)
DATA = json.loads(PLAN.to_json())


def narrow() -> tuple[Pipeline, Plan]:
    """Dtypes in options of the plan and of a stage, a dict of places, integers that are held narrow."""
    pipeline = ranked("narrow")
    ids = pipeline.input("ids", spec("b", dtype=torch.int64, pad=0))
    made = pipeline.add("embed", lambda i: torch.stack([i, i], 1) * 0.5)(ids)
    other = pipeline.add("wide", linear(3, 3), config={"torch_dtype": torch.float32}, inputs={"input": WIDE})
    pipeline.output("y", other(made))
    edge = "embed.output -> wide.input"
    return pipeline, on(pipeline, sizes={"b": (1, 4)}, torch_dtype="bfloat16", adapters={edge: "program"})


WIDE = spec("b", 3, pad=-1.5)


def born() -> tuple[Pipeline, Plan]:
    """A region with a twin in its body, and a constant that is no tensor."""
    pipeline = ranked("born")
    crops = host(pipeline, "find", lambda x: x, crops=spec("n", 4, pad=0))(pipeline.input("x", spec(3, 4)))
    enc = pipeline.add("enc", lambda x, factor: x * factor)
    first, second = enc(crops, 2), enc(pipeline.add("mid", Double())(crops), 2)
    pipeline.output("y", pipeline.add("join", lambda a, b: a + b)(first, second))
    return pipeline, on(pipeline, sizes={"n": (2, 4)}, tp_degree=2)


CASES = {"sample": lambda: (SAMPLE, PLAN), "narrow": narrow, "born": born}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_plan_with_programs_is_equal_after_a_round_trip(case: Any):
    pipeline, plan = case()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert not plan.diff(again)
    assert (str(again), again.to_json()) == (str(plan), plan.to_json())
    assert again.summary == plan.summary
    assert pipeline.bind(again) == plan
    assert hash(again) == hash(plan)


def test_options_of_every_kind_come_back():
    _, plan = narrow()
    (group,) = Plan.from_json(plan.to_json()).groups
    assert group.option("torch_dtype") is torch.bfloat16
    assert dict(group.option("adapters")) == {"embed.output -> wide.input": "program"}
    assert (group.runs_programs, group.output_buffers, group.device) == (True, 1, DEVICE)


def test_a_plan_that_was_read_and_bound_gives_the_same():
    pipeline, plan = born()
    inputs = {"x": torch.arange(12.0).reshape(3, 4)}
    results = []
    for one in (plan, pipeline.bind(Plan.from_json(plan.to_json()))):
        with one.load() as session:
            results.append((session(**inputs)["y"].tolist(), session.stats))
    assert results[0] == results[1]
    assert results[0][0] == (inputs["x"] * 6).tolist()


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Ways to everything in a JSON value that holds nothing else."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    inner = [leaf for key, item in entries for leaf in leaves(item, (*way, key))]
    yield from inner or [(way, value)]


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    changes = {
        "float32": "float64",
        "pad": "slice",
        "slice": "pad",
        "consumer": "producer",
        "program": "consumer",
    }
    return changes.get(value, f"{value}x") if isinstance(value, str) else "x"


def test_no_word_of_a_program_may_be_changed():
    """Routes alone are free, as long as they differ; and nothing must be given to the host only."""
    accepted = []
    for way, value in leaves(DATA["programs"]):
        if way[-1] == "route" or (way[-1] == "to_host" and value):
            continue
        data = copy.deepcopy(DATA)
        holder = data["programs"]
        for key in way[:-1]:
            holder = holder[key]
        holder[way[-1]] = other(value)
        try:
            SAMPLE.bind(Plan.from_json(json.dumps(data)))
        except PlanError:
            continue
        accepted.append((data["programs"][way[0]]["name"], *way[1:]))
    assert accepted == []


@pytest.mark.parametrize("field", ["programs", "buffers"])
@pytest.mark.parametrize(
    "content", [None, [3], {}, [{"is": "CallStep"}], [{"is": "PlannedProgram", "name": "a"}]]
)
def test_programs_of_the_wrong_form_are_refused(field: str, content: Any):
    refuses(PlanError, "malformed", lambda: Plan.from_json(json.dumps({**DATA, field: content})))


@pytest.mark.parametrize("name", sorted({"name", "device", "inputs", "outputs"}))
def test_a_program_that_lacks_a_part_is_refused(name: str):
    data = copy.deepcopy(DATA)
    del data["programs"][0][name]
    refuses(PlanError, "malformed", lambda: Plan.from_json(json.dumps(data)))


def test_a_program_may_leave_out_what_it_does_not_have():
    found = {program.name: program for program in PLAN.programs}
    assert isinstance(found["mid"], PlannedProgram)
    routed = [entry["name"] for entry in DATA["programs"] if "route" in entry]
    assert routed == [program.name for program in PLAN.programs if program.route]

"""Fold: what programs take, do and give once adapters are compiled into them, and that results stay what they are."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Pipeline
from orchestrator.testing import run_reference
from tests.kit import Double, spec, ways
from tests.planner.devices import DEVICE, Plus, edge_of, on, programs_of, ranked, runs
from tests.planner.folding import EDGE, chained, fan, place

pytestmark = pytest.mark.usefixtures("shared_store")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("producer", "compiled into 'enc'"),
        ("consumer", "compiled into 'r0'"),
        ("program", "a program of its own"),
        ("host", "done on the host"),
    ],
)
def test_a_chain_of_adapters_goes_to_one_place(where: str, words: str):
    plan = on(chained(), adapters=where)
    kinds = ["slice", "cast", "pad"]
    steps = ways(plan)[EDGE]
    assert steps == (["download", *kinds, "upload"] if where == "host" else kinds)
    assert place(plan) == where
    edge = edge_of(plan, EDGE)
    assert f"the slice and cast and pad are {words}, as asked: " in edge.reason
    found = {
        program.name: ([one.kind for one in program.inputs[0].adapters], program.outputs)
        for program in plan.programs
    }
    assert found["enc"][0] == []
    assert [one.kind for one in found["enc"][1][0].adapters] == (kinds if where == "producer" else [])
    assert found["r0"][0] == (kinds if where == "consumer" else [])
    assert ("adapt enc.output" in found) == (where == "program")
    if where == "program":
        assert found["adapt enc.output"][0] == kinds
        assert plan.program("adapt enc.output").stage == ""
        # Only the last of the chain starts the program; what comes before it is folded into it.
        assert [adapter.place for adapter in edge.adapters] == ["consumer", "consumer", "program"]
    assert plan.summary["dispatches"] == (3 if where == "program" else 2)


def test_consumers_share_what_a_producer_adapts():
    plan = on(fan(consumers=3, raw=True), adapters="producer")
    program = plan.program("enc")
    assert [len(item.adapters) for item in program.outputs] == [0, 1]
    assert [step.adapter.place for step in plan.steps if step.label == "enc.output"] == ["producer"]
    assert len({edge_of(plan, f"enc.output -> r{number}.x").value for number in range(3)}) == 1


def test_a_program_of_its_own_is_shared_too():
    plan = on(fan(consumers=3), adapters="program")
    assert programs_of(plan) == ["enc", "adapt enc.output", "r0", "r1", "r2"]
    assert plan.summary["dispatches"] == 5


def test_what_nobody_reads_by_itself_is_not_given():
    alone = on(fan(consumers=2), adapters="producer").program("enc")
    assert [item.spec.dims for item in alone.outputs] == [(6, 4)]
    assert [item.spec.dims for item in on(fan(), adapters="consumer").program("enc").outputs] == [(2, 4)]


def test_two_forms_of_one_value_are_two_outputs_and_two_decisions():
    pipeline = ranked()
    value = pipeline.add("enc", Double())(pipeline.input("x", spec(4, 4)))
    for name, rows in (("small", 2), ("large", 9)):
        stage = pipeline.add(name, Plus(), inputs={"x": spec(rows, 4, pad=0, allow_slice=True)})
        pipeline.output(f"y_{name}", stage(value))
    both = on(pipeline, adapters="producer").program("enc")
    assert [item.spec.dims for item in both.outputs] == [(9, 4), (2, 4)]
    split = on(pipeline, adapters={"enc.output -> large.x": "consumer", "enc.output -> small.x": "producer"})
    assert [item.spec.dims for item in split.program("enc").outputs] == [(4, 4), (2, 4)]
    assert [item.adapters[0].kind for item in split.program("large").inputs] == ["pad"]


def calls_of_one_stage() -> Pipeline:
    """Two calls of ``enc``: one is read as it is, the other padded; nobody reads both."""
    pipeline = ranked()
    enc, x = pipeline.add("enc", Double()), pipeline.input("x", spec(2, 4))
    pipeline.output("raw", pipeline.add("raw", Plus())(enc(x)))
    later = enc(pipeline.add("mid", Plus())(x))
    pipeline.output("wide", pipeline.add("wide", Plus(), inputs={"x": spec(6, 4, pad=0)})(later))
    return pipeline


def test_a_program_gives_what_any_of_its_calls_needs():
    plan = on(calls_of_one_stage(), adapters="producer")
    assert [(item.port, item.spec.dims) for item in plan.program("enc").outputs] == [
        ("output", (2, 4)),
        ("output", (6, 4)),
    ]
    assert {program for call, program in runs(plan) if call.startswith("enc")} == {"enc"}


def test_calls_that_are_fed_through_other_adapters_run_other_programs():
    pipeline = ranked()
    narrow = pipeline.add("narrow", Double())(pipeline.input("x", spec(2, 4)))
    wide = pipeline.add("wide", Double())(pipeline.input("w", spec(6, 4)))
    stage = pipeline.add("r", Plus(), inputs={"x": spec(6, 4, pad=0)})
    pipeline.output("y", stage(narrow))
    pipeline.output("z", stage(wide))
    found = dict(runs(on(pipeline, adapters="consumer")))
    assert (found["r"], found["r#2"]) == ("r", "r[2]")
    found = dict(runs(on(pipeline, adapters="producer")))
    assert (found["r"], found["r#2"]) == ("r", "r")


@pytest.mark.parametrize(
    ("where", "dispatches", "uploads", "downloads"),
    [("producer", 4, 1, 3), ("consumer", 4, 1, 3), ("program", 5, 1, 3), ("host", 4, 2, 4)],
)
def test_counts_and_results_are_the_same_on_the_emulated_device(
    where: str, dispatches: int, uploads: int, downloads: int
):
    pipeline = fan(consumers=2, raw=True)
    plan = on(pipeline, adapters=where, tp_degree=2)
    assert plan.summary["dispatches"] == dispatches
    assert (plan.summary["uploads"], plan.summary["downloads"]) == (2 * uploads, downloads)
    inputs = {"x": torch.arange(8.0).reshape(2, 4)}
    with plan.load() as session:
        given = session(**inputs)
        stats = session.stats
    for name, wanted in run_reference(pipeline.freeze(), inputs).items():
        assert torch.equal(given[name], wanted)
    for name in ("uploads", "upload_bytes", "downloads", "download_bytes", "dispatches"):
        assert stats["measured"][DEVICE][name] == stats[name] == plan.summary[name]


@pytest.mark.parametrize("where", ["producer", "program"])
def test_a_chain_gives_on_the_device_what_it_gives_by_hand(where: str):
    pipeline, inputs = chained(), {"x": torch.arange(32.0).reshape(4, 8)}
    with on(pipeline, adapters=where).load() as session:
        (given,) = session(**inputs).values()
    (wanted,) = run_reference(pipeline.freeze(), inputs).values()
    assert torch.equal(given, wanted)
    assert given.dtype is torch.float16


def test_a_union_of_outputs_gives_every_call_its_own():
    pipeline, inputs = calls_of_one_stage(), {"x": torch.arange(8.0).reshape(2, 4)}
    with on(pipeline, adapters="producer").load() as session:
        given = session(**inputs)
    for name, wanted in run_reference(pipeline.freeze(), inputs).items():
        assert torch.equal(given[name], wanted)

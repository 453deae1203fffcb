"""What a run decided lies beside its sizes (names that break), and counters are bounded (kind K12)."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Dim, Pipeline, Plan
from orchestrator.plan.count import Tally
from orchestrator.runner.counters import LATEST, RequestStats
from tests.kit import new, spec


def loop_deciding(name: str) -> Pipeline:
    """A loop that decides how often it runs, beside an input with a dim of any name."""
    step = new("step")
    x = step.input("x", spec(2))
    outputs = step.add("move", lambda v: (v + 1, (v > 3).all().reshape(1)), outputs=("x", "done"))(x)
    step.output("x", outputs[0])
    step.output("done", outputs[1])
    pipeline = new()
    y = pipeline.input("y", spec(Dim(name, (2, 4)), 3, pad=0))
    start = pipeline.input("x", spec(2))
    outputs = pipeline.loop("loop", step, carry={"x": start}, until="done", max_steps=6, collect=("x",))
    pipeline.output("y", pipeline.add("double", lambda v: v * 2)(y))
    pipeline.output("all", outputs)
    return pipeline


@pytest.mark.parametrize("name", ["steps of loop", "runs of loop", "inputs left out", "sizes", "R"])
def test_a_dim_may_be_called_like_anything_that_a_run_notes(name):
    def run(name: str) -> tuple[object, ...]:
        plan = loop_deciding(name).plan()
        assert Plan.from_json(plan.to_json()) == plan
        with plan.load() as session:
            result = session(y=torch.ones(3, 3), x=torch.zeros(2))
            return {key: value.tolist() for key, value in result.items()}, session.stats

    assert run(name) == run("rows")


def test_a_summary_is_told_how_often_a_loop_runs_by_the_name_in_the_plan():
    plan = loop_deciding("rows").plan()
    assert plan.summary_for({"steps of loop": 3})["dispatches"] == 1 + 3


def test_stats_are_exact_and_bounded_over_any_number_of_kinds():
    requests = RequestStats()
    kinds = 3 * LATEST
    for kind in [*range(kinds), *range(kinds), kinds - 1]:
        requests.count(kind, lambda kind=kind: Tally(uploads=kind, peak_bytes={"d": kind}))
    stats = requests.stats()
    assert stats["requests"] == 2 * kinds + 1
    assert stats["uploads"] == kinds * (kinds - 1) + kinds - 1
    assert stats["peak_bytes"] == {"d": kinds - 1}
    assert len(requests._latest) == LATEST

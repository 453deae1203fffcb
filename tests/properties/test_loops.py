"""Random loops give what a Python loop over the same modules gives by hand, and cost what their plans say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Plan, Session, StageError
from orchestrator.plan.steps import LoopLikeStep, iter_steps
from orchestrator.testing import assert_same, recording, run_reference
from tests.properties import test_neuron
from tests.properties.graphs import Draw
from tests.properties.loops import LoopCase, loop_cases, sizes_in_plan
from tests.properties.trials import Trial, examples, plans, requests

pytestmark = pytest.mark.usefixtures("shared_store")

LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")
NEURON = test_neuron.DEVICE


@st.composite
def trials(draw: Draw, neuron: bool = False, fails: bool = False) -> Trial:
    """Random pipelines with loops, planned, with requests."""
    case = draw(loop_cases().filter(lambda case: bool(case.fails)) if fails else loop_cases())
    plan = draw(test_neuron.plans(case) if neuron else plans(case))
    return Trial(case, plan, draw(requests(case, plan)), draw(requests(case, plan)))


def run(case: LoopCase, session: Session, sizes: dict[str, int], seed: int) -> dict[str, Any]:
    """Runs a request and compares it with the same modules called by hand."""
    inputs = case.inputs(sizes, seed)
    before = {name: value.clone() for name, value in inputs.items()}
    expected = run_reference(case.pipeline.freeze(), inputs)
    found = session(**inputs)
    assert_same(inputs, before)
    assert_same(found, expected, exact=False, rtol=1e-3, atol=1e-3)
    assert all(not value.requires_grad for value in found.values() if isinstance(value, torch.Tensor))
    return inputs


def check_counts(trial: Trial, stats: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Compares what a first request cost with the plan; tells whether every run of it had one size."""
    case, plan = trial.case, trial.plan
    assert isinstance(case, LoopCase)
    chunked = any(trial.first[dim.name] > dim.buckets[-1] for dim in case.outer(plan))
    if chunked and any(dim.decided_by for dim in plan.dims):
        return False
    expected = {"requests": 1, **plan.summary_for(sizes_in_plan(case, plan, trial.first, inputs))}
    if any(end.every > 1 for end in case.ends):  # what is collected is shorter than the loop was
        stats, expected = stats.copy(), expected.copy()
        peaks, most = stats.pop("peak_bytes"), expected.pop("peak_bytes")
        assert all(peaks[device] <= most[device] for device in most)
    assert stats == expected
    return not chunked


def has_strict_carries(plan: Plan) -> bool:
    """Tells whether a loop carries what is freed by call; what it starts with lives on, the plan counts it short."""
    heads = [carry.argument for step in iter_steps(plan.steps, LoopLikeStep) for carry in step.carries]
    return any(plan.values[head].memory.startswith("null") for head in heads)


@contextmanager
def load_from_json(trial: Trial) -> Iterator[Session]:
    """The plan of a trial, by way of JSON, loaded."""
    again = Plan.from_json(trial.plan.to_json())
    assert again == trial.plan
    assert str(again) == str(trial.plan)
    with trial.case.pipeline.bind(again).load() as session:
        yield session


@given(trials())
@settings(max_examples=examples(40))
def test_a_loop_gives_what_a_python_loop_gives(trial: Trial):
    with load_from_json(trial) as session:
        with recording() as record:
            inputs = run(trial.case, session, trial.first, 1)
            record.assert_no_leaks()
        stats, seen = session.stats, record.counts()
        assert {name: seen[name] for name in LINK} == {name: stats[name] for name in LINK}
        if (
            check_counts(trial, stats, inputs)
            and not any(dim.decided_by for dim in trial.plan.dims)
            and not has_strict_carries(trial.plan)
        ):
            peaks = {device: peak for device, peak in stats["peak_bytes"].items() if device != "cpu"}
            assert {device: seen["peak_bytes"].get(device, 0) for device in peaks} == peaks
        with recording() as record, session.trace() as trace:
            run(trial.case, session, trial.second, 2)
            record.assert_no_leaks()
        assert str(trace)


@given(trials(neuron=True))
@settings(max_examples=examples(12))
def test_the_emulated_device_loops_as_python_does(trial: Trial):
    with load_from_json(trial) as session:
        inputs = run(trial.case, session, trial.first, 1)
        stats = session.stats
        measured = stats.pop("measured")[NEURON]
        assert {name: measured[name] for name in LINK} == {name: stats[name] for name in LINK}
        if check_counts(trial, stats, inputs) and not any(dim.decided_by for dim in trial.plan.dims):
            assert measured["peak_bytes"] == stats["peak_bytes"][NEURON]
        # A second request runs every program again; an overwritten buffer that is still read would show here.
        run(trial.case, session, trial.second, 2)
        run(trial.case, session, trial.first, 1)


@given(trials(fails=True), st.integers(0, 10))
@settings(max_examples=examples(12))
def test_a_stage_that_fails_in_a_loop_leaks_nothing(trial: Trial, number: int):
    case = trial.case
    failing = case.fails[number % len(case.fails)]
    with load_from_json(trial) as session, recording() as record:
        inputs = run(case, session, trial.first, 4)
        before = session.stats
        failing.is_armed = True
        failure = None
        try:
            session(**inputs)
        except StageError as error:
            failure = error
        failing.is_armed = False
        if failure is not None:  # else no iteration reached it
            assert "the toy failed" in str(failure)
            assert isinstance(failure.__cause__, ValueError)
            assert session.stats == before
        record.assert_no_leaks()
        run(case, session, trial.second, 5)
        record.assert_no_leaks()


@given(st.booleans().flatmap(lambda neuron: trials(neuron=neuron)))
@settings(max_examples=examples(8))
def test_streamed_requests_keep_their_loops_apart(trial: Trial):
    asked = enumerate((trial.first, trial.second, trial.first))
    inputs = [trial.case.inputs(sizes, seed) for seed, sizes in asked]
    # By hand first: a stage that decides a size notes it in a list.
    expected = [run_reference(trial.case.pipeline.freeze(), one) for one in inputs]
    with trial.plan.load() as session:
        for found, wanted in zip(session.stream(inputs, depth=2), expected, strict=True):
            assert_same(found, wanted, exact=False, rtol=1e-3, atol=1e-3)

"""Random graphs give what the same modules give by hand, on every placement, and cost what their plans say."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Plan, Session, StageError
from orchestrator.planner.compilation import choose_regions
from orchestrator.runner.compiled import load as compiled
from orchestrator.runner.compiled.package import BuildReport
from orchestrator.runner.compiled.source import without_sizes
from orchestrator.testing import NullHandle, Record, assert_same, recording, run_reference
from tests.properties.graphs import Case
from tests.properties.trials import Trial, examples, trials

LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")
SUMS = (*LINK, "dispatches")


def is_exact(case: Case, plan: Plan, sizes: dict[str, int]) -> bool:
    """Tells whether nothing is padded and nothing runs in chunks."""
    born = [dim for dim in plan.dims if dim.decided_by]
    fits = all(sizes[dim.name] in dim.buckets for dim in case.outer(plan))
    return fits and all(case.crops[0].counts[-1] in (0, *dim.buckets) for dim in born)


def all_sizes(case: Case, plan: Plan, sizes: dict[str, int]) -> dict[str, int]:
    """Sizes of every name, those that the last request decided included."""
    return {**sizes, **{dim.name: case.crops[0].counts[-1] for dim in plan.dims if dim.decided_by}}


def run(case: Case, plan: Plan, session: Session, sizes: dict[str, int], seed: int) -> dict[str, Any]:
    """Runs a request and compares it with the same modules called by hand."""
    inputs = case.inputs(sizes, seed)
    expected = run_reference(case.pipeline.freeze(), inputs)
    exact = is_exact(case, plan, sizes)
    before = {name: value.clone() for name, value in inputs.items()}
    found = session(**inputs)
    assert_same(inputs, before)
    assert_same(found, expected, exact=exact, rtol=1e-4, atol=1e-4)
    assert all(not value.requires_grad for value in found.values() if isinstance(value, torch.Tensor))
    return inputs


def check_counts(
    case: Case, plan: Plan, sizes: dict[str, int], stats: dict[str, Any], record: Record
) -> None:
    """Compares what a first request cost with the plan, and with what the null devices saw."""
    seen = record.counts()
    assert {name: seen[name] for name in LINK} == {name: stats[name] for name in LINK}
    chunked = any(sizes[dim.name] > dim.buckets[-1] for dim in case.outer(plan))
    born = any(dim.decided_by for dim in plan.dims)
    if not (chunked and born):
        assert stats == {"requests": 1, **plan.summary_for(all_sizes(case, plan, sizes))}
    if not chunked and not born:
        null = {device: peak for device, peak in stats["peak_bytes"].items() if device != "cpu"}
        assert {device: seen["peak_bytes"].get(device, 0) for device in null} == null


@given(trials())
@settings(max_examples=examples(120))
def test_a_graph_gives_what_its_modules_give_by_hand(trial: Trial):
    case, plan = trial.case, trial.plan
    with plan.load() as session:
        with recording() as record:
            run(case, plan, session, trial.first, 1)
            record.assert_no_leaks()
        stats = session.stats
        check_counts(case, plan, trial.first, stats, record)
        with recording() as record, session.trace() as trace:
            run(case, plan, session, trial.second, 2)
            record.assert_no_leaks()
        assert str(trace)
        after = session.stats
        assert after["requests"] == 2
        seen = record.counts()
        assert {name: after[name] - stats[name] for name in LINK} == {name: seen[name] for name in LINK}


@given(trials())
@settings(max_examples=examples(40))
def test_a_plan_survives_json(trial: Trial):
    case, plan = trial.case, trial.plan
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert not plan.diff(again)
    assert str(again) == str(plan)
    with case.pipeline.bind(again).load() as session:
        run(case, again, session, trial.first, 3)


def eager_programs(_: Any, targets: Any, *__: Any) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Stands for the builder of compiled regions: each program runs the region's function, of dense tensors."""

    def program(function: Any) -> Any:
        def call(values: list[Any]) -> list[Any]:
            assert all(value.is_contiguous() for value in values)
            return list(function(*values))

        return call

    return {target.key: program(without_sizes(target.region.code)) for target in targets}, {}, []


@given(trials())
@settings(max_examples=examples(10))
def test_a_graph_with_compiled_regions_gives_what_its_modules_give_by_hand(trial: Trial):
    plan = choose_regions(trial.plan, "aot", None)
    stand_ins = {
        "_build": eager_programs,
        "read_report": lambda _: BuildReport(),
        "load_program": lambda program, *_: (program, {}),
    }
    with mock.patch.multiple(compiled, **stand_ins), plan.load() as session:
        run(trial.case, plan, session, trial.first, 1)
        run(trial.case, plan, session, trial.second, 2)


@given(trials(fails=True), st.integers(0, 10))
@settings(max_examples=examples(40))
def test_a_failing_stage_leaks_nothing_and_harms_no_later_request(trial: Trial, number: int):
    case, plan = trial.case, trial.plan
    failing = case.fails[number % len(case.fails)]
    with plan.load() as session, recording() as record:
        inputs = run(case, plan, session, trial.first, 4)
        before = session.stats
        failing.is_armed = True
        failure = None
        try:
            session(**inputs)
        except StageError as error:
            failure = error
        if failure is None:
            assert case.crops[0].counts[-1] == 0, "only a stage that no item reaches cannot fail"
        else:
            assert "the toy failed" in str(failure)
            assert isinstance(failure.__cause__, ValueError)
            assert session.stats == before
        record.assert_no_leaks()
        failing.is_armed = False
        run(case, plan, session, trial.second, 5)
        record.assert_no_leaks()


@given(trials(), st.sets(st.integers(0, 4), min_size=1))
@settings(max_examples=examples(40))
def test_kept_outputs_are_the_same_and_stay_until_close(trial: Trial, chosen: set[int]):
    case, plan = trial.case, trial.plan
    keep = sorted({plan.outputs[number % len(plan.outputs)][0] for number in chosen})
    inputs = case.inputs(trial.first, 6)
    expected = run_reference(case.pipeline.freeze(), inputs)
    with plan.load() as session, recording() as record:
        found = session.run(inputs, keep_on_device=keep)
        handles = [value for value in found.values() if isinstance(value, NullHandle)]
        record.assert_no_leaks(keep=handles)
        shown = {name: getattr(value, "_content", value) for name, value in found.items()}
        assert_same(shown, expected, exact=is_exact(case, plan, trial.first), rtol=1e-4, atol=1e-4)
        run(case, plan, session, trial.second, 7)
        record.assert_no_leaks(keep=handles)
        assert not any(handle.is_freed for handle in handles)

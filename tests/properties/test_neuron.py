"""Random graphs on the emulated Neuron device give what the same modules give by hand.

They cost what their plans say, by the device's own count.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import orchestrator_neuron
from orchestrator import Plan, Residency, TensorSpec
from orchestrator.testing import assert_same, run_reference
from orchestrator_neuron.emulated.runtime import LoadedProgram
from orchestrator_neuron.ranked import is_ranked
from tests.properties.graphs import Case, Draw, cases, plugins
from tests.properties.test_random_graphs import all_sizes
from tests.properties.trials import Trial, examples, requests

pytestmark = pytest.mark.usefixtures("shared_store")

DEVICE = "neuron-emulated"
COUNTS = ("uploads", "upload_bytes", "downloads", "download_bytes", "dispatches")
PLACES = ("cost", "producer", "consumer", "program", "host")

plugins().register(orchestrator_neuron)


def able(case: Case) -> list[str]:
    """Stages that can run on the device: no 64-bit floats, and no size is decided there."""
    graph = case.pipeline.freeze()
    plan = case.pipeline.plan("cpu", sizes=case.sizes)
    found = []
    for name, stage in graph.stages.items():
        calls = [call for call in plan.calls if call.stage == name]
        specs = [spec for call in calls for _, spec in (*call.inputs, *call.outputs)]
        wide = any(isinstance(spec, TensorSpec) and spec.dtype is torch.float64 for spec in specs)
        births = any(dim.decided_by.rpartition(".")[0] in {call.name for call in calls} for dim in plan.dims)
        if not stage.host and not wide and not births:
            found.append(name)
    return found


@st.composite
def plans(draw: Draw, case: Case, device: str = DEVICE, ranks: tuple[int, int] = (1, 2)) -> Plan:
    """A random plan: most stages on the device, a few on the processor; forced places and residencies."""
    stages = able(case)
    assume(stages)
    placement = {name: draw(st.sampled_from((device, device, device, "cpu"))) for name in stages}
    assume(device in placement.values())
    options = {"tp_degree": draw(st.integers(*ranks)), "adapters": draw(st.sampled_from(PLACES))}
    asked = {"placement": placement, "sizes": case.sizes, "options": options}
    plan = case.pipeline.plan(**asked)
    calls = {call.name for call in plan.calls if call.device == device}
    free = [
        str(edge)
        for edge in plan.edges
        if {edge.source.partition(".")[0], edge.target.partition(".")[0]} <= calls
    ]
    chosen = draw(st.lists(st.sampled_from(free), max_size=2, unique=True)) if free else []
    return case.pipeline.plan(**asked, residency=dict.fromkeys(chosen, Residency.HOST)) if chosen else plan


@st.composite
def trials(draw: Draw, device: str = DEVICE, ranks: tuple[int, int] = (1, 2)) -> Trial:
    """Random pipelines, planned, with requests."""
    case = draw(cases())
    plan = draw(plans(case, device, ranks))
    return Trial(case, plan, draw(requests(case, plan)), draw(requests(case, plan)))


def run(case: Case, session: Any, sizes: dict[str, int], seed: int) -> dict[str, Any]:
    """Runs a request and compares it with the same modules called by hand."""
    inputs = case.inputs(sizes, seed)
    expected = run_reference(case.pipeline.freeze(), inputs)
    assert_same(session(**inputs), expected, exact=False, rtol=1e-4, atol=1e-4)
    return inputs


@given(trials())
@settings(max_examples=examples(20))
def test_a_graph_gives_what_its_modules_give_by_hand(trial: Trial):
    case, plan = trial.case, trial.plan
    again = case.pipeline.bind(Plan.from_json(plan.to_json()))
    assert again == plan
    with again.load() as session:
        run(case, session, trial.first, 1)
        stats = session.stats
        measured = stats.pop("measured")[DEVICE]
        assert {name: measured[name] for name in COUNTS[:4]} == {name: stats[name] for name in COUNTS[:4]}
        chunked = any(trial.first[dim.name] > dim.buckets[-1] for dim in case.outer(plan))
        born = any(dim.decided_by for dim in plan.dims)
        if not (chunked and born):
            assert stats == {"requests": 1, **plan.summary_for(all_sizes(case, plan, trial.first))}
        if not chunked and not born:
            assert measured["peak_bytes"] == stats["peak_bytes"][DEVICE]
        # A second request runs every program again; an overwritten buffer that is still read would show here.
        run(case, session, trial.second, 2)
        run(case, session, trial.first, 1)


@given(trials(), st.integers(0, 4))
@settings(max_examples=examples(8))
def test_kept_outputs_outlive_later_requests(trial: Trial, number: int):
    case, plan = trial.case, trial.plan
    name = plan.outputs[number % len(plan.outputs)][0]
    inputs = case.inputs(trial.first, 3)
    expected = run_reference(case.pipeline.freeze(), inputs)
    with plan.load() as session:
        found = session.run(inputs, keep_on_device=[name])
        run(case, session, trial.second, 4)
        shown = found[name]
        if is_ranked(shown):
            shown = shown[0][0].to("cpu").to(expected[name].dtype)
        assert_same({name: shown}, {name: expected[name]}, exact=False, rtol=1e-4, atol=1e-4)


@contextlib.contextmanager
def restless(seed: object) -> Iterator[None]:
    """Rests a random while after each run of a program, so that requests interleave in many ways."""
    chance, run = random.Random(str(seed)), LoadedProgram.__call__

    def run_and_rest(self: LoadedProgram, *handles: Any) -> Any:
        result = run(self, *handles)
        time.sleep(chance.random() * 0.002)
        return result

    with mock.patch.object(LoadedProgram, "__call__", run_and_rest):
        yield


@given(trials())
@settings(max_examples=examples(6))
def test_streamed_requests_do_not_overwrite_one_another(trial: Trial):
    case, plan = trial.case, trial.plan
    requests_ = [
        case.inputs(sizes, seed)
        for seed, sizes in enumerate((trial.first, trial.second, trial.first, trial.second))
    ]
    # By hand first: a stage that decides a size notes it in a list.
    expected = [run_reference(case.pipeline.freeze(), inputs) for inputs in requests_]
    with plan.load() as session, restless(trial.first):
        for found, wanted in zip(session.stream(requests_, depth=4), expected, strict=True):
            assert_same(found, wanted, exact=False, rtol=1e-4, atol=1e-4)

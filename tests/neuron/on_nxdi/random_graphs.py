"""Random graphs on the real classes: results as by hand, copies and bytes as the plan says."""

from __future__ import annotations

import sys
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from on_nxdi.kit import RANKS, close, count_traffic
from orchestrator import Pipeline, TensorSpec
from tests.properties.test_neuron import COUNTS, all_sizes, run, trials
from tests.properties.trials import Trial, examples

#: What the simulated device counts.
TRAFFIC = COUNTS[:4]

QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def _traffic(stats: Any) -> tuple[int, ...]:
    return tuple(stats[name] for name in TRAFFIC)


@given(trials("nxdi", (RANKS, RANKS)))
@settings(max_examples=examples(5), derandomize=True, **QUIET)
def check_random_graphs(trial: Trial):
    """As :mod:`tests.properties.test_neuron` has it on the emulated device."""
    case, plan = trial.case, trial.plan
    decides = any(dim.decided_by for dim in plan.dims)
    with plan.load() as session:
        before = _traffic(session.stats)
        for seed, sizes in enumerate((trial.first, trial.second, trial.first)):
            with count_traffic() as counts:
                run(case, session, sizes, seed)
            after = _traffic(session.stats)
            assert counts.all() == tuple(new - old for new, old in zip(after, before, strict=True))
            before = after
            is_chunked = any(sizes[dim.name] > dim.buckets[-1] for dim in case.outer(plan))
            if not (is_chunked and decides):
                assert counts.all() == _traffic(plan.summary_for(all_sizes(case, plan, sizes)))
    sys.stdout.write(f"{len(plan.programs)} programs, {len(plan.calls)} calls: {counts}, as planned\n")


def check_dead_calls_and_what_the_host_alone_reads():
    """A call that nobody reads brings nothing down, and of a program that the host alone reads one rank comes down."""
    net = nn.Linear(4, 4).eval()
    for is_dead in (True, False):
        pipeline = Pipeline("calls")
        a, b = (pipeline.input(name, TensorSpec((2, 4))) for name in "ab")
        stage = pipeline.add("net", net)
        first = stage(a)
        if not is_dead:
            pipeline.output("first", first)
        pipeline.output("y", stage(b))
        plan = pipeline.plan(device="nxdi", options={"tp_degree": RANKS})
        assert plan.program("net").to_host is not is_dead
        inputs = {name: torch.randn(2, 4) for name in "ab"}
        with plan.load() as session, count_traffic() as counts:
            close(session(**inputs)["y"], net(inputs["b"]).detach())
        assert counts.all() == _traffic(plan.summary) == _traffic(session.stats)
        assert counts.down == (1 if is_dead else 2)

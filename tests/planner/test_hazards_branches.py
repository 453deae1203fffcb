"""Hazards of branches, loops and dead calls on several devices: what the planner makes, its own verifier takes.

Kind: a hazard that the pass does not see (reliability-10), which the verifier then refuses in words meant for edited
plans; and what is done for a call that nobody reads (fidelity-02).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Pipeline, Plan
from orchestrator.testing import run_reference
from tests.kit import Double, host, spec
from tests.planner.devices import DEVICE, STIFF, Plus, on, ranked
from tests.planner.overwriting import Calls, give

pytestmark = pytest.mark.usefixtures("shared_store", "shared_trials")

PLACES = (DEVICE, DEVICE, STIFF, "cpu", "cpu")


def branch(of: str = "both") -> Pipeline:
    """A stage that runs twice; what it gave first enters a branch, is there without it, or both."""
    pipeline, body = ranked(), ranked("body")
    x, asked = pipeline.input("x", spec(4, 2)), pipeline.input("asked", bool)
    body.output("y", body.add("twice", Double())(body.input("x", spec(4, 2))))
    enc = pipeline.add("enc", Plus())
    first = enc(x)
    second = enc(x)
    taken, otherwise = (first if of in (port, "both") else x for port in ("entry", "otherwise"))
    y = pipeline.when("w", body, inputs={"x": taken}, otherwise={"y": otherwise}, condition=asked)
    pipeline.output("second", second)
    pipeline.output("y", y)
    return pipeline


@pytest.mark.parametrize("of", ["entry", "otherwise", "both"])
@pytest.mark.parametrize("inside", ["cpu", DEVICE])
def test_a_branch_reads_what_enters_it_before_its_program_runs_again(of: str, inside: str):
    pipeline = branch(of)
    with pipeline.plan(placement={"enc": DEVICE, "w/twice": inside}).load() as session:
        for asked in (True, False, True):
            request = {"x": torch.arange(8.0).reshape(4, 2), "asked": asked}
            wanted = run_reference(pipeline.freeze(), request)
            assert {name: value.tolist() for name, value in session(**request).items()} == {
                name: value.tolist() for name, value in wanted.items()
            }


def test_what_enters_a_branch_too_late_goes_over_the_host():
    """The branch hangs on the second call, so that no order saves what the first one gave but a copy."""
    pipeline, body = ranked(), ranked("body")
    x = pipeline.input("x", spec(4, 2))
    body.output("y", body.add("twice", Double())(body.input("x", spec(4, 2))))
    enc = pipeline.add("own", Plus())
    first, second = enc(x), enc(enc(x))
    decide = host(pipeline, "decide", lambda v: bool(v.sum() > 0), asked=bool)
    y = pipeline.when("w", body, inputs={"x": first}, otherwise={"y": x}, condition=decide(second))
    pipeline.output("y", y)
    plan = pipeline.plan(placement={"own": STIFF, "w/twice": "cpu"})
    (edge,) = (edge for edge in plan.edges if (edge.source, edge.target) == ("own.output", "w.x"))
    assert edge.residency.value == "host"
    assert "copied out over the host" in edge.reason
    with plan.load() as session:
        for sign in (1.0, -1.0):
            x = sign * torch.full((4, 2), 9.0)
            assert torch.equal(session(x=x)["y"], run_reference(pipeline.freeze(), {"x": x})["y"])


def test_a_program_of_a_dead_call_does_not_hand_its_result_to_the_host():
    """Else the device brings down what nobody reads, and no plan counts it."""
    pipeline = ranked()
    a, b = (pipeline.input(name, spec(2, 4)) for name in "ab")
    enc = pipeline.add("enc", Double())
    enc(a)
    pipeline.output("y", enc(b))
    assert not on(pipeline).program("enc").to_host
    pipeline = ranked()
    enc = pipeline.add("enc", Double())
    for name in "ab":
        pipeline.output(f"y {name}", enc(pipeline.input(name, spec(2, 4))))
    assert on(pipeline).program("enc").to_host


class Bodies(Calls):
    """Calls with branches, loops and maps between them, in each other up to a depth."""

    depth = 0

    def make(self, count: int) -> None:
        for _ in range(count):
            kinds = ["one", "one", "own", "two", "join", "wide", "dead", "branch", "branch", "loop"]
            getattr(self, self.draw(st.sampled_from(kinds)))()

    def dead(self) -> None:
        """A call whose result nobody reads."""
        self._add("one", Double())(self._pick())

    def _body(self, count: int) -> tuple[Bodies, list[Any]]:
        """A body with inputs of the form of all values, and what is handed to them."""
        body = Bodies(ranked("body"), self.rows, self.draw)
        body.depth = self.depth + 1
        body.values = [body.pipeline.input(f"i{at}", spec(self.rows, 4)) for at in range(count)]
        entered = [self._pick() for _ in range(count)]
        body.make(self.draw(st.integers(1, 3)))
        return body, entered

    def branch(self) -> None:
        if self.depth > 1:
            return
        body, entered = self._body(self.draw(st.integers(1, 2)))
        for name in "yz":
            body.pipeline.output(name, self.draw(st.sampled_from(body.values[1:] or body.values)))
        names = [f"i{at}" for at in range(len(entered))]
        given_ = self.pipeline.when(
            self._name("when"),
            body.pipeline,
            inputs=dict(zip(names, entered, strict=True)),
            otherwise={"y": self._pick(), "z": self._pick()},
            condition=self._condition(),
        )
        self.values += given_

    def _condition(self) -> Any:
        if self.draw(st.booleans()):
            name = self._name("decide")
            return host(self.pipeline, name, lambda v: bool(v.sum() > 0), asked=bool)(self._pick())
        if self.depth:
            return True
        return self.pipeline.input(self._name("asked"), bool)

    def loop(self) -> None:
        if self.depth > 1:
            return
        body, entered = self._body(2)
        body.pipeline.output("i0", body.values[-1])
        self.values.append(
            self.pipeline.loop(
                self._name("loop"),
                body.pipeline,
                carry={"i0": entered[0]},
                inputs={"i1": entered[1]},
                max_steps=self.draw(st.integers(0, 3)),
            )
        )

    def _name(self, kind: str) -> str:
        self.count = getattr(self, "count", 0) + 1
        return f"{kind}{self.count}"


@st.composite
def branch_patterns(draw: Any) -> Pipeline:
    """Few stages, called many times, outside and inside of branches and loops."""
    calls = Bodies(ranked(), 2, draw)
    calls.values.append(calls.pipeline.input("x", spec(2, 4)))
    calls.make(draw(st.integers(2, 7)))
    give(calls.pipeline, draw, calls.values)
    return calls.pipeline


@given(branch_patterns(), st.data())
@settings(deadline=None, derandomize=True, database=None, max_examples=60)
def test_the_verifier_takes_every_plan_that_the_planner_makes(pipeline: Pipeline, data: Any):
    placement = {
        name: data.draw(st.sampled_from(PLACES))
        for name, stage in pipeline.freeze().stages.items()
        if not stage.host
    }
    plan = pipeline.plan("cpu", placement=placement)
    again = pipeline.bind(Plan.from_json(plan.to_json()))
    assert again == plan

"""Random modules with several entry points, in random graphs: results as by hand, weights once, one artifact."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from orchestrator import Pipeline, Plan
from orchestrator.store import ArtifactStore
from tests.kit import linear, spec
from tests.planner.test_applications import EMULATED, new, size_of

WIDTH, PARTS = 3, 4
#: Of each module its entry points, and of each of these the parts that it runs, in order.
Modules = list[list[tuple[int, ...]]]


class Points(nn.Module):
    """Parts that other modules may have, too, and entry points that each run some of them."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.eval()

    def run(self, x: torch.Tensor, *, order: tuple[int, ...] = ()) -> torch.Tensor:
        for number in order:
            x = torch.tanh(self.parts[number](x))
        return x


entry_points = st.lists(st.integers(0, PARTS - 1), min_size=1, max_size=3).map(tuple)
modules = st.lists(st.lists(entry_points, min_size=1, max_size=4), min_size=1, max_size=2)


def build(shapes: Modules, shares: bool) -> tuple[Pipeline, list[Points]]:
    """A chain of all entry points of all modules, which have their parts in common or not."""
    common = [linear(WIDTH, WIDTH, seed) for seed in range(PARTS)]
    own = [
        common if shares else [linear(WIDTH, WIDTH, 9 * at + seed) for seed in range(PARTS)]
        for at in range(2)
    ]
    owners = [Points(parts) for parts, _ in zip(own, shapes, strict=False)]
    pipeline = new("points")
    value = pipeline.input("x", spec(2, WIDTH))
    for at, (owner, orders) in enumerate(zip(owners, shapes, strict=True)):
        for number, order in enumerate(orders):
            stage = functools.partial(owner.run, order=order)
            value = pipeline.add(f"m{at}e{number}", stage, inputs=("x",))(value)
    pipeline.output("y", value)
    return pipeline, owners


def by_hand(shapes: Modules, owners: list[Points], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for owner, orders in zip(owners, shapes, strict=True):
            for order in orders:
                x = owner.run(x, order=order)
    return x


def check_plan(plan: Plan, shapes: Modules, shares: bool, owners: list[Points]) -> None:
    """Weights are there once, and the stages that have one in common are together."""
    names = [[f"m{at}e{number}" for number in range(len(orders))] for at, orders in enumerate(shapes)]
    groups = [list(itertools.chain(*names))] if shares else names
    assert [list(item.stages) for item in plan.applications] == [group for group in groups if len(group) > 1]
    assert dict(plan.weights) == {plan.groups[0].device: size_of(*owners)}
    assert Plan.from_json(plan.to_json()) == plan


@given(shapes=modules, shares=st.booleans())
@settings(max_examples=12, deadline=None)
def test_plans_of_random_modules_have_their_weights_once(shapes: Modules, shares: bool):
    pipeline, owners = build(shapes, shares)
    for device in ("cpu", EMULATED):
        plan = pipeline.plan(device)
        check_plan(plan, shapes, shares, owners)
        assert pipeline.bind(Plan.from_json(plan.to_json())).applications == plan.applications


@given(shapes=modules, shares=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=4, deadline=None)
def test_random_modules_give_what_they_give_by_hand(shapes: Modules, shares: bool, seed: int):
    pipeline, owners = build(shapes, shares)
    x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    with tempfile.TemporaryDirectory() as folder:
        for device in ("cpu", EMULATED):
            plan = pipeline.plan(device).compile(folder)
            with plan.load() as session:
                torch.testing.assert_close(session(x=x)["y"], by_hand(shapes, owners, x))
        assert len(ArtifactStore(folder).entries()) == (1 if shares else len(shapes))

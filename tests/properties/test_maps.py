"""Random maps and branches give what a call for each item gives by hand, and cost what the device counts."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from orchestrator import Pipeline
from tests.bodies import DEVICES, SIZES, check, items, mapped, picture_model, reader
from tests.kit import Double, spec
from tests.properties.graphs import Draw
from tests.properties.trials import examples

BUCKETS = st.sets(st.integers(1, 6), min_size=1, max_size=3).map(lambda sizes: tuple(sorted(sizes)))


class Shift(nn.Module):
    """Adds what all items share."""

    def forward(self, crop: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return crop * 2 + by


@st.composite
def maps(draw: Draw) -> tuple[Pipeline, list[dict[str, Any]]]:
    """A pipeline with a map, and requests with any number of items of any widths that fit."""
    counts, widths = draw(BUCKETS), draw(BUCKETS)
    shared = draw(st.booleans())
    inner = reader(Double(), counts, widths)
    if shared:
        inner = Pipeline("shifted")
        crop = inner.input("crop", reader(Double(), counts, widths).freeze().inputs["crop"])
        inner.output("y", inner.add("shift", Shift())(crop, inner.input("by", spec(1))))
    pipeline = mapped(inner, **({"by": spec(1)} if shared else {}))
    requests = []
    for seed in range(2):
        sizes = draw(st.lists(st.integers(1, widths[-1]), max_size=9))
        more = {"by": torch.full((1,), float(seed))} if shared else {}
        requests.append({"crops": items(*sizes, seed=seed), **more})
    return pipeline, requests


@given(maps(), st.sampled_from(sorted(DEVICES)))
@settings(max_examples=examples(30))
def test_a_map_gives_what_a_call_for_each_item_gives(
    case: tuple[Pipeline, list[dict[str, Any]]], device: str
):
    check(*case, device)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(sorted(DEVICES)),
)
@settings(max_examples=examples(20))
def test_a_branch_runs_for_the_requests_that_want_it(
    wishes: list[tuple[int, bool, bool]], condition: bool, device: str
):
    requests = []
    for count, given_image, look in wishes:
        request = {"text": torch.randn(count, 4)}
        request |= {"image": torch.randn(count, 6)} if given_image else {}
        request |= {"look": torch.tensor([look])} if condition else {}
        requests.append(request)
    check(picture_model(condition=condition), requests, device, SIZES)

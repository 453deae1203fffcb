"""The pipeline `digits` on the emulated device: the pictures of the processor, and latents that never leave it."""

from __future__ import annotations

import pytest

from orchestrator_stages.digits.pipeline import digits
from tests.stages.painting import Painting

DEVICE = "neuron-emulated"
LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")
PROMPTS = ["the bold digit 7 leaning right", "a thin 3"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_pictures_are_those_of_a_loop_by_hand_at_the_planned_cost(ranks):
    pipeline = digits(steps=4, strip=True, batch=2)
    with pipeline.plan(DEVICE, options={"tp_degree": ranks}).load() as session:
        result, stats = session(prompt="\n".join(PROMPTS)), session.stats
    assert result["pictures"].equal(Painting()(PROMPTS, steps=4).pictures)
    assert {name: stats["measured"][DEVICE][name] for name in LINK} == {name: stats[name] for name in LINK}


def test_more_steps_move_no_more_than_their_times():
    """A value up and down at each step is what pipelines of NxD Inference do today."""
    ten, fifty = (digits(steps=steps, batch=1).plan(DEVICE).summary for steps in (10, 50))
    assert fifty["downloads"] == ten["downloads"] == 1
    assert fifty["download_bytes"] == ten["download_bytes"] == 32 * 32
    assert fifty["upload_bytes"] - ten["upload_bytes"] <= 40 * (8 + 4 * 4)

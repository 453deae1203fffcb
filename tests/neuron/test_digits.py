"""The pipeline `digits` on the emulated device: the pictures of the processor, and latents that never leave it."""

from __future__ import annotations

import pytest

from orchestrator_stages.demos.digits.pipeline import digits
from tests.stages.demos.painting import Painting

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


def test_a_step_moves_its_time_and_row_where_pipelines_of_nxd_inference_move_every_value():
    once, twice = (digits(steps=steps, batch=1).plan(DEVICE) for steps in (1, 2))
    step = {name: twice.summary[name] - once.summary[name] for name in LINK}
    assert step == {"uploads": 2, "upload_bytes": 4 + 4 * 4, "downloads": 0, "download_bytes": 0}
    up = sum(edge.bytes for edge in once.edges if edge.target.startswith("denoise/"))
    down = sum(edge.bytes for edge in once.edges if edge.source.startswith("denoise/"))
    assert up + down == 5420

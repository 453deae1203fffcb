"""Models of transformers that generate: one application that reads a prompt and goes on with it."""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
from torch import Tensor

from on_nxdi.kit import RANKS, count_traffic
from orchestrator.plan import Plan
from orchestrator_stages import from_transformers
from orchestrator_stages.generation.follow import AXES
from tests.stages import tiny_models
from tests.stages.generation import tiny, tiny_items

NEW, ROWS = 4, 3
TEXTS = ("input_ids", "attention_mask")


def _same_as_generate(model: Any, request: dict[str, Tensor], rounds: int, **sizes: Any) -> Plan:
    """Compares tokens with those of `generate()`, and copies over the link with those of the plan.

    Args:
        model: The model.
        request: What ``generate()`` takes.
        rounds: How often the loop of the pipeline runs.
        sizes: Further options of `from_transformers`.
    """
    expected = model.generate(**request, max_new_tokens=NEW, do_sample=False, num_beams=1)
    assert expected.shape[1] - NEW in (1, request["input_ids"].shape[1]), "the loop ends by its length"
    # Grids and types of tokens are the same for each picture: the example says them once.
    request = {name: value for name, value in request.items() if name in TEXTS or value.is_floating_point()}
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(ROWS,), **sizes)
    plan = pipeline.plan(device="nxdi", options={"tp_degree": RANKS})
    names = ("uploads", "upload_bytes", "downloads", "download_bytes")
    is_counted = any(call.name == "positions" for call in plan.calls)
    positions = 4 * AXES * request["input_ids"].numel() if is_counted else 0
    most = RANKS * (positions + sum(value.nbytes for value in request.values()))
    with plan.load() as session:
        for _ in range(2):
            with count_traffic() as counts:
                tokens = session(**request)["tokens"]
            assert tokens.equal(expected), (tokens, expected)
            assert counts.all() == tuple(plan.summary[name] for name in names), (counts, plan.summary)
            sys.stdout.write(f"{plan.pipeline}: {counts}, as planned\n")
            # Up go the request and positions that the host counts, to each rank; down come a flag for each round, and
            # the tokens, 4 bytes each.
            assert (counts.down, counts.down_bytes) == (rounds + 1, rounds + 4 * ROWS * NEW)
            assert counts.up_bytes <= most
    # The cache is state of the application that has both the prompt's stage and the loop's.
    assert plan.states
    for state in plan.states:
        stages = {port.rpartition(".")[0] for port in (state.start, *(each.output for each in state.updates))}
        assert any(stages <= set(part.stages) for part in plan.applications), state
    return plan


def check_model_that_goes_on_with_its_prompt():
    _same_as_generate(tiny.tiny("llama"), tiny.prompts(5, 3, 2), NEW - 1, tokens=(5,))


def check_encoder_and_decoder():
    _same_as_generate(tiny_models.tiny("t5"), tiny_models.inputs("t5"), NEW, tokens=(9,))


def check_pictures_among_the_tokens_of_a_prompt():
    for name in ("llava", "qwen2-vl"):
        # Two pictures, none, and one; the second prompt is shorter.
        ids = torch.randint(3, 90, (ROWS, 11), generator=torch.Generator().manual_seed(1))
        ids[0, 1:5], ids[0, 6:10], ids[2, 3:7] = (tiny_items.ITEM,) * 3
        mask = torch.ones_like(ids)
        ids[1, :2], mask[1, :2] = tiny.PAD, 0
        prompts = {"input_ids": ids, "attention_mask": mask}
        request = prompts | tiny_items.items_in(name, ids)
        plan = _same_as_generate(
            tiny_items.tiny_with_items(name),
            request,
            NEW - 1,
            tokens=(11,),
            items=(3,),
            example=tiny_items.item_of(name),
        )
        assert re.search(r"on device +vision\.output, .* remain on the device", str(plan)), plan

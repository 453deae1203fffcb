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
from tests.stages import tiny_models
from tests.stages.generation import tiny, tiny_items

NEW, ROWS = 4, 3


def _same_as_generate(model: Any, request: dict[str, Tensor], rounds: int, **sizes: Any) -> Plan:
    """Compares tokens with those of `generate()`, and copies over the link with those of the plan.

    Args:
        model: The model.
        request: What goes in.
        rounds: How often the loop of the pipeline runs.
        sizes: Further options of `from_transformers`.
    """
    expected = model.generate(**request, max_new_tokens=NEW, do_sample=False, num_beams=1)
    assert expected.shape[1] - NEW in (1, request["input_ids"].shape[1]), "the loop ends by its length"
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(ROWS,), **sizes)
    plan = pipeline.plan(device="nxdi", options={"tp_degree": RANKS})
    names = ("uploads", "upload_bytes", "downloads", "download_bytes")
    with plan.load() as session:
        for _ in range(2):
            with count_traffic() as counts:
                tokens = session(**request)["tokens"]
            assert tokens.equal(expected), (tokens, expected)
            assert counts.all() == tuple(plan.summary[name] for name in names), (counts, plan.summary)
            sys.stdout.write(f"{plan.pipeline}: {counts}, as planned\n")
            # Up goes the request, to each rank; down come a flag for each round, and the tokens, 4 bytes each.
            assert (counts.down, counts.down_bytes) == (rounds + 1, rounds + 4 * ROWS * NEW)
            assert counts.up_bytes <= RANKS * sum(value.nbytes for value in request.values())
    # The cache is state of the application that has both the prompt's stage and the loop's.
    assert plan.states
    for state in plan.states:
        stages = {state.start.rpartition(".")[0], state.output.rpartition(".")[0]}
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

"""Pictures among the tokens that an encoder reads: Florence-2 gives the tokens of its `generate()`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import GraphError, InputError
from orchestrator_stages import from_transformers
from tests.stages.tiny_models import EOS, PAD, START, TEXT, transformers

NEW, ITEM = 4, 98
VISION = {
    "depths": [1, 1],
    "patch_size": [3, 3],
    "patch_stride": [2, 2],
    "patch_padding": [1, 1],
    "patch_prenorm": [False, True],
    "embed_dim": [8, 16],
    "num_heads": [2, 2],
    "num_groups": [2, 2],
    "window_size": 2,
    "projection_dim": 32,
    "max_position_embeddings": 10,
}


def florence() -> Any:
    if not hasattr(transformers, "Florence2ForConditionalGeneration"):
        pytest.skip("this version of transformers has no Florence2")
    config = transformers.Florence2Config(
        vision_config=VISION,
        text_config={"model_type": "bart", **TEXT},
        image_token_id=ITEM,
        tie_word_embeddings=False,
        is_encoder_decoder=True,
    )
    model = transformers.Florence2ForConditionalGeneration(config).eval()
    torch.manual_seed(2)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5)
    model.generation_config.update(decoder_start_token_id=START, eos_token_id=EOS, pad_token_id=PAD)
    return model


def count_of(model: Any) -> int:
    with torch.no_grad():
        return model.get_image_features(torch.zeros(1, 3, 16, 16)).pooler_output.shape[1]


def request_of(count: int) -> dict[str, Tensor]:
    """One text with two pictures, and one with none, which is shorter."""
    ids = torch.randint(3, 90, (2, 2 * count + 3), generator=torch.Generator().manual_seed(1))
    ids[0, 1 : 1 + count] = ITEM
    ids[0, 2 + count : 2 + 2 * count] = ITEM
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def pixels(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def pipeline_of(model: Any, count: int) -> Any:
    example = {"input_ids": torch.full((1, count), ITEM), "pixel_values": pixels()[:1]}
    return from_transformers(
        model, max_new_tokens=NEW, batch=(2,), tokens=(2 * count + 3,), items=(2,), example=example
    )


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
def test_same_as_generate_with_two_pictures_in_a_text_and_none_in_another(device: str):
    model = florence()
    request = request_of(count_of(model))
    expected, other = (
        model.generate(**request, pixel_values=pixels(seed), max_new_tokens=NEW, do_sample=False, num_beams=1)
        for seed in (0, 3)
    )
    assert not expected.equal(other), "pictures that change nothing show nothing"
    plan = pipeline_of(model, count_of(model)).plan(device=device)
    with plan.load() as session:
        assert session(**request, pixel_values=pixels())["tokens"].equal(expected)
        with pytest.raises(InputError, match=f"stand for images of {count_of(model)} each.* holds 1 of 1"):
            session(**request, pixel_values=pixels()[:1])


def test_what_is_not_known_of_pictures_is_asked_for():
    class Tokenizer:
        """Stands for one of the library."""

        def __call__(self) -> None: ...
        def decode(self) -> None: ...

    with pytest.raises(GraphError, match="example="):
        from_transformers(florence(), max_new_tokens=NEW)
    with pytest.raises(GraphError, match="processor="):
        from_transformers(florence(), Tokenizer(), max_new_tokens=NEW)

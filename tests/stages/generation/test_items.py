"""Pictures and recordings among the tokens of a prompt: pipelines give the tokens that the models generate."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import GraphError, InputError, StageError
from orchestrator_stages import Family, from_transformers, register_family
from orchestrator_stages.generation import families
from tests.stages.generation.tiny import PAD, transformers
from tests.stages.generation.tiny_items import ITEM, MODELS, item_of, items_in, tiny_with_items

NEW = 4
LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")


def pipeline_of(name: str, model: Any, **options: Any) -> Any:
    count = MODELS[name][-1]
    sizes = {"batch": (2,), "tokens": (2 * count + 3,), "items": (2,), "example": item_of(name)}
    return from_transformers(model, **{"max_new_tokens": NEW, **sizes, **options})


def prompts_with_items(count: int) -> dict[str, Tensor]:
    """One prompt with two items and one with none, which is shorter."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (2, 2 * count + 3), generator=generator)
    ids[0, 1 : 1 + count] = ITEM
    ids[0, 2 + count : 2 + 2 * count] = ITEM
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def padded_on_the_right(prompts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same prompts with the padding of each behind its tokens."""
    empty = (prompts["attention_mask"] == 0).sum(1)
    return {
        name: torch.stack([row.roll(-int(count)) for row, count in zip(value, empty, strict=True)])
        for name, value in prompts.items()
    }


def numbers_of(request: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in request.items() if value.is_floating_point()}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.versions] if name in ("llava", "qwen2-vl") else [])
        for name in MODELS
    ],
)
def test_same_as_generate_with_two_items_in_a_prompt_and_none_in_another(name: str):
    """Of prompts of different lengths, padded on either side."""
    model, prompts = tiny_with_items(name), prompts_with_items(MODELS[name][-1])
    items, others = (items_in(name, prompts["input_ids"], seed) for seed in (0, 3))
    expected, other = (
        model.generate(**prompts, **each, max_new_tokens=NEW, do_sample=False) for each in (items, others)
    )
    assert not expected.equal(other), "pictures that change nothing show nothing"
    with pipeline_of(name, model).plan().load() as session:
        assert session(**prompts, **numbers_of(items))["tokens"].equal(expected)
        tokens = session(**padded_on_the_right(prompts), **numbers_of(items))["tokens"]
        assert tokens[:, -NEW:].equal(expected[:, -NEW:])
    assert torch.is_grad_enabled()


def test_guidance_runs_the_model_a_second_time_without_pictures():
    model, prompts = tiny_with_items("llava"), prompts_with_items(MODELS["llava"][-1])
    items, scale = items_in("llava", prompts["input_ids"]), {"guidance_scale": 1.7, "max_new_tokens": NEW}
    expected, without = (
        model.generate(**prompts, **items, **{**scale, **more}, do_sample=False)
        for more in ({}, {"guidance_scale": 1})
    )
    assert not expected.equal(without), "guidance that changes nothing shows nothing"
    with pipeline_of("llava", model, **scale).plan().load() as session:
        assert session(**prompts, **numbers_of(items))["tokens"].equal(expected)
    with pytest.raises(GraphError, match="counts the positions of both runs in one place"):
        pipeline_of("qwen2-vl", tiny_with_items("qwen2-vl"), **scale)


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_a_token_for_items_may_lie_beyond_the_vocabulary(name: str):
    """Features replace it, so the tokens are those of the same model with any other token in its place."""
    model, prompts = tiny_with_items(name), prompts_with_items(MODELS[name][-1])
    items, example = items_in(name, prompts["input_ids"]), item_of(name)
    expected = model.generate(**prompts, **items, max_new_tokens=NEW, do_sample=False)
    model.config.image_token_id = model.model.config.image_token_id = 32000
    for ids in (prompts, example):
        ids["input_ids"] = ids["input_ids"].masked_fill(ids["input_ids"] == ITEM, 32000)
    with pipeline_of(name, model, example=example).plan().load() as session:
        tokens = session(**prompts, **numbers_of(items))["tokens"]
    length = prompts["input_ids"].shape[1]
    assert tokens[:, :length].equal(prompts["input_ids"])
    assert tokens[:, length:].equal(expected[:, length:])


@pytest.mark.parametrize("name", ["llava", "qwen2-vl"])
def test_what_an_encoder_gave_stays_on_the_device(name: str):
    model, prompts = tiny_with_items(name), prompts_with_items(MODELS[name][-1])
    items = items_in(name, prompts["input_ids"])
    plan = pipeline_of(name, model).plan(device="neuron-emulated")
    with plan.load() as session:
        expected = model.generate(**prompts, **items, max_new_tokens=NEW, do_sample=False)
        assert session(**prompts, **numbers_of(items))["tokens"].equal(expected)
        counts, rows = session.stats, len(expected)
    # Down come a flag for each round of the loop, and the tokens at its end, 4 bytes each; else nothing does.
    assert counts["download_bytes"] == (NEW - 1) + 4 * rows * NEW == plan.summary["download_bytes"]
    measured = counts["measured"]["neuron-emulated"]
    assert {name: measured[name] for name in LINK} == {name: counts[name] for name in LINK}
    assert re.search(r"on device +vision\.output, .* remain on the device", str(plan))
    edges = {edge.source: edge.residency.value for edge in plan.edges}
    assert edges["vision.output"] == "device"
    assert edges.get("projector.output", "device") == "device"
    assert edges["merge.inputs_embeds"] == "device"


def test_an_encoder_has_a_placement_of_its_own():
    placement = dict.fromkeys(("vision", "projector"), "neuron-emulated")
    plan = pipeline_of("llava", tiny_with_items("llava")).plan(placement=placement)
    places = {call.name: str(call.device) for call in plan.calls}
    assert places["vision"] == places["projector"] == "neuron-emulated"
    assert places["merge"] == places["prefill"] == "cpu"


def test_items_and_their_tokens_have_to_match():
    prompts = prompts_with_items(4)
    with pipeline_of("llava", tiny_with_items("llava")).plan().load() as session:
        # Nothing is run yet, so this is about the request.
        with pytest.raises(InputError, match=r"8 tokens 98 that stand for images of 4 each.* holds 1 of 1"):
            session(**prompts, pixel_values=torch.randn(1, 3, 16, 16))
        without = {**prompts, "input_ids": prompts["input_ids"].masked_fill(prompts["input_ids"] == ITEM, 5)}
        expected = tiny_with_items("llava").generate(**without, max_new_tokens=NEW, do_sample=False)
        none = session(**without, pixel_values=torch.zeros(0, 3, 16, 16))
        assert none["tokens"].equal(expected)


def test_an_example_says_what_the_config_does_not():
    with pytest.raises(GraphError, match="example="):
        from_transformers(tiny_with_items("qwen2-vl"))
    with pytest.raises(GraphError, match="'pixel_values'"):
        from_transformers(tiny_with_items("llava"), example={"input_ids": torch.ones(1, 4)})
    with pytest.raises(GraphError, match="tokens="):
        pipeline_of("llava", tiny_with_items("llava"), tokens=(4,), max_new_tokens=1)


def llava_processor() -> Any:
    """The library's own processor of Llava, with words that are numbers."""
    words = {"<pad>": PAD, "<image>": ITEM, **{str(token): token for token in range(2, 90)}}
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return transformers.LlavaProcessor(
        pictures,
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def test_texts_and_pictures_go_in_with_a_processor():
    model, processor = tiny_with_items("llava"), llava_processor()
    generator = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=generator).numpy() for _ in range(2)
    ]
    text = ["5 <image> 6 <image> 7", "8 9"]
    request = processor(text=text, images=pictures, return_tensors="pt", padding=True, padding_side="left")
    expected = model.generate(**request, max_new_tokens=NEW, do_sample=False)
    pipeline = from_transformers(
        model, None, processor, max_new_tokens=NEW, batch=(2,), tokens=(12,), items=(2,)
    )
    with pipeline.plan().load() as session:
        result = session(text=text, image=pictures)
        assert result["tokens"].equal(expected)
        assert result["text"] == processor.batch_decode(expected[:, request["input_ids"].shape[1] :])
        with pytest.raises(StageError, match="largest bucket is 12"):
            session(text=["<image> <image> <image> 5"], image=[*pictures, pictures[0]])


def test_a_family_may_say_how_its_models_are_followed():
    trees = []
    family = Family(prepare=lambda tree: trees.append(tree) or tree, example=lambda _: item_of("llava"))
    register_family("llava", family)
    try:
        model = tiny_with_items("llava")
        from_transformers(model, batch=(1,), tokens=(8,), max_new_tokens=2)
        assert [type(tree) for tree in trees] == [type(model)]
        assert trees[0] is not model
        with pytest.raises(GraphError, match="'llava' have a family already"):
            register_family("llava", family)
    finally:
        families._FAMILIES.pop("llava")

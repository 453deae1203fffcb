"""What happens to prompts and seeds on the host, against diffusers' own functions."""

from __future__ import annotations

import re

import pytest
import torch

from orchestrator import Dim
from orchestrator_stages.diffusion import toy
from orchestrator_stages.diffusion.latents import LatentNoise, draw, pack
from orchestrator_stages.diffusion.tokens import PromptTokenizer, Tokens

IMAGES = Dim("images", buckets=(1, 2, 4))
LONG = "cat " * 40


@pytest.fixture(scope="module")
def reader() -> PromptTokenizer:
    pytest.importorskip("transformers")
    tokenizer = toy.clip_tokenizer()
    return PromptTokenizer(tokenizer, tokenizer.model_max_length)


@pytest.fixture(scope="module")
def tokens(reader: PromptTokenizer) -> Tokens:
    return Tokens([reader], IMAGES, negative=True)


def test_a_prompt_has_the_ids_of_its_tokenizer(tokens, reader):
    given = tokens(["a cat", "two dogs"], "ugly")
    assert given["count"] == 2
    assert given["negated"]
    for port, texts in (("ids_1", ["a cat", "two dogs"]), ("negative_ids_1", ["ugly", "ugly"])):
        expected = reader.tokenizer(texts, padding="max_length", max_length=toy.WORDS, return_tensors="pt")
        assert given[port].equal(expected.input_ids)


def test_no_negative_prompt_is_the_empty_one(tokens):
    without, empty = tokens("a cat"), tokens("a cat", "")
    assert without["negative_ids_1"].equal(empty["negative_ids_1"])
    assert not without["negated"]
    assert empty["negated"]


def test_several_images_of_a_prompt_lie_side_by_side(tokens):
    given = tokens(["a cat", "two dogs"], num_images_per_prompt=2)
    assert given["count"] == 4
    assert given["ids_1"].equal(tokens(["a cat", "a cat", "two dogs", "two dogs"])["ids_1"])


def test_a_second_encoder_reads_the_second_prompt(reader):
    tokens = Tokens([reader, reader], IMAGES, negative=True)
    both = tokens("a cat", "ugly")
    assert both["ids_1"].equal(both["ids_2"])
    assert both["negative_ids_1"].equal(both["negative_ids_2"])
    other = tokens("a cat", "ugly", "two dogs", "grey")
    assert other["ids_1"].equal(both["ids_1"])
    assert other["ids_2"].equal(tokens("two dogs")["ids_1"])
    assert other["negative_ids_2"].equal(tokens("grey")["ids_1"])


def test_words_of_textual_inversion_are_replaced(reader):
    converted = PromptTokenizer(
        reader.tokenizer, reader.length, lambda texts, _: [text.replace("<it>", "cat") for text in texts]
    )
    assert converted.ids(["a <it>"], truncate=False).equal(reader.ids(["a cat"], truncate=False))


def test_a_prompt_that_is_too_long_is_refused_or_cut(tokens, reader):
    with pytest.raises(ValueError, match=re.escape("122 tokens, but its text encoder takes 77 at most")):
        tokens(LONG)
    with pytest.raises(ValueError, match="truncate=True"):
        tokens("a cat", LONG)
    cutting = Tokens([reader], IMAGES, negative=True, truncate=True)
    with pytest.warns(UserWarning, match="its end was cut off"):
        given = cutting(LONG)
    expected = reader.tokenizer(
        [LONG], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    assert given["ids_1"].equal(expected.input_ids)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"prompt": None}, TypeError, "prompt is a text or a list of texts, not None"),
        ({"prompt": 7}, TypeError, "not 7"),
        ({"prompt": ["a", 7]}, TypeError, "prompt is a text or a list"),
        ({"prompt": []}, ValueError, "prompt has 0 texts"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, ValueError, "3 texts for 2 prompts"),
        ({"prompt": "a", "num_images_per_prompt": 0}, ValueError, "at least 1, not 0"),
    ],
)
def test_bad_prompts(tokens, given, error, message):
    with pytest.raises(error, match=message):
        tokens(**given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_seeds_draw_what_diffusers_draws(dtype):
    randn = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    shape = (3, 4, 8, 8)

    def made(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    assert draw(shape, 5, dtype).equal(randn(shape, generator=made(5), dtype=dtype))
    assert draw(shape, made(5), dtype).equal(randn(shape, generator=made(5), dtype=dtype))
    several = [made(seed) for seed in (1, 2, 3)]
    assert draw(shape, [1, 2, 3], dtype).equal(randn(shape, generator=several, dtype=dtype))
    assert draw(shape, [5], dtype).equal(draw(shape, 5, dtype))


def test_no_seed_is_the_generator_of_torch():
    torch.manual_seed(3)
    first = draw((1, 2), None, torch.float32)
    torch.manual_seed(3)
    assert draw((1, 2), None, torch.float32).equal(first)


def test_a_generator_goes_on_where_it_was():
    generator = torch.Generator().manual_seed(0)
    assert not draw((1, 2), generator, torch.float32).equal(draw((1, 2), generator, torch.float32))


@pytest.mark.parametrize("seed", ["7", 1.5, True, [1, None], [[1]]])
def test_bad_seeds(seed):
    with pytest.raises(TypeError, match="seed is an int or a "):
        draw((2, 3), seed, torch.float32)


def test_as_many_seeds_as_images():
    with pytest.raises(ValueError, match="3 seeds for 2 images"):
        draw((2, 3), [1, 2, 3], torch.float32)


def test_packing_is_that_of_flux_and_is_undone():
    flux = pytest.importorskip("diffusers").FluxPipeline
    from orchestrator_stages.diffusion.decoders import Unpack

    latents = torch.randn(2, 4, 6, 8)
    assert pack(latents).equal(flux._pack_latents(latents, 2, 4, 6, 8))
    assert Unpack(6, 8)(pack(latents)).equal(latents)


def test_noise_starts_as_strong_as_the_schedule_says():
    noise = LatentNoise(IMAGES, (4, 8, 8), torch.float32)
    assert noise(2, 1.0, 3).equal(draw((2, 4, 8, 8), 3, torch.float32))
    assert noise(2, 14.5, 3).equal(draw((2, 4, 8, 8), 3, torch.float32) * 14.5)
    assert LatentNoise(IMAGES, (4, 8, 8), torch.float32, is_packed=True)(2, 1.0, 3).equal(
        pack(noise(2, 1.0, 3))
    )

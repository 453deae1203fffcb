"""With a tokenizer or a processor, a request is what a person has: texts, recordings, pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator import Dim, Pipeline, StageError, TensorSpec
from orchestrator_stages import from_transformers
from tests.stages.tiny_models import EOS, PAD, START, VOCABULARY, generated, inputs, texts, tiny, transformers

NEW = 8


def tokenizer() -> Any:
    """Words `w0`, `w1`, ... are the tokens 0, 1, ..."""
    import tokenizers

    names = {PAD: "<pad>", EOS: "<end>", START: "<start>"}
    words = {names.get(token, f"w{token}"): token for token in range(VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", bos_token="<start>", unk_token="<pad>"
    )


def written(request: dict[str, torch.Tensor]) -> list[str]:
    rows = zip(request["input_ids"].tolist(), request["attention_mask"].sum(1).tolist(), strict=True)
    return [" ".join(f"w{token}" for token in row[:length]) for row, length in rows]


@pytest.fixture(scope="module")
def session():
    pipeline = from_transformers(tiny("bart"), tokenizer(), max_new_tokens=NEW, batch=(1, 4), tokens=(4, 16))
    with pipeline.plan(device="cpu").load() as session:
        yield session


def test_texts_in_and_texts_out(session):
    request = texts((9, 5, 2))
    result = session(text=written(request))
    expected = generated(tiny("bart"), request, max_new_tokens=NEW)
    assert result["tokens"].equal(expected)
    plain = [[f"w{token}" for token in row if token not in (PAD, EOS, START)] for row in expected.tolist()]
    assert [text.split() for text in result["text"]] == plain


def test_a_text_alone_gives_what_it_gives_among_others(session):
    lines = written(texts((9, 5, 2)))
    assert [session(text=[line])["text"][0] for line in lines] == session(text=lines)["text"]


@pytest.mark.parametrize("text", [[], [3], ["w1", None]])
def test_what_is_no_list_of_texts_is_refused(session, text: list[Any]):
    with pytest.raises(StageError, match="list of one or more strings"):
        session(text=text)


def test_a_text_that_is_too_long_is_refused(session):
    with pytest.raises(StageError, match=r"Text 1 has 17 tokens, but the largest bucket is 16: 'w1 w1"):
        session(text=["w2", "w1 " * 17])


def test_more_texts_than_the_largest_batch_run_in_chunks(session):
    request = texts((9, 5, 2, 12, 1, 7))
    expected = generated(tiny("bart"), request, max_new_tokens=NEW)
    assert session(text=written(request))["tokens"].equal(expected)


def test_tokens_come_as_they_are_made(session):
    request = {"text": written(texts((9, 5, 2)))}
    seen = list(session.stream([request], partial=("decode.token",)))
    tokens = torch.stack([value for _, name, value in seen if name == "decode.token"], 1)
    whole = next(value for _, name, value in seen if name == "tokens")
    assert tokens.equal(whole[:, 1:])


def test_recordings_in():
    model = tiny("whisper")
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    waves = [torch.rand(count) - 0.5 for count in (16_000, 7000)]
    pipeline = from_transformers(model, processor=extractor, max_new_tokens=NEW, batch=(2,))
    with pipeline.plan(device="cpu").load() as session:
        result = session(audio=waves)["tokens"]
        with pytest.raises(StageError, match=r"lasts 1\.1 s.*at most 1 s"):
            session(audio=[torch.rand(17_000)])
    request = extractor([wave.numpy() for wave in waves], sampling_rate=16_000, return_tensors="pt")
    expected = generated(model, {"input_features": request["input_features"]}, max_new_tokens=NEW)
    assert result.equal(expected)


def test_pictures_in():
    model = tiny("trocr")
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(3)]
    pipeline = from_transformers(model, processor=processor, max_new_tokens=NEW, batch=(4,))
    with pipeline.plan(device="cpu").load() as session:
        tensors = session(image=[torch.from_numpy(picture) for picture in pictures])["tokens"]
        images = session(image=[Image.fromarray(picture) for picture in pictures])["tokens"]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    expected = generated(model, {"pixel_values": pixels}, max_new_tokens=NEW)
    assert tensors.equal(expected)
    assert images.equal(expected)


def test_a_pipeline_is_a_stage_of_another():
    model, request = tiny("trocr"), inputs("trocr")
    outer = Pipeline("outer")
    pixels = outer.input("pixels", TensorSpec((Dim("batch", buckets=(4,)), 3, 16, 16), pad="repeat_first"))
    caption = outer.add("caption", from_transformers(model, max_new_tokens=NEW, batch=(4,)))
    outer.output("tokens", caption(pixels))
    with outer.plan(device="cpu").load() as session:
        result = session(pixels=request["pixel_values"])["tokens"]
    assert result.equal(generated(model, request, max_new_tokens=NEW))

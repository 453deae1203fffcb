"""Conversations as prompts: what the chat template and the model by hand give, or refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from orchestrator import GraphError, StageError
from orchestrator_stages import from_transformers
from tests.kit import refuses
from tests.stages.generation.tiny import tiny, transformers
from tests.stages.tiny_models import tiny as tiny_encoder_decoder

words = pytest.importorskip("orchestrator_stages.demos.chat.words")
NEW = 6
ONE = [{"role": "user", "content": "how many squares?"}]
TWO = [
    {"role": "user", "content": [{"type": "text", "text": "what is red?"}]},
    {"role": "assistant", "content": "the circle"},
    {"role": "user", "content": "describe the picture."},
]


def by_hand(model: Any, tokenizer: Any, conversations: list[Any]) -> list[str]:
    """What one would write without this project."""
    texts = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    answers = tokens[:, inputs["input_ids"].shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in answers]


def pipeline_of(model: Any, tokenizer: Any, **options: Any) -> Any:
    options = {"batch": (1, 2), "tokens": (8, 24), "max_new_tokens": NEW, "messages": True, **options}
    return from_transformers(model, tokenizer, **options)


def test_a_conversation_is_answered_as_by_hand():
    model, tokenizer = tiny("llama"), words.make_tokenizer()
    with pipeline_of(model, tokenizer).plan().load() as session:
        assert session(messages=ONE)["text"] == by_hand(model, tokenizer, [ONE])
        assert session(messages=[ONE])["text"] == by_hand(model, tokenizer, [ONE])
        assert session(messages=[ONE, TWO])["text"] == by_hand(model, tokenizer, [ONE, TWO])
        parts = [
            value
            for _, name, value in session.stream([{"messages": ONE}], partial=("decode.token",))
            if name == "decode.token"
        ]
        said = tokenizer.decode([int(token) for token in parts], skip_special_tokens=True)
        assert said == by_hand(model, tokenizer, [ONE])[0]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "no conversation"),
        (["hello"], "is a list of one or more messages"),
        ([{"role": "user"}], "role and content"),
        ([{"role": "nobody", "content": "red"}], "not of nobody"),
        ([{"role": "user", "content": [{"type": "image", "image": 1}]}], "nothing here reads pictures"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has no picture"),
        ([{"role": "user", "content": "red " * 30}], "largest bucket is 24"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, text: str):
    with pipeline_of(tiny("llama"), words.make_tokenizer()).plan().load() as session:
        refuses(StageError, text, lambda: session(messages=messages))


def test_a_tokenizer_without_a_template_is_refused_with_a_way_out():
    tokenizer = words.make_tokenizer()
    template, tokenizer.chat_template = tokenizer.chat_template, None
    refuses(GraphError, "set its chat_template", lambda: pipeline_of(tiny("llama"), tokenizer))
    tokenizer.chat_template = template
    pipeline_of(tiny("llama"), tokenizer)
    refuses(GraphError, "needs the tokenizer", lambda: pipeline_of(tiny("llama"), None))


def test_a_model_with_an_encoder_has_no_conversations():
    model = tiny_encoder_decoder("t5")
    for options in ({"messages": True}, {"context": 30}):
        refuses(GraphError, "go on with a prompt", lambda extra=options: from_transformers(model, **extra))


def picture(seed: int) -> torch.Tensor:
    return torch.randint(
        0, 255, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def asked(text: str, *pictures: torch.Tensor) -> list[Any]:
    parts = [{"type": "image", "image": one} for one in pictures]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


@pytest.fixture(scope="module")
def seeing() -> tuple[Any, Any]:
    """A small model of LLaVA's kind with random weights, and its processor."""
    from orchestrator_stages.demos.chat import model

    processor = model.make_processor()
    torch.manual_seed(0)
    config = model.make_config(processor.tokenizer)
    config.text_config.initializer_range = 0.5
    return transformers.LlavaForConditionalGeneration(config).eval(), processor


def test_conversations_with_pictures_are_answered_as_by_hand(seeing: tuple[Any, Any]):
    model, processor = seeing
    options: dict[str, Any] = {"batch": (2,), "tokens": (40,), "items": (1, 2), "max_new_tokens": NEW}
    pipeline = from_transformers(model, processor=processor, messages=True, **options)
    one, other = asked("what is red?", picture(0)), asked("how many?", picture(1))
    texts = processor.apply_chat_template([one, other], add_generation_prompt=True)
    images = [Image.fromarray(picture(seed).numpy()) for seed in (0, 1)]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    expected = [processor.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    assert len(set(expected)) == 2, "answers that are the same show nothing"
    with pipeline.plan().load() as session:
        assert session(messages=[one, other])["text"] == expected
        assert session(messages=one)["text"] == expected[:1]
        assert len(session(messages=ONE)["text"]) == 1
        items = list(session.stream([{"messages": one}], partial=("decode.token",)))
        assert [name for _, name, _ in items].count("decode.token") > 1
        refuses(
            StageError,
            "has no picture",
            lambda: session(messages=[{"role": "user", "content": [{"type": "image"}]}]),
        )


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "num_return_sequences": 2, "top_k": 9, "repetition_penalty": 1.5},
        {"num_beams": 2, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_several_answers_to_questions_about_pictures_are_those_of_generate(
    seeing: tuple[Any, Any], options: dict[str, Any]
):
    model, processor = seeing
    conversations = [asked("what is red?", picture(0)), asked("how many squares are there?", picture(1))]
    texts = processor.apply_chat_template(conversations, add_generation_prompt=True)
    images = [Image.fromarray(picture(seed).numpy()) for seed in (0, 1)]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt", add_special_tokens=False)
    options = {"max_new_tokens": NEW, **options}
    torch.manual_seed(3)
    expected = model.generate(**inputs, **{"do_sample": False, **options})
    sizes = {"batch": (4,), "tokens": (40,), "items": (2,)}
    pipeline = from_transformers(model, processor=processor, messages=True, **sizes, **options)
    seed = {"seed": 3} if options.get("do_sample") else {}
    with pipeline.plan().load() as session:
        assert session(messages=conversations, **seed)["tokens"].equal(expected)

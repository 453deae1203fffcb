"""Conversations as prompts: what the chat template and the model by hand give, or refused with a way out."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import GraphError, StageError
from orchestrator_stages import from_transformers
from tests.kit import refuses
from tests.stages.generation.tiny import tiny
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
        assert by_hand(model, tokenizer, [ONE])[0].endswith(said)
        assert said


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "no conversation"),
        (["hello"], "is a list of one or more messages"),
        ([{"role": "user"}], "role and content"),
        ([{"role": "nobody", "content": "red"}], "not of nobody"),
        ([{"role": "user", "content": [{"type": "image", "image": 1}]}], "reads text alone"),
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
    refuses(GraphError, "go on with a prompt", lambda: from_transformers(model, messages=True))

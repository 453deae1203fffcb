"""Conversations whose cache lives on, told in messages or texts: a turn answers as generate() does to all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from orchestrator import GraphError, StageError
from orchestrator_stages import from_transformers
from tests.kit import refuses
from tests.stages.generation.test_chat import asked, picture, seeing
from tests.stages.generation.tiny import letters, tiny
from tests.stages.generation.tiny_items import ITEM, item_of, items_in, tiny_with_items

conversation_room = pytest.importorskip("orchestrator_stages.generation.conversation")
words = pytest.importorskip("orchestrator_stages.demos.chat.words")
NEW = 4
SIZES: dict[str, Any] = {"batch": (2,), "tokens": (8, 16), "max_new_tokens": NEW}
__all__ = ["seeing"]


def by_hand(model: Any, preparer: Any, conversations: list[Any]) -> torch.Tensor:
    """What one would write without this project, of all that was said."""
    texts = preparer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    parts = [
        part
        for messages in conversations
        for message in messages
        for part in message["content"]
        if "image" in part
    ]
    images = [Image.fromarray(part["image"].numpy()) for part in parts if not isinstance(part, str)]
    items = {"images": images} if images else {}
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
    inputs = preparer(text=texts, **items, **options)
    inputs.pop("token_type_ids", None)
    tokens: torch.Tensor = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return tokens


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def talk(plan: Any, model: Any, preparer: Any, turns: list[list[Any]]) -> Any:
    """Runs turns, each compared with the whole by hand; returns the last cache, and what was said."""
    whole: list[Any] = [[] for _ in turns[0]]
    with plan.load() as session:
        cache: dict[str, Any] = conversation_room.begin_conversation(plan, len(whole))
        for turn in turns:
            whole = [before + now for before, now in zip(whole, turn, strict=True)]
            result = session.run({"messages": turn, **cache}, keep_on_device=tuple(cache))
            assert result["tokens"].equal(by_hand(model, preparer, whole))
            cache = {name: result[name] for name in cache}
            whole = [row["said"] for row in cache["history"]]
            assert [row[-1]["content"] for row in whole] == result["text"]
        # What was said may be changed: the cache goes back to there. Nothing else is read again.
        place = cache["place"].tolist()
        cache["history"][0]["said"][-1] = {"role": "assistant", "content": "the circle"}
        result = session(messages=[said("yes?")] * len(whole), **cache)
        whole = [row["said"] + said("yes?") for row in cache["history"]]
        assert result["tokens"].equal(by_hand(model, preparer, whole))
        assert cache["place"].tolist() == place, "what was kept stays as it is"
        for messages, text in (
            ([said("yes?")], "of 2, and history of 2"),
            ([said("red " * 40)] * 2, "new tokens in this turn, but the largest bucket is"),
        ):
            refuses(StageError, text, lambda messages=messages: session(messages=messages, **cache))


def test_messages_are_appended_to_conversations_of_different_lengths():
    model, tokenizer = tiny("llama"), words.make_tokenizer()
    plan = from_transformers(model, tokenizer, messages=True, context=62, **SIZES).plan()
    turns = [
        [said("how many?"), said("what is the colour of the circle?")],
        [said("is it red?"), said("yes")],
    ]
    talk(plan, model, tokenizer, turns)


def test_any_turn_may_have_pictures(seeing: tuple[Any, Any]):
    model, processor = seeing
    options = {**SIZES, "tokens": (32,), "items": (2,)}
    plan = from_transformers(model, processor=processor, messages=True, context=160, **options).plan()
    first, second = (
        [asked("what is red?", picture(0)), asked("how many?")],
        [asked("yes?"), asked("or?", picture(1))],
    )
    talk(plan, model, processor, [first, second])


def test_pictures_come_with_the_tokens_of_a_turn():
    """As a processor gave them, for the tokens of the turn alone."""
    model, options = tiny_with_items("llava"), {**SIZES, "tokens": (8,), "batch": (1,), "items": (1,)}
    plan = from_transformers(model, context=40, **options).plan()
    turns = [torch.tensor([[5, *[ITEM] * 4, 7, 8]]), torch.tensor([[9, *[ITEM] * 4, 6]])]
    pictures = [items_in("llava", ids, seed=seed)["pixel_values"] for seed, ids in enumerate(turns)]
    with plan.load() as session:
        cache: dict[str, Any] = conversation_room.begin_conversation(plan)
        whole = torch.zeros(1, 0, dtype=torch.int64)
        for number, turn in enumerate(turns):
            ids = torch.cat([whole[:, -1:], turn], 1)
            whole = torch.cat([whole, turn], 1)
            request = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "pixel_values": pictures[number],
            }
            result = session(**request, **cache)
            seen = {
                "attention_mask": torch.ones_like(whole),
                "pixel_values": torch.cat(pictures[: number + 1]),
            }
            expected = model.generate(whole, **seen, max_new_tokens=NEW, do_sample=False)
            whole = torch.cat([whole, result["tokens"][:, ids.shape[1] :]], 1)
            assert whole.equal(expected)
            cache = {name: result[name] for name in cache}


class GridProcessor:
    """Reads letters and pictures as the processor of Qwen-VL does: all pictures have one grid of patches."""

    chat_template = "{}"

    def __init__(self, name: str) -> None:
        self.name = name

    def apply_chat_template(self, conversations: list[Any], **_: Any) -> Any:
        if not isinstance(conversations[0], dict):
            return [self.apply_chat_template(messages) for messages in conversations]
        parts = [message["content"] for message in conversations]
        return "".join(
            part if isinstance(part, str) else "".join(item.get("text", "*") for item in part) + "!"
            for part in parts
        )

    def decode(self, row: torch.Tensor, **_: Any) -> str:
        return "".join(chr(int(token) + 30) for token in row)

    def __call__(self, text: list[str], images: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        rows = [[token for c in one for token in ([ITEM] * 4 if c == "*" else [ord(c) - 30])] for one in text]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, **items_in(self.name, ids)}


def test_positions_in_several_dims_are_those_of_the_whole():
    model, processor = tiny_with_items("qwen2-vl"), GridProcessor("qwen2-vl")
    options = {**SIZES, "tokens": (16,), "items": (2,), "example": item_of("qwen2-vl")}
    plan = from_transformers(model, processor=processor, messages=True, context=60, **options).plan()
    shown = asked("AB", picture(0))
    talk(plan, model, processor, [[shown, said("RED")], [said("HOW"), asked("SEE", picture(1))]])


def test_texts_go_on():
    model, tokenizer = tiny("llama"), letters()
    plan = from_transformers(model, tokenizer, context=40, **{**SIZES, "tokens": (8,), "batch": (1,)}).plan()
    with plan.load() as session:
        cache: dict[str, Any] = conversation_room.begin_conversation(plan)
        whole = ""
        for text in ("ab ba ", " a b", " bab"):
            whole += text
            inputs = tokenizer([whole], return_tensors="pt")
            inputs.pop("token_type_ids", None)
            expected = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            result = session(text=[text], **cache)
            assert result["tokens"].equal(expected)
            cache, whole = {name: result[name] for name in cache}, whole + result["text"][0]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("qwen2-vl", {}, "Give the processor and messages=True"),
        ("paligemma", {}, "cannot go on from a cache with the tokens of a turn"),
        ("llava", {"tokenizer": letters}, "within its messages"),
    ],
)
def test_pictures_that_no_turn_can_have_are_refused(name: str, options: dict[str, Any], text: str):
    options = {option: make() for option, make in options.items()}
    options |= {**SIZES, "example": item_of(name), "context": 40}
    refuses(GraphError, text, lambda: from_transformers(tiny_with_items(name), **options))

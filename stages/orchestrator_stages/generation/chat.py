"""Conversations as prompts: messages in, by the chat template of a tokenizer or processor, pictures and all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from orchestrator import Dim, GraphError, HostStage, TensorSpec
from orchestrator_stages.generation.items import ReadPrompts

__all__ = [
    "ChatPrompt",
    "PictureChatPrompt",
    "check_template",
    "conversation_images",
    "conversation_text",
    "read_conversations",
]

_AS_GENERATE_TAKES: Mapping[str, Any] = {
    "padding_side": "left",
    "return_tensors": "pt",
    "add_special_tokens": False,
}
"""How the text of a template becomes ids: special tokens are in it, and a model goes on with what is on the right."""


def check_template(preparer: Any) -> None:
    """Makes sure that messages can be turned into a text.

    Args:
        preparer: A tokenizer or processor of transformers.

    Raises:
        GraphError: There is none, or it has no chat template.
    """
    if preparer is None:
        raise GraphError(
            "messages=True needs the tokenizer of the model, or its processor: from_transformers(model, tokenizer, "
            "messages=True).",
            option="messages",
        )
    tokenizer = getattr(preparer, "tokenizer", None)
    if not (getattr(preparer, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise GraphError(
            f"{type(preparer).__name__} has no chat template, so nothing says how a conversation reads as one text. "
            "Take the tokenizer of a model that was made for conversations, set its chat_template, or leave messages= "
            "out and write the text yourself.",
            option="messages",
        )


class ChatPrompt(HostStage):
    """Host stage: conversations to ids and mask.

    Takes ``messages``: a list of messages, or a list of such lists, one for each row. A message is a dict of ``role``
    and ``content``, as ``apply_chat_template`` of transformers takes it. The answer is written after the last message.
    Gives ``input_ids`` and ``attention_mask`` ``[batch, tokens]``, int64, padded on the left.

    Args:
        tokenizer: A tokenizer with a chat template.
        batch: The dim of the conversations.
        tokens: The dim of the ids; a conversation that is longer than its largest bucket is refused.
        pad: What fills up the ids.
    """

    def __init__(self, tokenizer: Any, batch: Dim, tokens: Dim, pad: int) -> None:
        super().__init__(tag="converse")
        self.tokenizer = tokenizer
        self.longest = tokens.buckets[-1]
        self.inputs = {"messages": list}
        self.outputs = {
            "input_ids": TensorSpec((batch, tokens), torch.int64, pad=pad),
            "attention_mask": TensorSpec((batch, tokens), torch.int64, pad=0),
        }

    def forward(self, messages: list[Any]) -> tuple[Tensor, Tensor]:
        """Reads the conversations.

        Raises:
            ValueError: There is none, one is not made as the template takes it, one has pictures, or one is longer than
                the largest bucket.
        """
        conversations = read_conversations(messages)
        texts = [conversation_text(self.tokenizer, conversation) for conversation in conversations]
        if any(list(conversation_images(conversation)) for conversation in conversations):
            raise ValueError(
                "A message holds a picture, but nothing here reads pictures; give from_transformers the processor of a "
                "model that does."
            )
        inputs = self.tokenizer(text=texts, padding=True, **_AS_GENERATE_TAKES)
        _check_length(inputs["attention_mask"], self.longest)
        return inputs["input_ids"], inputs["attention_mask"]


class PictureChatPrompt(ReadPrompts):
    """Host stage: conversations with pictures, to tokens and what an encoder takes.

    Takes ``messages`` as :class:`ChatPrompt` does; a content may be a list of parts, such as ``{"type": "text", "text":
    ...}`` and ``{"type": "image", "image": ...}``, with a picture of Pillow or a tensor ``[height, width, 3]`` uint8.
    Gives what :class:`~orchestrator_stages.generation.items.ReadPrompts` gives.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.inputs = {"messages": list}

    def forward(self, messages: list[Any]) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Reads the conversations.

        Raises:
            ValueError: There is none, one is not made as the template takes it, or one is too long.
        """
        conversations = read_conversations(messages)
        texts = [conversation_text(self.processor, conversation) for conversation in conversations]
        images = [list(conversation_images(conversation)) for conversation in conversations]
        return self.read(texts, images if any(images) else [], add_special_tokens=False)


def read_conversations(messages: list[Any]) -> list[Any]:
    """Returns one conversation or several as several.

    Raises:
        ValueError: There is none, or one is not made of messages.
    """
    is_single = bool(messages) and isinstance(messages[0], Mapping)
    conversations = [messages] if is_single else messages
    if not conversations:
        raise ValueError("messages holds no conversation; give one message of the user at least.")
    for conversation in conversations:
        _check_messages(conversation)
    return conversations


def _check_length(mask: Tensor, longest: int) -> None:
    """Makes sure that no conversation has more tokens than there is room for.

    Raises:
        ValueError: One has.
    """
    lengths = mask.sum(1)
    worst = int(lengths.argmax())
    if lengths[worst] > longest:
        raise ValueError(
            f"Conversation {worst} has {int(lengths[worst])} tokens, but the largest bucket is {longest}. "
            "Leave out its first messages, or give from_transformers larger buckets: tokens=(...)."
        )


def _check_messages(conversation: Any) -> None:
    """Makes sure that a conversation is made of messages.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"A conversation is a list of one or more messages, not {conversation!r:.80}.")
    for message in conversation:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"A message is a dict of role and content, not {message!r:.80}.")


def conversation_text(preparer: Any, conversation: list[Any]) -> str:
    """The conversation as one text that ends where the answer begins."""
    try:
        return preparer.apply_chat_template(  # type: ignore[no-any-return]
            conversation, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise ValueError(f"The chat template refuses the conversation: {error}") from error


def conversation_images(conversation: list[Any]) -> Iterator[Any]:
    """Yields the pictures of a conversation.

    Raises:
        ValueError: A part of that kind holds none.
    """
    for message in conversation:
        content = message["content"]
        for part in content if isinstance(content, (list, tuple)) else ():
            if part.get("type") != "image":
                continue
            image = part.get("image")
            if image is None:
                raise ValueError(
                    'A part of the kind image has no picture; write {"type": "image", "image": picture}, where '
                    "picture is of Pillow or a tensor [height, width, 3] of uint8."
                )
            yield Image.fromarray(image.numpy()) if isinstance(image, Tensor) else image

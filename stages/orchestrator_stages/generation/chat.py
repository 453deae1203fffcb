"""Conversations as prompts: messages in, by the chat template of a tokenizer or processor, pictures and all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from orchestrator import Dim, GraphError, HostStage, TensorSpec

__all__ = ["ChatPrompt", "check_template"]


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
    """Host stage: conversations to ids and mask, and to what the model takes of their pictures.

    Takes ``messages``: a list of messages, or a list of such lists, one for each row. A message is a dict of ``role``
    and ``content``, as ``apply_chat_template`` of transformers takes it; a content may be a list of parts, such as
    ``{"type": "text", "text": ...}`` and ``{"type": "image", "image": ...}``, with a picture of Pillow, or a tensor
    ``[height, width, 3]`` uint8. The answer is written after the last message. Gives ``input_ids`` and
    ``attention_mask`` ``[batch, tokens]``, int64, padded on the left, and the tensors of pictures.

    Args:
        preparer: A tokenizer, or a processor where there may be pictures.
        batch: The dim of the conversations.
        tokens: The dim of the ids; a conversation that is longer than its largest bucket is refused.
        pad: What fills up the ids.
        pictures: What the model takes of pictures, by name; they are in no conversation where this is empty.
    """

    def __init__(
        self,
        preparer: Any,
        batch: Dim,
        tokens: Dim,
        pad: int,
        pictures: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        super().__init__(tag="converse")
        self.preparer = preparer
        self.longest = tokens.buckets[-1]
        self.pictures = tuple(pictures or {})
        self.inputs = {"messages": list}
        self.outputs = {
            "input_ids": TensorSpec((batch, tokens), torch.int64, pad=pad),
            "attention_mask": TensorSpec((batch, tokens), torch.int64, pad=0),
            **(pictures or {}),
        }

    def forward(self, messages: list[Any]) -> dict[str, Tensor]:
        """Reads the conversations.

        Raises:
            ValueError: There is none, one is not made as the template takes it, one has pictures that the model does
                not, or one is longer than the largest bucket.
        """
        # One conversation or several: from here on several. Pictures come in the order in which the texts name them.
        is_single = bool(messages) and isinstance(messages[0], Mapping)
        conversations = [messages] if is_single else messages
        for conversation in conversations:
            _check_messages(conversation)
        if not conversations:
            raise ValueError("messages holds no conversation; give one message of the user at least.")
        texts = [_text(self.preparer, conversation) for conversation in conversations]
        images = [list(_images(conversation)) for conversation in conversations]
        if any(images) and not self.pictures:
            raise ValueError("A message holds a picture, but the model reads text alone.")
        options: dict[str, Any] = {
            "padding": True,
            "padding_side": "left",
            "return_tensors": "pt",
            "add_special_tokens": False,
        }
        if self.pictures:
            options["images"] = images if any(images) else None
        inputs = self.preparer(text=texts, **options)
        self._check_length(inputs["attention_mask"])
        return {name: inputs[name] for name in ("input_ids", "attention_mask", *self.pictures)}

    def _check_length(self, mask: Tensor) -> None:
        lengths = mask.sum(1)
        worst = int(lengths.argmax())
        if lengths[worst] > self.longest:
            raise ValueError(
                f"Conversation {worst} has {int(lengths[worst])} tokens, but the largest bucket is {self.longest}. "
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


def _text(preparer: Any, conversation: list[Any]) -> str:
    """The conversation as one text that ends where the answer begins."""
    try:
        return preparer.apply_chat_template(  # type: ignore[no-any-return]
            conversation, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise ValueError(f"The chat template refuses the conversation: {error}") from error


def _images(conversation: list[Any]) -> Iterator[Any]:
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

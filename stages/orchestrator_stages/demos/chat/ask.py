"""Turn a picture and a question into what the model takes."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from orchestrator import HostStage, TensorSpec
from orchestrator.errors import nearest
from orchestrator_stages.demos.chat.model import PATCH, SIDE, make_processor
from orchestrator_stages.demos.chat.words import SIGNS, UNKNOWN, WORDS
from orchestrator_stages.demos.faces.letterbox import PHOTO

LONGEST = 32
"""Tokens of a picture with its question, at most; nine are the picture's."""


class AskQuestion(HostStage):
    """Host stage: ``image`` and ``question`` to ``input_ids``, ``attention_mask`` and ``pixel_values``.

    The picture may have any size; it is brought to ``SIDE`` by ``SIDE`` pixels, as the model learned to see.
    """

    def __init__(self) -> None:
        super().__init__(tag="ask")
        self.processor: Any = make_processor()
        self.inputs = {"image": PHOTO, "question": str}
        self.outputs = {
            "input_ids": TensorSpec((1, LONGEST), torch.int64),
            "attention_mask": TensorSpec((1, LONGEST), torch.int64),
            "pixel_values": TensorSpec((1, 3, SIDE, SIDE)),
        }

    def forward(self, image: Tensor, question: str) -> tuple[Tensor, Tensor, Tensor]:
        """Reads one question.

        Raises:
            ValueError: It is empty or too long, or has a word that is not known.
        """
        self._check(question)
        # As one would by hand with any model of transformers: messages, the template, the processor.
        content = [{"type": "text", "text": question}, {"type": "image"}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        picture = Image.fromarray(image.numpy())
        inputs = self.processor(
            images=[picture],
            text=[text],
            return_tensors="pt",
            add_special_tokens=False,
            padding="max_length",
            max_length=LONGEST,
        )
        return inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]

    def _check(self, question: str) -> None:
        tokenizer = self.processor.tokenizer
        pieces = tokenizer.tokenize(question)
        if not pieces:
            raise ValueError("The question is empty; ask for instance: what colour is the circle?")
        unknown = [piece for piece in pieces if piece == UNKNOWN]
        if unknown:
            words = question.lower().replace("color", "colour").split()
            plain = (word.strip("".join(SIGNS)) for word in words)
            word = next((word for word in plain if word not in WORDS), question)
            raise ValueError(
                f"The question {question!r} has the word {word!r}, which is not known.{nearest(word, WORDS)} The model "
                f"knows these: {', '.join(sorted(WORDS))}."
            )
        patches = (SIDE // PATCH) ** 2
        most = LONGEST - patches - 3  # what begins a conversation, a question and an answer
        if len(pieces) > most:
            raise ValueError(f"A question has at most {most} words, but {question!r} has {len(pieces)}.")


class Answer(HostStage):
    """Host stage: ``tokens`` of a prompt with its answer to the ``answer`` in words."""

    def __init__(self) -> None:
        super().__init__(tag="answer")
        self.tokenizer: Any = make_processor().tokenizer
        self.inputs = {"tokens": None}
        self.outputs = {"answer": str}

    def forward(self, tokens: Tensor) -> str:
        """Reads what comes after the prompt."""
        answer: str = self.tokenizer.decode(tokens[0, LONGEST:], skip_special_tokens=True)
        return answer.strip()

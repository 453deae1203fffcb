"""The host stages at both ends of the student: text to token ids, token ids to text."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from orchestrator import CompileError, HostStage, InputError
from orchestrator_stages.demos.translate.sentences import join_text, split_text
from orchestrator_stages.demos.translate.student import END
from orchestrator_stages.demos.translate.trained import VOCABULARIES, checked_direction

LENGTHS = (16, 32, 64, 128)
"""Lengths of sentences in tokens, ``END`` included, that the networks are compiled for."""


class Vocabulary:
    """Spells text in tokens of the student; its file is read when it is first used.

    Args:
        direction: ``en-pt`` or ``pt-en``.
    """

    def __init__(self, direction: str) -> None:
        self.direction = checked_direction(direction)
        self._processor: Any = None

    @property
    def processor(self) -> Any:
        """The SentencePiece processor.

        Raises:
            CompileError: A package is missing, or the file is not the one it should be.
        """
        if self._processor is None:
            content = VOCABULARIES[self.direction].read()
            try:
                spelling = import_module("sentencepiece")
            except ImportError as error:
                raise CompileError(
                    "Translation needs the package 'sentencepiece', which is not installed. Install it with: pip "
                    "install sentencepiece",
                    package="sentencepiece",
                ) from error
            self._processor = spelling.SentencePieceProcessor(model_proto=content)
        return self._processor

    def encode(self, sentence: str) -> list[int]:
        """Returns the ids of a sentence, ``END`` last."""
        return [*self.processor.encode(sentence), END]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of ids up to the first ``END``."""
        end = ids.index(END) if END in ids else len(ids)
        text: str = self.processor.decode(ids[:end])
        return text


class Tokenize(HostStage):
    """Host stage: ``text`` to ``ids``, one tensor ``[tokens]`` int64 for each sentence, and their ``layout``.

    ``layout`` has the number of sentences of each line.

    Args:
        direction: ``en-pt`` or ``pt-en``.
        longest: Tokens that a sentence may have, ``END`` included.
    """

    def __init__(self, direction: str = "en-pt", longest: int = LENGTHS[-1]) -> None:
        super().__init__(tag="tokenize")
        self.vocabulary = Vocabulary(direction)
        self.longest = longest
        self.inputs = {"text": str}
        self.outputs = {"ids": list, "layout": list}

    def forward(self, text: str) -> tuple[list[Tensor], list[int]]:
        """Tokenizes one text.

        Raises:
            InputError: A sentence is too long.
        """
        lines = split_text(text)
        ids = [self.encode_sentence(sentence) for line in lines for sentence in line]
        return ids, [len(line) for line in lines]

    def encode_sentence(self, sentence: str) -> Tensor:
        """Returns the ids of a sentence that is not too long."""
        ids = self.vocabulary.encode(sentence)
        if len(ids) > self.longest:
            start = f"{sentence[:40]}..." if len(sentence) > 40 else sentence
            raise InputError(
                f"The sentence {start!r} takes {len(ids)} tokens, but the largest bucket of 'tokens' is "
                f"{self.longest}. Break it up with a full stop or a new line, or compile a larger bucket.",
                tokens=len(ids),
                limit=self.longest,
            )
        return torch.tensor(ids)


class Detokenize(HostStage):
    """Host stage: ``tokens``, one tensor ``[steps]`` for each sentence, and their ``layout`` to ``text``.

    Args:
        direction: ``en-pt`` or ``pt-en``.
    """

    def __init__(self, direction: str = "en-pt") -> None:
        super().__init__(tag="detokenize")
        self.vocabulary = Vocabulary(direction)
        self.inputs = {"tokens": list, "layout": list}
        self.outputs = {"text": str}

    def forward(self, tokens: list[Tensor], layout: list[int]) -> str:
        """Puts one text together."""
        return join_text((self.vocabulary.decode(row.tolist()) for row in tokens), layout)

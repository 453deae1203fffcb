"""The host step after the decoder: tokens of all segments to one text."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orchestrator import HostStage

__all__ = ["Read"]


class Read(HostStage):
    """Host stage: tokens to text.

    Takes ``tokens`` ``[segments, steps]``. Gives ``text``, a string; segments are joined by a blank.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
        eos: Tokens that end a segment.
    """

    def __init__(self, tokenizer: Any, eos: tuple[int, ...]) -> None:
        super().__init__(tag="read")
        self.tokenizer = tokenizer
        self.eos = eos
        self.inputs = {"tokens": None}
        self.outputs = {"text": str}

    def forward(self, tokens: Tensor) -> str:
        """Reads them."""
        texts = [self._segment(row) for row in tokens.tolist()]
        return " ".join(text for text in texts if text)

    def _segment(self, tokens: list[int]) -> str:
        ends = [place for place, token in enumerate(tokens) if token in self.eos]
        text: str = self.tokenizer.decode(tokens[: ends[0]] if ends else tokens, skip_special_tokens=True)
        return text.strip()

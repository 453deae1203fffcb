"""The host stages around a decoder loop: text to ids and back, and sequences as ``generate()`` returns them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.generation.choose import JoinPrompt
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.seq2seq.options import Beginning

__all__ = ["Detokenise", "FinishSequences", "FinishSpeech", "Tokenise"]


class Tokenise(HostStage):
    """Host stage: texts to ids and mask, as long as the longest text.

    Takes ``text``, a list of strings. Gives ``input_ids`` and ``attention_mask`` ``[batch, tokens]``, int64.

    Args:
        tokenizer: A tokenizer of transformers.
        batch: The dim of the texts.
        tokens: The dim of the ids; a text that is longer than its largest bucket is refused.
        pad: What fills up the ids.
        side: Where shorter texts are filled up, ``left`` or ``right``.
    """

    def __init__(self, tokenizer: Any, batch: Dim, tokens: Dim, pad: int, side: str = "right") -> None:
        super().__init__(tag="tokenise")
        self.tokenizer = tokenizer
        self.side = side
        self.longest = tokens.buckets[-1]
        self.inputs = {"text": list}
        self.outputs = {
            "input_ids": TensorSpec((batch, tokens), torch.int64, pad=pad),
            "attention_mask": TensorSpec((batch, tokens), torch.int64, pad=0),
        }

    def forward(self, text: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenises.

        Raises:
            ValueError: There is no text, an item is none, or one is longer than the largest bucket.
        """
        if not text or not all(isinstance(item, str) for item in text):
            raise ValueError(f"text is a list of one or more strings, not {text!r}.")
        encodings = self.tokenizer(text, padding=True, padding_side=self.side, return_tensors="pt")
        lengths = encodings["attention_mask"].sum(1)
        worst = int(lengths.argmax())
        if lengths[worst] > self.longest:
            raise ValueError(
                f"Text {worst} has {int(lengths[worst])} tokens, but the largest bucket is {self.longest}: "
                f"{text[worst][:60]!r}... Shorten it, or give from_transformers larger buckets: tokens=(...)."
            )
        return encodings["input_ids"], encodings["attention_mask"]


class FinishSequences(HostStage):
    """Host stage: what the loop chose, as ``generate()`` of transformers returns it.

    As :class:`~orchestrator_stages.generation.choose.JoinPrompt`, with the same prompt for all rows.

    Args:
        selection: How the tokens were chosen.
        rows: The dim of the batch.
        prompt: What sequences begin with.
    """

    def __init__(self, selection: Selection, rows: Dim, prompt: Sequence[int]) -> None:
        super().__init__(tag="finish")
        self.join = JoinPrompt(selection, rows)
        self.prompt = torch.tensor([prompt], dtype=torch.int64)
        self.inputs = {port: spec for port, spec in self.join.inputs.items() if port != "input_ids"}
        self.outputs = self.join.outputs

    def forward(self, new_ids: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """Joins them."""
        return self.join.forward(self.prompt.expand(len(new_ids), -1), new_ids, *more)


class FinishSpeech(FinishSequences):
    """The same without prompt and end, as ``generate()`` of Whisper gives it.

    Args:
        selection: How the tokens were chosen.
        rows: The dim of the batch.
        beginning: What sequences begin with, which tokens are times, and how often each sequence is given.
    """

    def __init__(self, selection: Selection, rows: Dim, beginning: Beginning) -> None:
        self.copies = beginning.speech.copies if beginning.speech is not None else 1
        super().__init__(selection, rows if self.copies == 1 else Dim.dynamic("sequences"), ())
        self.beginning = beginning

    def forward(self, new_ids: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts them."""
        # What generate() of Whisper calls padding is counted over the whole row, also where a pad is a token among
        # others; the end is cut only where it is the last token then.
        selection = self.join.selection
        pad, eos = selection.pad, selection.eos
        sequences: list[list[int]] = []
        for row in super().forward(new_ids, *more)[1].tolist():
            pads = row.count(pad) - (pad in eos)
            cut = row[: len(row) - pads] if row[-1] == pad else row
            cut = cut[:-1] if cut and cut[-1] in eos else cut
            sequences += [self._cut_at_times(cut)] * self.copies
        length = max(map(len, sequences))
        rows = [[*row, *[pad] * (length - len(row))] for row in sequences]
        tokens = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)
        return tokens, tokens

    def _cut_at_times(self, row: list[int]) -> list[int]:
        """Returns what ``generate()`` keeps of a sequence.

        Raises:
            ValueError: It would run what is left of the recording.
        """
        # Two times in a row end a segment. What follows the last segment is cut off, unless it ends with one time; the
        # recording goes on there, unless that is its end.
        times = self.beginning.timestamps
        if times is None:
            return row
        is_time = [token >= times for token in row]
        pairs = [place for place, pair in enumerate(itertools.pairwise(is_time)) if all(pair)]
        if not pairs or is_time[-2:] == [False, True]:
            return row
        position = row[pairs[-1]] - times
        if position < self.beginning.positions:
            has_times = self.beginning.speech is not None and self.beginning.speech.has_times
            way_out = (
                "Leave out return_timestamps, or cut the recording there."
                if has_times
                else f"Suppress them: suppress_tokens=range({times}, ...), besides what the config suppresses."
            )
            raise ValueError(
                f"The model wrote two times in a row, {position} of {self.beginning.positions} steps into the "
                "recording: generate() runs the model again from there on, over what is left, which is not supported. "
                + way_out
            )
        return row[: pairs[-1] + 2]


class Detokenise(HostStage):
    """Host stage: tokens to texts.

    Takes ``tokens`` ``[batch, length]``, below 0 behind the end of a sequence where no token stands for that. Gives
    ``text``, a list of strings without special tokens.

    Args:
        tokenizer: A tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tag="detokenise")
        self.tokenizer = tokenizer
        self.inputs = {"tokens": None}
        self.outputs = {"text": list}

    def forward(self, tokens: Tensor) -> list[str]:
        """Reads them."""
        return [self.tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in tokens]

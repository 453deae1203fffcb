"""The host stages around a decoder loop: text to ids and back, and a request's random numbers."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.seq2seq.rules import Rules

__all__ = ["Detokenise", "FinishSequences", "Numbers", "Tokenise"]

LENGTH = Dim.dynamic("length")
"""How many tokens the longest sequence of a request has."""


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


class Numbers(HostStage):
    """Host stage: the random numbers of a request.

    Takes ``seed``, an int, and ``like``, any tensor with the batch in front. Gives ``numbers`` ``[steps, batch]``,
    uniform in [0, 1). A row's numbers do not depend on how many rows there are.

    Args:
        steps: How many a row gets.
        batch: The dim of the rows.
    """

    def __init__(self, steps: int, batch: Dim) -> None:
        super().__init__(tag="numbers")
        self.steps = steps
        self.inputs = {"seed": int, "like": None}
        self.outputs = {"numbers": TensorSpec((steps, batch), pad=0)}

    def forward(self, seed: int, like: Tensor) -> Tensor:
        """Draws them."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(like.shape[0], self.steps, generator=generator).T.contiguous()


class FinishSequences(HostStage):
    """Host stage: what the loop chose, as ``generate()`` of transformers returns it.

    Takes ``sequences`` ``[batch, steps]``. Gives ``tokens`` ``[batch, length]``, int64: as many columns as the longest
    sequence needs.

    Args:
        rules: How the sequences were made.
        batch: The dim of the rows.
        bare: Give only what was added, without start, prompt and end, as ``generate()`` of Whisper does.
    """

    def __init__(self, rules: Rules, batch: Dim, *, bare: bool = False) -> None:
        super().__init__(tag="finish")
        self.rules = rules
        self.bare = bare
        self.inputs = {"sequences": None}
        self.outputs = {"tokens": TensorSpec((batch, LENGTH), torch.int64)}

    def forward(self, sequences: Tensor) -> Tensor:
        """Completes and cuts them."""
        is_end = (sequences[:, :, None] == torch.tensor(self.rules.eos)).any(2)
        is_end[:, : len(self.rules.prompt)] = False
        before = is_end.cumsum(1) - is_end.long()
        longest = int((before == 0).sum(1).max())
        if self.bare:
            return self._bare(sequences[:, len(self.rules.prompt) : longest].tolist())
        first = sequences.new_full((len(sequences), 1), self.rules.start)
        return torch.cat([first, sequences[:, :longest]], 1)

    def _bare(self, rows: list[list[int]]) -> Tensor:
        """Cuts what was added as Whisper's ``generate()`` does: as many pads as there are, then one end."""
        # What generate() of Whisper calls padding is counted over the whole row, also where a pad is a token among
        # others; the end is cut only where it is the last token then.
        pad, eos, times = self.rules.pad, self.rules.eos, self.rules.timestamps
        sequences: list[list[int]] = []
        for row in rows:
            pads = row.count(pad) - (pad in eos)
            cut = row[: len(row) - pads] if row[-1] == pad else row
            cut = cut[:-1] if cut and cut[-1] in eos else cut
            if times is not None and any(min(pair) >= times for pair in itertools.pairwise(cut)):
                raise ValueError(
                    "The model wrote two times in a row though it was told to write none; generate() would begin anew "
                    "at the second of them, which is not supported. Suppress them: suppress_tokens=range("
                    f"{times}, ...), besides what the generation config suppresses."
                )
            sequences.append(cut)
        length = max(map(len, sequences))
        return torch.tensor([[*row, *[pad] * (length - len(row))] for row in sequences]).reshape(
            len(sequences), length
        )


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

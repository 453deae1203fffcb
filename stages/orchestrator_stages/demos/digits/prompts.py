"""Turn a text into the tokens of one or many prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.demos.digits.words import LENGTH, encode

BATCH = (1, 4, 16, 64)
"""How many prompts are read at a time, unless an option says otherwise."""


class Prompts(HostStage):
    """Host stage: ``prompt`` to ``tokens`` ``[batch, 2, LENGTH]``, one row for each line of the text.

    A row holds the tokens of no prompt, which guidance asks for, and then those of the prompt. A blank line is no
    prompt either.

    Args:
        batch: The sizes for which what follows is compiled.
    """

    def __init__(self, batch: int | Sequence[int] = BATCH) -> None:
        super().__init__(tag="prompts")
        size = Dim("batch", buckets=batch, batch=True)
        self.inputs = {"prompt": str}
        self.outputs = {"tokens": TensorSpec((size, 2, LENGTH), torch.int64, pad="repeat_first")}

    def forward(self, prompt: str) -> Tensor:
        """Reads one text.

        Raises:
            ValueError: A prompt has a word that is not known, or too many.
        """
        none = encode("")
        return torch.tensor([[none, encode(line)] for line in prompt.splitlines() or [""]])

"""Lengths that count the prompt: how long it is is known with a request, and counts with its padding."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator import Dim, HostStage, InputError, TensorSpec

__all__ = ["PromptWidth"]


class PromptWidth(HostStage):
    """Host stage: how many tokens the prompts of a request have, the padding between them included.

    Takes ``input_ids`` ``[batch, tokens]``. Gives ``width`` ``[batch]``, int64, the same for all rows of a request.

    Args:
        rows: The dim of the batch.
        longest: How many tokens a sequence has at most, its prompt included; None: as many as are added.
    """

    def __init__(self, rows: Dim, longest: int | None) -> None:
        super().__init__(tag="width")
        self.longest = longest
        self.inputs = {"input_ids": None}
        self.outputs = {"width": TensorSpec((rows,), torch.int64, pad=0)}

    def forward(self, input_ids: Tensor) -> Tensor:
        """Counts.

        Raises:
            InputError: No token can be added.
        """
        rows, width = input_ids.shape
        if self.longest is not None and width >= self.longest:
            raise InputError(
                f"The prompts have {width} tokens with their padding, and max_length={self.longest} counts them, so no "
                "token can be added. Shorten them, or give from_transformers max_new_tokens= in place of max_length=.",
                input="input_ids",
            )
        return torch.full((rows,), width, dtype=torch.int64)

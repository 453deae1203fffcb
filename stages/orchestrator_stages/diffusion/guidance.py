"""Classifier-free guidance: two guesses in one batch, one without the prompt and one with it.

The denoiser is asked twice about the same latents, and the answer is drawn from the guess without the prompt
through the one with it, and beyond (Ho and Salimans 2022). Both questions go to it as one batch of twice the
size: first the latents for the guesses without the prompt, then the same for those with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Twice(nn.Module):
    """Puts a batch behind itself."""

    def forward(self, latents: Tensor) -> Tensor:
        """Returns ``[2*batch, ...]`` for ``latents`` ``[batch, ...]``."""
        return torch.cat([latents, latents])


class Guide(nn.Module):
    """Draws one answer from both guesses."""

    def forward(self, output: Tensor, scale: Tensor) -> Tensor:
        """Returns ``[batch, ...]``.

        Args:
            output: ``[2*batch, ...]``: guesses without the prompt, then those with it.
            scale: A scalar ``[]``, float32 or float64: 1 follows the prompt as it is, more exaggerates it. It counts
                to its own precision, as a number of Python does, though ``output`` may be in half precision.
        """
        negative, positive = output.chunk(2)
        pull = positive - negative
        return negative + (scale * pull.to(scale.dtype)).to(pull.dtype)


class Ask(nn.Module):
    """Makes what the denoiser is shown: latents, scaled as the scheduler wants it, and twice with guidance.

    Args:
        scale: The stage ``(latents, row) -> latents`` of the scheduler, or None.
        guidance: There is guidance.
    """

    def __init__(self, scale: nn.Module | None, *, guidance: bool) -> None:
        super().__init__()
        self.scale = scale
        self.guidance = guidance
        self.twice = Twice()

    def forward(self, latents: Tensor, row: Tensor | None = None) -> Tensor:
        """Returns ``[batch, ...]``, or ``[2*batch, ...]`` with guidance.

        Args:
            latents: ``[batch, ...]``.
            row: The scheduler's row, where it scales.
        """
        model_input: Tensor = latents if self.scale is None else self.scale(latents, row)
        return self.twice(model_input) if self.guidance else model_input

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
            scale: A scalar ``[]``, float32: 1 follows the prompt as it is, more exaggerates it.
        """
        without, prompted = output.chunk(2)
        return without + scale * (prompted - without)

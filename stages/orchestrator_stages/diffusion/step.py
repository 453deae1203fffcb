"""One step of each scheduler as a stage on the device: what the denoiser said, the latents and one row of the table.

Whatever of a step depends on its number alone is worked out on the host, in the row; `schedule` makes the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def ddim_rows(shares: Tensor, next_shares: Tensor) -> Tensor:
    """Makes the rows that :class:`DDIMStep` reads.

    Args:
        shares: ``[n]``, float32: share of the picture before each step (alpha bar), above 0.
        next_shares: ``[n]``: the same after it.

    Returns:
        ``[n, 4]``: standard deviation of noise and of picture before the step, of picture and of noise after
        it; that is ``sqrt(1 - share), sqrt(share), sqrt(next), sqrt(1 - next)``.
    """
    columns = (1 - shares).sqrt(), shares.sqrt(), next_shares.sqrt(), (1 - next_shares).sqrt()
    return torch.stack(columns, dim=1)


class DDIMStep(nn.Module):
    """Moves the latents one step: guesses the picture and the noise in them, and mixes both anew.

    Args:
        prediction_type: What ``output`` is: ``epsilon``, ``sample`` or ``v_prediction``.
        clip: The guessed picture is clipped to ``-clip .. clip``; None: it is not.
    """

    def __init__(self, prediction_type: str = "epsilon", clip: float | None = None) -> None:
        super().__init__()
        self.prediction_type = prediction_type
        self.clip = clip

    def forward(self, output: Tensor, latents: Tensor, row: Tensor) -> Tensor:
        """Returns the next latents.

        Args:
            output: What the denoiser said of ``latents``.
            latents: Any shape.
            row: ``[4]``, a row of :func:`ddim_rows`.
        """
        noise_now, picture_now, picture_next, noise_next = row.unbind()
        if self.prediction_type == "epsilon":
            picture, noise = (latents - noise_now * output) / picture_now, output
        elif self.prediction_type == "sample":
            picture, noise = output, (latents - picture_now * output) / noise_now
        else:
            picture = picture_now * latents - noise_now * output
            noise = picture_now * output + noise_now * latents
        # The noise stays that of the unclipped picture, as in diffusers with use_clipped_model_output=False.
        if self.clip is not None:
            picture = picture.clamp(-self.clip, self.clip)
        return picture_next * picture + noise_next * noise


class EulerScale(nn.Module):
    """Scales latents for the denoiser: the last column of the row is what they are divided by."""

    def forward(self, latents: Tensor, row: Tensor) -> Tensor:
        """Returns the scaled latents for ``latents`` of any shape and ``row`` ``[5]``."""
        return latents / row[4]


class EulerStep(nn.Module):
    """Moves the latents one step along the line from the guessed picture through where they are.

    Args:
        prediction_type: What ``output`` is: ``epsilon``, ``sample`` or ``v_prediction``.
    """

    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__()
        self.prediction_type = prediction_type

    def forward(self, output: Tensor, latents: Tensor, row: Tensor) -> Tensor:
        """Returns the next latents, in the dtype of ``output``.

        Args:
            output: What the denoiser said.
            latents: Any shape, not scaled.
            row: ``[5]``: the level, what the step adds to it, and for ``v_prediction`` the factor of ``output``
                and the divisor of the latents; then the divisor of
                :class:`EulerScale`.
        """
        level, change, factor, divisor, _ = row.unbind()
        wide = latents.to(torch.float32)
        if self.prediction_type == "epsilon":
            picture = wide - level * output
        elif self.prediction_type == "sample":
            picture = output
        else:
            picture = output * factor + wide / divisor
        return (wide + (wide - picture) / level * change).to(output.dtype)


class FlowMatchStep(nn.Module):
    """Moves the latents one step in the direction that the denoiser says."""

    def forward(self, output: Tensor, latents: Tensor, row: Tensor) -> Tensor:
        """Returns the next latents, in the dtype of ``output``.

        Args:
            output: What the denoiser said.
            latents: Any shape.
            row: ``[1]``: what the step adds to the level.
        """
        return (latents.to(torch.float32) + row[0] * output).to(output.dtype)

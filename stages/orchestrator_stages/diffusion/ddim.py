"""The scheduler DDIM without noise of its own (Song et al. 2020, eta = 0), as diffusers' ``DDIMScheduler``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.noise import NoiseOptions
from orchestrator_stages.diffusion.schedule import Table
from orchestrator_stages.diffusion.spacing import Numbers, leading, trailing


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
        if self.clip is not None:
            picture = picture.clamp(-self.clip, self.clip)
        return picture_next * picture + noise_next * noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(NoiseOptions):
    """Options of DDIM; those of :class:`~orchestrator_stages.diffusion.noise.NoiseOptions` and these.

    Args:
        clip_sample: The guessed picture is clipped in each step.
        clip_sample_range: To this range on both sides of zero.
        set_alpha_to_one: After the last step nothing but picture is left; else what is left at timestep 0.
    """

    columns: ClassVar[int] = 4
    timestep_dtype: ClassVar[torch.dtype] = torch.int64
    refused: ClassVar[Mapping[str, Any]] = {"thresholding": False}
    unread: ClassVar[frozenset[str]] = frozenset({"dynamic_thresholding_ratio", "sample_max_value"})

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True

    def table(self, steps: int) -> Table:
        """Makes the table; its rows are those of :func:`ddim_rows`."""
        timesteps = torch.from_numpy(self._timesteps(self.checked(steps)))
        shares = self.shares()
        following = timesteps - self.num_train_timesteps // steps
        last = torch.tensor(1.0) if self.set_alpha_to_one else shares[0]
        next_shares = torch.where(following >= 0, shares[following.clamp(min=0)], last)
        return Table(timesteps, ddim_rows(shares[timesteps], next_shares), 1.0)

    def _timesteps(self, steps: int) -> Numbers:
        train = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            rounded: Numbers = np.linspace(0, train - 1, steps).round()
            return rounded[::-1].astype(np.int64)
        if self.timestep_spacing == "leading":
            return leading(steps, train) + self.steps_offset
        return trailing(steps, train)

    def step(self) -> nn.Module:
        """Returns a :class:`DDIMStep`."""
        return DDIMStep(self.prediction_type, self.clip_sample_range if self.clip_sample else None)

"""The Euler scheduler of Karras et al. 2022 (algorithm 2 without churn), as diffusers' ``EulerDiscreteScheduler``.

Here the latents are the picture plus noise of a *level* sigma, and grow with it. The denoiser was trained on
latents of constant size, so they are scaled down before it sees them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.noise import NoiseOptions
from orchestrator_stages.diffusion.schedule import Table
from orchestrator_stages.diffusion.spacing import RESPACED, Numbers, leading, trailing

SMALLEST_SHARE = 2**-24
"""Stands for a share of zero, whose level would be infinite; the smallest float16."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(NoiseOptions):
    """Options of Euler; those of :class:`~orchestrator_stages.diffusion.noise.NoiseOptions` and these.

    Args:
        interpolation_type: Levels between timesteps: ``linear`` or ``log_linear``.
        use_karras_sigmas: Levels as in Karras et al. 2022.
        use_exponential_sigmas: Levels in equal distances of their logarithms.
        use_beta_sigmas: Levels at quantiles of a beta distribution; needs scipy.
        sigma_min: Lowest level of those three; None: that of the timesteps.
        sigma_max: Highest level, likewise.
        final_sigmas_type: The level after the last step: ``zero``, or ``sigma_min``, that of timestep 0.
    """

    columns: ClassVar[int] = 5
    refused: ClassVar[Mapping[str, Any]] = {"timestep_type": "discrete"}

    timestep_spacing: str = "linspace"
    interpolation_type: str = "linear"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("interpolation_type", "linear", "log_linear")
        self.one_of("final_sigmas_type", "zero", "sigma_min")

    def table(self, steps: int) -> Table:
        """Makes the table; its rows are those of :class:`EulerStep`."""
        timesteps, levels = self._visited(self.checked(steps))
        level, following = levels[:steps], levels[1 : steps + 1]
        divisor = level.square() + 1
        scale = divisor.sqrt()
        rows = torch.stack([level, following - level, -level / scale, divisor, scale], dim=1)
        highest = levels.max()
        spread = self.timestep_spacing == "leading"
        start = (highest.square() + 1).sqrt() if spread else highest
        return Table(timesteps, rows, start.item())

    def step(self) -> nn.Module:
        """Returns an :class:`EulerStep`."""
        return EulerStep(self.prediction_type)

    def scale(self) -> nn.Module:
        """Returns an :class:`EulerScale`."""
        return EulerScale()

    def _visited(self, steps: int) -> tuple[Tensor, Tensor]:
        """Returns timesteps ``[steps]`` and at least ``steps + 1`` levels, float32."""
        shares = self.shares()
        if self.rescale_betas_zero_snr:
            shares[-1] = SMALLEST_SHARE
        trained = ((1 - shares) / shares).sqrt().numpy()
        timesteps = self._timesteps(steps)
        levels = self._levels(timesteps, trained)
        for option, respace in RESPACED.items():
            if getattr(self, option):
                low = levels[-1].item() if self.sigma_min is None else self.sigma_min
                high = levels[0].item() if self.sigma_max is None else self.sigma_max
                levels = respace(low, high, steps)
                timesteps = _timesteps_of(levels, np.log(trained))
        last = 0.0 if self.final_sigmas_type == "zero" else trained[0]
        levels = np.concatenate([levels, [last]]).astype(np.float32)
        return torch.from_numpy(timesteps.astype(np.float32)), torch.from_numpy(levels)

    def _timesteps(self, steps: int) -> Numbers:
        train = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            timesteps: Numbers = np.linspace(0, train - 1, steps, dtype=np.float32)[::-1].copy()
            return timesteps
        if self.timestep_spacing == "leading":
            return leading(steps, train).astype(np.float32) + self.steps_offset
        return trailing(steps, train).astype(np.float32)

    def _levels(self, timesteps: Numbers, trained: Numbers) -> Numbers:
        if self.interpolation_type == "linear":
            return np.interp(timesteps, np.arange(len(trained)), trained)
        ends = np.log(trained[-1]), np.log(trained[0])
        levels: Numbers = torch.linspace(*ends, len(timesteps) + 1).exp().numpy()
        return levels


def _timesteps_of(levels: Numbers, trained: Numbers) -> Numbers:
    """Returns the timesteps at which training met these levels, interpolated; ``trained``: logarithms, rising."""
    logs = np.log(np.maximum(levels, 1e-10))
    below = (np.searchsorted(trained, logs, side="right") - 1).clip(0, len(trained) - 2)
    low, high = trained[below], trained[below + 1]
    part = ((low - logs) / (low - high)).clip(0, 1)
    timesteps: Numbers = (1 - part) * below + part * (below + 1)
    return timesteps

"""The schedulers: options to a table for a number of steps, one row for each, and the stages that read a row."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.schedule import (
    DiffusionScheduler,
    NoiseScheduler,
    Numbers,
    Table,
    leading,
    trailing,
)
from orchestrator_stages.diffusion.step import DDIMStep, EulerScale, EulerStep, FlowMatchStep, ddim_rows

SMALLEST_SHARE = 2**-24
"""Stands for a share of zero, whose level would be infinite; the smallest float16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(NoiseScheduler):
    """DDIM without noise of its own (Song et al. 2020, eta = 0), as diffusers' ``DDIMScheduler``.

    Args:
        clip_sample: The guessed picture is clipped in each step.
        clip_sample_range: To this range on both sides of zero.
        set_alpha_to_one: After the last step nothing but picture is left; else what is left at timestep 0.
    """

    columns: ClassVar[int] = 4
    timestep_dtype: ClassVar[torch.dtype] = torch.int64
    fixed_options: ClassVar[Mapping[str, Any]] = {"thresholding": False}
    unread_options: ClassVar[frozenset[str]] = frozenset({"dynamic_thresholding_ratio", "sample_max_value"})

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True

    def table(self, steps: int) -> Table:
        """Makes the table; its rows are those of :func:`~orchestrator_stages.diffusion.step.ddim_rows`."""
        timesteps = torch.from_numpy(self._timesteps(self.check_steps(steps)))
        shares = self.shares()
        next_timesteps = timesteps - self.num_train_timesteps // steps
        last = torch.tensor(1.0) if self.set_alpha_to_one else shares[0]
        next_shares = torch.where(next_timesteps >= 0, shares[next_timesteps.clamp(min=0)], last)
        return Table(timesteps, ddim_rows(shares[timesteps], next_shares), 1.0)

    def _timesteps(self, steps: int) -> Numbers:
        train = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            timesteps: Numbers = np.linspace(0, train - 1, steps).round()
            return timesteps[::-1].astype(np.int64)
        if self.timestep_spacing == "leading":
            return leading(steps, train) + self.steps_offset
        return trailing(steps, train)

    def step(self) -> nn.Module:
        """Returns a :class:`~orchestrator_stages.diffusion.step.DDIMStep`."""
        return DDIMStep(self.prediction_type, self.clip_sample_range if self.clip_sample else None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(NoiseScheduler):
    """Euler of Karras et al. 2022 (algorithm 2 without churn), as diffusers' ``EulerDiscreteScheduler``.

    Here the latents are the picture plus noise of a level, and grow with it. The denoiser was trained on latents of
    constant size, so they are scaled down before it sees them.

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
    fixed_options: ClassVar[Mapping[str, Any]] = {"timestep_type": "discrete"}

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
        self.check_choice("interpolation_type", "linear", "log_linear")
        self.check_choice("final_sigmas_type", "zero", "sigma_min")

    def table(self, steps: int) -> Table:
        """Makes the table; its rows are those of :class:`~orchestrator_stages.diffusion.step.EulerStep`."""
        timesteps, levels = self._timesteps_and_levels(self.check_steps(steps))
        level, next_level = levels[:steps], levels[1 : steps + 1]
        divisor = level.square() + 1
        scale = divisor.sqrt()
        rows = torch.stack([level, next_level - level, -level / scale, divisor, scale], dim=1)
        # diffusers takes the first latents for picture and noise with `leading`, for noise alone otherwise.
        highest = levels.max()
        start = (highest.square() + 1).sqrt() if self.timestep_spacing == "leading" else highest
        return Table(timesteps, rows, start.item())

    def step(self) -> nn.Module:
        """Returns an :class:`~orchestrator_stages.diffusion.step.EulerStep`."""
        return EulerStep(self.prediction_type)

    def scale(self) -> nn.Module:
        """Returns an :class:`~orchestrator_stages.diffusion.step.EulerScale`."""
        return EulerScale()

    def _timesteps_and_levels(self, steps: int) -> tuple[Tensor, Tensor]:
        """Returns timesteps ``[steps]`` and at least ``steps + 1`` levels, float32."""
        shares = self.shares()
        if self.rescale_betas_zero_snr:
            shares[-1] = SMALLEST_SHARE
        training_levels = ((1 - shares) / shares).sqrt().numpy()
        timesteps = self._timesteps(steps)
        levels = self._levels(timesteps, training_levels)
        # Levels that are spaced anew lie between timesteps of training: the denoiser is told fractions of them.
        for spacing in self.spacings():
            low = levels[-1].item() if self.sigma_min is None else self.sigma_min
            high = levels[0].item() if self.sigma_max is None else self.sigma_max
            levels = spacing(low, high, steps)
            timesteps = _timesteps_of(levels, np.log(training_levels))
        last = 0.0 if self.final_sigmas_type == "zero" else training_levels[0]
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

    def _levels(self, timesteps: Numbers, training_levels: Numbers) -> Numbers:
        if self.interpolation_type == "linear":
            return np.interp(timesteps, np.arange(len(training_levels)), training_levels)
        ends = np.log(training_levels[-1]), np.log(training_levels[0])
        levels: Numbers = torch.linspace(*ends, len(timesteps) + 1).exp().numpy()
        return levels


def _timesteps_of(levels: Numbers, training_logs: Numbers) -> Numbers:
    """Returns the timesteps at which training met these levels, interpolated between rising logarithms."""
    logs = np.log(np.maximum(levels, 1e-10))
    below = (np.searchsorted(training_logs, logs, side="right") - 1).clip(0, len(training_logs) - 2)
    low, high = training_logs[below], training_logs[below + 1]
    part = ((low - logs) / (low - high)).clip(0, 1)
    timesteps: Numbers = (1 - part) * below + part * (below + 1)
    return timesteps


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatchEuler(DiffusionScheduler):
    """Euler for models trained by flow matching, as diffusers' ``FlowMatchEulerDiscreteScheduler``.

    The latents are ``(1 - level) * picture + level * noise``, a straight line, and the denoiser says its direction.
    A large picture keeps recognisable at a level where a small one is gone, so the levels are *shifted* towards
    noise by a constant, or by ``mu``, which depends on the number of latents (Esser et al. 2024, section 5.3.2).

    Args:
        num_train_timesteps: Timesteps are levels times this.
        shift: The constant shift of the levels; 1 leaves them.
        use_dynamic_shifting: They are shifted by ``mu`` instead.
        base_shift: ``mu`` for ``base_image_seq_len`` latents.
        max_shift: ``mu`` for ``max_image_seq_len`` latents; it is linear in between and beyond.
        base_image_seq_len: See there.
        max_image_seq_len: See there.
        shift_terminal: The last level before zero; None: as it comes.
        use_karras_sigmas: Levels as in Karras et al. 2022.
        use_exponential_sigmas: Levels in equal distances of their logarithms.
        use_beta_sigmas: Levels at quantiles of a beta distribution; needs scipy.
        time_shift_type: How ``mu`` shifts: ``exponential`` or ``linear``.
    """

    columns: ClassVar[int] = 1
    fixed_options: ClassVar[Mapping[str, Any]] = {
        "invert_sigmas": False,
        "stochastic_sampling": False,
        # Not options of its own, but read where a config has them from another scheduler.
        "sigma_min": None,
        "sigma_max": None,
        "use_flow_sigmas": False,
    }

    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float | None = 0.5
    max_shift: float | None = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    time_shift_type: str = "exponential"

    def __post_init__(self) -> None:
        self.check_choice("time_shift_type", "exponential", "linear")

    def mu(self, latents: int) -> float:
        """Returns the shift for a picture of this many latents (after packing)."""
        low = 0.5 if self.base_shift is None else self.base_shift
        high = 1.15 if self.max_shift is None else self.max_shift
        slope = (high - low) / (self.max_image_seq_len - self.base_image_seq_len)
        return latents * slope + (low - slope * self.base_image_seq_len)

    def table(self, steps: int, *, mu: float | None = None, levels: Sequence[float] | None = None) -> Table:
        """Makes the table; its rows are those of :class:`~orchestrator_stages.diffusion.step.FlowMatchStep`.

        Args:
            steps: Number of steps.
            mu: The shift, where the options say ``use_dynamic_shifting``.
            levels: Levels before they are shifted, as many as steps; None: as in training.

        Raises:
            ValueError: The number of steps is none, ``mu`` is missing, there are more or fewer levels, or
                there is one step and the options give ``shift_terminal``.
        """
        if self.use_dynamic_shifting and mu is None:
            raise ValueError(
                "This scheduler shifts by the size of the picture (use_dynamic_shifting): give mu."
            )
        if levels is not None and len(levels) != self.check_steps(steps):
            raise ValueError(f"There are {len(levels)} levels for {steps} steps; give one for each.")
        # First shifted, then spaced anew between the ends that the shift gave: the order of diffusers.
        numbers = (
            self._training_levels(self.check_steps(steps))
            if levels is None
            else np.array(levels, dtype=np.float32)
        )
        numbers = self._shift(numbers, mu)
        for spacing in self.spacings():
            numbers = spacing(numbers[-1].item(), numbers[0].item(), len(numbers))
        before = torch.from_numpy(numbers).to(torch.float32)
        after = torch.cat([before[1:], torch.zeros(1)])
        return Table(before * self.num_train_timesteps, (after - before)[:, None], 1.0)

    def step(self) -> nn.Module:
        """Returns a :class:`~orchestrator_stages.diffusion.step.FlowMatchStep`."""
        return FlowMatchStep()

    def _training_levels(self, steps: int) -> Numbers:
        """Levels from the highest to the lowest of training, in equal distances."""
        count = np.float32(self.num_train_timesteps)
        ends = torch.tensor([count, 1.0]) / self.num_train_timesteps
        if not self.use_dynamic_shifting:
            ends = self.shift * ends / (1 + (self.shift - 1) * ends)
        high, low = (end * self.num_train_timesteps for end in ends.tolist())
        return np.linspace(high, low, steps) / self.num_train_timesteps

    def _shift(self, levels: Numbers, mu: float | None) -> Numbers:
        if not self.use_dynamic_shifting:
            levels = self.shift * levels / (1 + (self.shift - 1) * levels)
        else:
            assert mu is not None
            weight = math.exp(mu) if self.time_shift_type == "exponential" else mu
            levels = weight / (weight + (1 / levels - 1) ** 1.0)
        if self.shift_terminal:
            if len(levels) == 1:
                raise ValueError("A scheduler with shift_terminal takes at least 2 steps.")
            rest = 1 - levels
            levels = 1 - rest / (rest[-1] / (1 - self.shift_terminal))
        return levels

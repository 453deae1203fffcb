"""Euler steps for models trained by flow matching, as diffusers' ``FlowMatchEulerDiscreteScheduler``.

The latents are ``(1 - level) * picture + level * noise``, a straight line, and the denoiser says its direction.
A large picture keeps recognisable at a level where a small one is gone, so the levels are *shifted* towards
noise by a constant, or by ``mu``, which depends on the number of latents (Esser et al. 2024, section 5.3.2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.schedule import Scheduler, Table
from orchestrator_stages.diffusion.spacing import RESPACED, Numbers


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatchEuler(Scheduler):
    """Options of the flow matching Euler scheduler.

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
    refused: ClassVar[Mapping[str, Any]] = {
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
        self.one_of("time_shift_type", "exponential", "linear")

    def mu(self, latents: int) -> float:
        """Returns the shift for a picture of this many latents (after packing)."""
        low = 0.5 if self.base_shift is None else self.base_shift
        high = 1.15 if self.max_shift is None else self.max_shift
        slope = (high - low) / (self.max_image_seq_len - self.base_image_seq_len)
        return latents * slope + (low - slope * self.base_image_seq_len)

    def table(self, steps: int, *, mu: float | None = None, levels: Sequence[float] | None = None) -> Table:
        """Makes the table; its rows are those of :class:`FlowMatchStep`.

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
        if levels is not None and len(levels) != self.checked(steps):
            raise ValueError(f"There are {len(levels)} levels for {steps} steps; give one for each.")
        visited = self._trained(self.checked(steps)) if levels is None else np.array(levels, dtype=np.float32)
        visited = self._respaced(self._shifted(visited, mu))
        before = torch.from_numpy(visited).to(torch.float32)
        after = torch.cat([before[1:], torch.zeros(1)])
        return Table(before * self.num_train_timesteps, (after - before)[:, None], 1.0)

    def step(self) -> nn.Module:
        """Returns a :class:`FlowMatchStep`."""
        return FlowMatchStep()

    def _trained(self, steps: int) -> Numbers:
        """Levels from the highest to the lowest of training, in equal distances."""
        count = np.float32(self.num_train_timesteps)
        ends = torch.tensor([count, 1.0]) / self.num_train_timesteps
        if not self.use_dynamic_shifting:
            ends = self.shift * ends / (1 + (self.shift - 1) * ends)
        high, low = (end * self.num_train_timesteps for end in ends.tolist())
        return np.linspace(high, low, steps) / self.num_train_timesteps

    def _shifted(self, levels: Numbers, mu: float | None) -> Numbers:
        if not self.use_dynamic_shifting:
            moved = self.shift * levels / (1 + (self.shift - 1) * levels)
        else:
            assert mu is not None
            weight = math.exp(mu) if self.time_shift_type == "exponential" else mu
            moved = weight / (weight + (1 / levels - 1) ** 1.0)
        if self.shift_terminal:
            if len(levels) == 1:
                raise ValueError("A scheduler with shift_terminal takes at least 2 steps.")
            rest = 1 - moved
            moved = 1 - rest / (rest[-1] / (1 - self.shift_terminal))
        return moved

    def _respaced(self, levels: Numbers) -> Numbers:
        for option, respace in RESPACED.items():
            if getattr(self, option):
                return respace(levels[-1].item(), levels[0].item(), len(levels))
        return levels

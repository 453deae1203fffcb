"""How noisy a picture is at each timestep of training.

A noisy picture is ``sqrt(share) * picture + sqrt(1 - share) * noise``. The *share* of the picture falls from
nearly one at timestep 0 to nearly zero at the last. It is the running product of ``1 - beta``, and a *beta*
says how much noise one timestep adds.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orchestrator_stages.diffusion.schedule import Scheduler

COSINE_OFFSET = 0.008
"""Keeps the first betas of the cosine schedule away from zero (Nichol and Dhariwal 2021, section 3.2)."""

LARGEST_BETA = 0.999
"""Keeps its last betas away from one (likewise)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseOptions(Scheduler):
    """Options of the schedulers whose models were trained with betas.

    Args:
        num_train_timesteps: Timesteps of training.
        beta_start: The first beta.
        beta_end: The last.
        beta_schedule: How they go from one to the other: ``linear``, ``scaled_linear`` (their square roots are
            linear) or ``squaredcos_cap_v2`` (the share is a squared cosine; start and end are not used).
        trained_betas: The betas themselves, instead.
        prediction_type: What the denoiser says: ``epsilon`` (the noise), ``sample`` (the picture) or
            ``v_prediction`` (``sqrt(share) * noise - sqrt(1 - share) * picture``).
        timestep_spacing: Which timesteps a request visits: ``linspace``, ``leading`` or ``trailing``.
        steps_offset: Added to them with ``leading``.
        rescale_betas_zero_snr: The last timestep is pure noise.
    """

    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        self.one_of("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2")
        self.one_of("prediction_type", "epsilon", "sample", "v_prediction")
        self.one_of("timestep_spacing", "linspace", "leading", "trailing")

    def shares(self) -> Tensor:
        """Returns the share of the picture at each timestep, ``[num_train_timesteps]``, float32."""
        betas = self._betas()
        return (1.0 - (_zero_terminal(betas) if self.rescale_betas_zero_snr else betas)).cumprod(0)

    def _betas(self) -> Tensor:
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float32)
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float32)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(
                self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float32
            ).square()
        shares = [_cosine_share(index / count) for index in range(count + 1)]
        betas = [1 - after / before for before, after in itertools.pairwise(shares)]
        return torch.tensor(betas, dtype=torch.float32).clamp(max=LARGEST_BETA)


def _cosine_share(time: float) -> float:
    return math.cos((time + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2


def _zero_terminal(betas: Tensor) -> Tensor:
    """Shifts and stretches ``sqrt(share)`` so that it ends at zero and begins where it did (Lin et al. 2023)."""
    roots = (1.0 - betas).cumprod(0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    shares = ((roots - last) * (first / (first - last))).square()
    return 1 - torch.cat([shares[:1], shares[1:] / shares[:-1]])

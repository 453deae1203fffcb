"""How noise falls from step to step: what all schedulers have in common, and the words of their papers.

A noisy picture is ``sqrt(share) * picture + sqrt(1 - share) * noise``: the *share* of the picture falls from
nearly one at timestep 0 to nearly zero at the last; it is the running product of ``1 - beta``, and a *beta* says how
much noise one timestep adds. A noise *level* (sigma) is the standard deviation of the noise over that of the picture.

Options have the names, defaults and meaning of those of diffusers' scheduler of the same name, so that
``DDIM.from_config(pipe.scheduler.config)`` reads them. An option that would change the result and is not known
here is refused, never ignored. The tables have the bits of diffusers' own, which needs its precision at every
stage: numpy's float64 until the end for what it computes in numpy, torch's float32 for the rest.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator import GraphError

if TYPE_CHECKING:
    from typing_extensions import Self

Numbers = NDArray[Any]

KARRAS_RHO = 7.0
"""How much more often low levels are visited than high ones (Karras et al. 2022, section 3)."""

BETA_SHAPE = (0.6, 0.6)
"""Shape of the beta distribution in "Beta Sampling is All You Need" (Lee et al. 2024)."""

COSINE_OFFSET = 0.008
"""Keeps the first betas of the cosine schedule away from zero (Nichol and Dhariwal 2021, section 3.2)."""

LARGEST_BETA = 0.999
"""Keeps its last betas away from one (likewise)."""


class Table(NamedTuple):
    """What a scheduler knows of each of ``n`` steps.

    Attributes:
        timesteps: ``[n]``: what the denoiser is told; int64 or float32, as diffusers has it.
        rows: ``[n, k]``, float32: what the stages of the scheduler read; each says what its columns are.
        start: The standard deviation of the noise that the first step takes.
    """

    timesteps: Tensor
    rows: Tensor
    start: float


def leading(steps: int, train: int) -> Numbers:
    """Returns every ``train // steps``-th timestep, from 0, highest first; int64."""
    timesteps: Numbers = (np.arange(steps) * (train // steps))[::-1].copy()
    return timesteps


def trailing(steps: int, train: int) -> Numbers:
    """Returns timesteps in equal distances from the last one down; int64."""
    return np.round(np.arange(train, 0, -train / steps)).astype(np.int64) - 1


def karras(low: float, high: float, steps: int) -> Numbers:
    """Returns levels from ``high`` to ``low`` in equal distances of their 7th roots."""
    ends = high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO)
    levels: Numbers = (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** KARRAS_RHO
    return levels


def exponential(low: float, high: float, steps: int) -> Numbers:
    """Returns levels from ``high`` to ``low`` in equal distances of their logarithms."""
    levels: Numbers = np.exp(np.linspace(math.log(high), math.log(low), steps))
    return levels


def beta(low: float, high: float, steps: int) -> Numbers:
    """Returns levels from ``high`` to ``low`` at quantiles of a beta distribution; needs scipy."""
    distribution = importlib.import_module("scipy.stats").beta
    places: Numbers = distribution.ppf(1 - np.linspace(0, 1, steps), *BETA_SHAPE)
    return low + places * (high - low)


SPACINGS = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
}
"""Option of a scheduler to the function that spaces its noise levels anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionScheduler:
    """Base class: a subclass is a frozen dataclass of options.

    Attributes:
        columns: How many columns a row of its table has.
        timestep_dtype: Element type of the timesteps.
        fixed_options: Options of diffusers' scheduler with the one value that is supported.
        unread_options: Options that change nothing as long as those are as they are.
    """

    columns: ClassVar[int]
    timestep_dtype: ClassVar[torch.dtype] = torch.float32
    fixed_options: ClassVar[Mapping[str, Any]] = {}
    unread_options: ClassVar[frozenset[str]] = frozenset()

    num_train_timesteps: int = 1000

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the options of diffusers' scheduler of this kind; what is no option of it is ignored, as there.

        Raises:
            GraphError: An option has a value that is not supported.
        """
        for option, value in cls.fixed_options.items():
            if config.get(option, value) != value:
                raise GraphError(
                    f"{cls.__name__} does not support {option}={config[option]!r}; set it to {value!r}.",
                    scheduler=cls.__name__,
                    option=option,
                )
        options = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in config.items() if name in options})

    def table(self, steps: int) -> Table:
        """Makes the table for a number of steps.

        Raises:
            ValueError: The number is not positive, or more than there are timesteps.
        """
        raise NotImplementedError

    def step(self) -> nn.Module:
        """Returns the stage ``(output, latents, row) -> latents``."""
        raise NotImplementedError

    def scale(self) -> nn.Module | None:
        """Returns the stage ``(latents, row) -> latents`` as the denoiser wants them; None where they stay."""
        return None

    def check_steps(self, steps: int) -> int:
        """Returns a number of steps, if it is one."""
        if (
            isinstance(steps, bool)
            or not isinstance(steps, int)
            or not 1 <= steps <= self.num_train_timesteps
        ):
            raise ValueError(
                f"The number of steps is an int from 1 to {self.num_train_timesteps}, the number of timesteps in "
                f"training, not {steps!r}."
            )
        return steps

    def check_choice(self, option: str, *choices: str) -> None:
        """Refuses a value of an option that is none of the choices.

        Raises:
            GraphError: It is.
        """
        value = getattr(self, option)
        if value not in choices:
            raise GraphError(
                f"{option} of {type(self).__name__} is one of {', '.join(map(repr, choices))}, not {value!r}.",
                scheduler=type(self).__name__,
                option=option,
            )

    def spacings(self) -> list[Callable[[float, float, int], Numbers]]:
        """Returns the functions that space the levels anew by the options, in their order."""
        return [spacing for option, spacing in SPACINGS.items() if getattr(self, option)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseScheduler(DiffusionScheduler):
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
        steps_offset: What ``leading`` adds to them.
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
        self.check_choice("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2")
        self.check_choice("prediction_type", "epsilon", "sample", "v_prediction")
        self.check_choice("timestep_spacing", "linspace", "leading", "trailing")

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

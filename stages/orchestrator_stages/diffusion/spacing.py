"""Which timesteps of training, or which noise levels, a request of few steps visits.

A *noise level* (sigma) is the standard deviation of the noise over that of the picture. The results have the
bits of diffusers' own, which needs the same precision at every stage: numpy's float64 until the end.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]

KARRAS_RHO = 7.0
"""How much more often low levels are visited than high ones (Karras et al. 2022, section 3)."""

BETA_SHAPE = (0.6, 0.6)
"""Shape of the beta distribution in "Beta Sampling is All You Need" (Lee et al. 2024)."""


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


RESPACED = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
}
"""Option of a scheduler to the function that spaces its noise levels anew."""

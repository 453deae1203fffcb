"""The pipeline `digits` by hand: the same modules in a Python loop, and what is measured in its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator_stages.demos.digits.noise import SCHEDULE
from orchestrator_stages.demos.digits.trained import denoiser, painter, text
from orchestrator_stages.demos.digits.words import NUMBERS, encode


@dataclass(frozen=True)
class Paintings:
    """What came of some prompts: pictures `[n, 32, 32]`, and the same after each step `[steps, n, 32, 32]`."""

    pictures: Tensor
    previews: Tensor


@dataclass
class Painting:
    """The modules, loaded once."""

    text: Any = field(default_factory=lambda: text().model)
    denoiser: Any = field(default_factory=lambda: denoiser().model)
    painter: Any = field(default_factory=lambda: painter().model)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], *, seed: int = 0, steps: int = 10, guidance: float = 2.0
    ) -> Paintings:
        table, step = SCHEDULE.table(steps), SCHEDULE.step()
        read = self.text(torch.tensor([[encode(""), encode(prompt)] for prompt in prompts]))
        seeds = range(seed, seed + len(prompts))
        latents = torch.stack(
            [torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )
        previews = []
        for time, row in zip(table.timesteps, table.rows, strict=True):
            velocity = self.denoiser(latents, time, read["text"], read["mask"], torch.tensor(guidance))
            latents = step(velocity, latents, row)
            previews.append(self.painter(latents))
        return Paintings(self.painter(latents), torch.stack(previews))


def readings(pictures: Tensor) -> list[int]:
    """What a classifier that was trained on the real digits reads in `[n, 32, 32]` uint8."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    real = load_digits()
    small = functional.avg_pool2d(pictures[:, None].float() / 255, 4).flatten(1) * 16
    return [int(label) for label in SVC(gamma=0.001).fit(real.data, real.target).predict(small.numpy())]


def numbers(count: int, form: str = "{}") -> list[str]:
    """Prompts for `count` pictures of each digit, in the order of the digits."""
    return [form.format(number) for number in NUMBERS for _ in range(count)]


def ink(pictures: Tensor) -> float:
    """How bright the pictures are on average, 0 to 1."""
    return float(pictures.float().mean() / 255)


def slant(pictures: Tensor) -> float:
    """By how many pixels to the right their strokes go for each pixel up, on average."""
    weight = pictures.double() / pictures.double().sum((1, 2), keepdim=True)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    up = (weight * y).sum((1, 2), keepdim=True) - y
    right = x - (weight * x).sum((1, 2), keepdim=True)
    return float(((weight * up * right).sum((1, 2)) / (weight * up * up).sum((1, 2))).mean())

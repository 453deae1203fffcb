"""The host's part of the latents: seeds to noise, and a number of steps to a scheduler's table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.diffusion.loop import SWITCHES
from orchestrator_stages.diffusion.schedule import DiffusionScheduler, Table

Seed = int | torch.Generator | Sequence[int | torch.Generator] | None


def generators(seed: Seed) -> torch.Generator | list[torch.Generator] | None:
    """Returns the generators that a seed stands for: one for all images, or one for each.

    Args:
        seed: An int or a generator of the CPU, or one for each image; None: torch's own generator is used.

    Raises:
        TypeError: It is none of these.
    """
    if seed is None:
        return None
    if isinstance(seed, (list, tuple)):
        return [_generator(one) for one in seed]
    return _generator(seed)


def _generator(seed: object) -> torch.Generator:
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, int) and not isinstance(seed, bool):
        return torch.Generator().manual_seed(seed)
    raise TypeError(f"seed is an int or a torch.Generator, or a list with one for each image, not {seed!r}.")


def draw(shape: tuple[int, ...], seed: Seed, dtype: torch.dtype) -> Tensor:
    """Draws noise as diffusers does with generators of the CPU: one drawing for all images, or one for each.

    Raises:
        ValueError: There are several seeds, but not as many as images.
    """
    sources = generators(seed)
    if not isinstance(sources, list):
        return torch.randn(shape, generator=sources, dtype=dtype)
    # One seed in a list is as the seed alone: all images in one drawing, which gives other numbers than one each.
    if len(sources) == 1:
        return torch.randn(shape, generator=sources[0], dtype=dtype)
    if len(sources) != shape[0]:
        raise ValueError(
            f"There are {len(sources)} seeds for {shape[0]} images; give one for each, or a single one."
        )
    return torch.cat([torch.randn((1, *shape[1:]), generator=one, dtype=dtype) for one in sources])


def pack(latents: Tensor) -> Tensor:
    """Makes tokens ``[batch, height/2 * width/2, 4*channels]`` of ``[batch, channels, height, width]``, for Flux."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), 4 * channels)


class LatentNoise(HostStage):
    """Host stage: draws the latents that the first step takes.

    Takes ``count``, the number of images; ``start``, their standard deviation; and ``seed``, as
    :func:`generators` describes it. Gives ``latents`` ``[images, *shape]``, or packed.

    Args:
        images: The dim of images.
        shape: Channels, height and width of the latents.
        dtype: Their element type.
        is_packed: They are packed to tokens.
    """

    def __init__(
        self, images: Dim, shape: tuple[int, int, int], dtype: torch.dtype, *, is_packed: bool = False
    ) -> None:
        super().__init__(tag="noise")
        self.shape = shape
        self.dtype = dtype
        self.is_packed = is_packed
        self.inputs = {"count": int, "start": float, "seed": object}
        dims = tuple(pack(torch.empty(1, *shape)).shape[1:]) if is_packed else shape
        self.spec = TensorSpec((images, *dims), dtype, pad="repeat_first")
        self.outputs = {"latents": self.spec}

    def forward(self, count: int, start: float, seed: Seed = None) -> Tensor:
        """Draws the noise of one request."""
        noise = draw((count, *self.shape), seed, self.dtype)
        return (pack(noise) if self.is_packed else noise) * start


class DenoisingSchedule(HostStage):
    """Host stage: the scheduler's table for a number of steps, and how strong guidance is.

    Takes ``num_inference_steps`` and ``guidance_scale``. Gives ``timesteps`` ``[steps]``, ``rows`` ``[steps,
    columns]``, ``start``, and with guidance ``scale``, a scalar; with guidance in one batch also the bools ``guided``,
    which is whether the scale is more than 1, and ``alone``, which is whether not.

    Args:
        scheduler: The scheduler.
        steps: The dim of steps.
        guidance: There is guidance; else there is no input for it, and no output.
        has_switches: It is in one batch, and a request may go without.
        table: Makes the table; the scheduler's own if it is None.
        scale_dtype: Element type of the scale.
    """

    def __init__(
        self,
        scheduler: DiffusionScheduler,
        steps: Dim,
        *,
        guidance: bool,
        has_switches: bool = False,
        table: Callable[[int], Table] | None = None,
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(tag="schedule")
        self.has_switches = has_switches
        self.scale_dtype = scale_dtype
        self.table = table or scheduler.table
        self.inputs = {"num_inference_steps": int}
        self.outputs = {
            "timesteps": TensorSpec((steps,), scheduler.timestep_dtype),
            "rows": TensorSpec((steps, scheduler.columns)),
            "start": float,
        }
        # Without guidance there is no port for it: `guidance_scale` would be an input that changes nothing.
        if guidance:
            self.inputs["guidance_scale"] = Real
            self.outputs["scale"] = TensorSpec((), scale_dtype)
        if has_switches:
            self.outputs = {**self.outputs, **dict.fromkeys(SWITCHES, TensorSpec((), torch.bool))}

    def forward(self, num_inference_steps: int, guidance_scale: float | None = None) -> dict[str, Any]:
        """Makes the table of one request."""
        table: dict[str, Any] = self.table(num_inference_steps)._asdict()
        if guidance_scale is not None:
            table["scale"] = torch.tensor(float(guidance_scale), dtype=self.scale_dtype)
            if self.has_switches:
                is_guided = float(guidance_scale) > 1
                table |= {"guided": torch.tensor(is_guided), "alone": torch.tensor(not is_guided)}
        return table


def flux_levels(steps: int) -> list[float]:
    """Returns the levels that Flux starts from: as many as steps, in equal distances from 1 down."""
    levels: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
    return levels


def flux_table(scheduler: Any, latents: int) -> Callable[[int], Table]:
    """Returns the table that Flux uses: levels in equal distances, shifted by the number of packed latents."""

    def table(steps: int) -> Table:
        rows: Table = scheduler.table(
            steps, mu=scheduler.mu(latents), levels=flux_levels(scheduler.check_steps(steps))
        )
        return rows

    return table

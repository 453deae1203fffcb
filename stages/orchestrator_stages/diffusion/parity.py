"""A scheduler of ours beside the one of diffusers that it was read from: both take the same steps, or it is refused.

Options are not all that a scheduler is: somebody may have set its shift, its betas or its levels after it was made,
and a later version of diffusers may compute another table of the same options. A few steps on small numbers, with a
copy, tell.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from orchestrator import GraphError
from orchestrator_stages.diffusion.latents import flux_levels, flux_table

LATENTS = (2, 3, 4)
"""Shape of what the steps are taken with."""


def check_parity(ours: Any, theirs: Any, counts: Iterable[int], *, latents: int | None = None) -> None:
    """Takes all steps of both schedulers, for some numbers of them, and compares the bits.

    Args:
        ours: Our :class:`~orchestrator_stages.diffusion.schedule.DiffusionScheduler`.
        theirs: That of diffusers; it is left alone.
        counts: Numbers of steps. One that diffusers refuses, or that is more than there are timesteps, is left out.
        latents: Number of packed latents, for Flux.

    Raises:
        GraphError: They differ.
    """
    # Of diffusers' a copy, since setting timesteps changes it. What diffusers itself refuses is no difference.
    for count in counts:
        if count > ours.num_train_timesteps:
            continue
        replica = copy.deepcopy(theirs)
        try:
            if latents is None:
                replica.set_timesteps(count)
            else:
                replica.set_timesteps(sigmas=flux_levels(count), mu=ours.mu(latents))
        except Exception:
            continue
        place = _first_difference(ours, replica, count, latents)
        if place is not None:
            cls = type(theirs)
            raise GraphError(
                f"The {cls.__name__} of the pipeline does not do what its options say: {place} of {count} steps "
                f"differs from {type(ours).__name__} here with the same options. Something was set after it was made, "
                f"or this version of diffusers computes it otherwise. Make it anew: pipe.scheduler = "
                f"{cls.__name__}.from_config(pipe.scheduler.config, ...), with what you set as an option.",
                scheduler=cls.__name__,
                part="scheduler",
            )


def _first_difference(ours: Any, theirs: Any, count: int, latents: int | None) -> str | None:
    table = ours.table(count) if latents is None else flux_table(ours, latents)(count)
    if not table.timesteps.equal(theirs.timesteps) or table.start != float(
        getattr(theirs, "init_noise_sigma", 1.0)
    ):
        return "the table"
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(LATENTS, generator=generator)
    step, scale = ours.step(), ours.scale()
    for index, (timestep, row) in enumerate(zip(table.timesteps, table.rows, strict=True), 1):
        # `scale_model_input` comes before `step`: diffusers looks up in it which step it is.
        model_input = sample if scale is None else scale(sample, row)
        if hasattr(theirs, "scale_model_input") and not _same(
            model_input, theirs.scale_model_input(sample, timestep)
        ):
            return f"what the denoiser is shown in step {index}"
        output = torch.randn(LATENTS, generator=generator)
        next_sample = theirs.step(output, timestep, sample, return_dict=False)[0]
        sample = step(output, sample, row)
        if not _same(sample, next_sample):
            return f"step {index}"
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(nan=1e30), other.nan_to_num(nan=1e30))

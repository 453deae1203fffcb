"""A whole request of text to image, 50 steps of DDIM, against diffusers' own call of the same pipeline.

The models are toys with random weights, so that a good part of the time is what stands between them. Both sides read
the prompt, draw the noise, denoise, decode, and give the same picture, bit for bit; neither shows a progress bar.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator_stages import from_diffusers
from orchestrator_stages.diffusion import toy
from tests.bench.measure import Effort, Row, compare

LIMIT = 1.0
STEPS = 50
PROMPT = "a photo of a cat"


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures where diffusers is installed; yields rows."""
    assert device == "cpu"
    if absent():
        return
    yield _row(effort, "Stable Diffusion, DDIM", toy.stable_diffusion(), judged=True)
    yield _row(effort, "SDXL, Euler", toy.stable_diffusion_xl())
    yield _row(effort, "Flux, flow matching", toy.flux(), max_sequence_length=64)


def absent() -> list[str]:
    """Returns the libraries that are not installed."""
    return [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]


def _row(effort: Effort, case: str, pipe: Any, *, judged: bool = False, **options: Any) -> Row:
    size = {"height": toy.SIDE, "width": toy.SIDE, "output_type": "pt", **options}
    with from_diffusers(pipe, **size).plan().load() as session:

        def ours() -> Any:
            return session(prompt=PROMPT, seed=0, num_inference_steps=STEPS)["images"]

        def theirs() -> Any:
            generator = torch.Generator().manual_seed(0)
            return pipe(PROMPT, num_inference_steps=STEPS, generator=generator, **size).images

        equal = torch.equal(ours(), theirs())
        pair = compare(ours, theirs, effort.rounds(40))
    return pair.row(
        "diffusion",
        f"{case}, {STEPS} steps on a toy",
        limit=LIMIT if judged else None,
        equal=equal,
        note="the reference is diffusers' own pipeline",
    )

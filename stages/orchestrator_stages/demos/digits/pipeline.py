"""The pipeline ``digits``: a prompt in, a picture of a handwritten digit out.

    prompt -> prompts -> text ----------------.
    seed --------'-----> noise -> denoise: (denoiser -> step), once for each time -> paint -> sheet

The latents are what the loop carries. They never leave the device while noise is taken out of them; the text goes
to the device once, and so do the times. With ``strip`` the latents are painted after every step as well, and the
paintings collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator import Pipeline, TensorSpec
from orchestrator_stages.demos.digits.nets import LATENT, TEXT
from orchestrator_stages.demos.digits.noise import SCHEDULE
from orchestrator_stages.demos.digits.prompts import BATCH
from orchestrator_stages.demos.digits.words import LENGTH, NUMBERS

STEPS = 50
GUIDANCE = 2.0
SEED = 0


def example_inputs(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns a prompt for each digit, as far as they fit."""
    return {"prompt": "\n".join(NUMBERS[: sizes["batch"]])}


def seeding() -> Pipeline:
    """Builds what reads the seed of a request that gives one."""

    def user_seed(seed: int) -> int:
        return seed

    body = Pipeline("seed")
    read = body.add("given", user_seed, device="host", outputs={"seed": int})
    body.output("chosen", read(body.input("seed", int)))
    return body


def denoising(*, strip: bool = False) -> Pipeline:
    """Builds one step: what the loop runs for each time.

    Its outputs are ``latents`` and, with ``strip``, ``preview``, what they would look like if they were painted.
    """
    body = Pipeline("denoise")
    latents = body.input("latents", TensorSpec(("batch", *LATENT)))
    time = body.input("time", TensorSpec((), torch.int64))
    row = body.input("row", TensorSpec((SCHEDULE.columns,)))
    text = body.input("text", TensorSpec(("batch", 2, LENGTH, TEXT)))
    mask = body.input("mask", TensorSpec(("batch", 2, LENGTH), torch.bool))
    scale = body.input("scale", TensorSpec(()))
    velocity = body.add("denoiser", "digits.denoiser")(latents, time, text, mask, scale)
    latents = body.add("step", SCHEDULE.step())(velocity, latents, row)
    body.output("latents", latents)
    if strip:
        body.output("preview", body.add("paint", "digits.painter")(latents))
    return body


def digits(
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    strip: bool = False,
    batch: int | Sequence[int] = BATCH,
) -> Pipeline:
    """Builds the pipeline.

    Its inputs are ``prompt``, a text such as ``the bold digit 7 leaning right``, or one prompt a line, and ``seed``,
    which may be left out: that of the first picture's noise, 0 by default; the next picture has the next seed.
    Its outputs are ``pictures`` ``[batch, 32, 32]`` and ``picture``, all of them enlarged on one sheet, both grey
    and uint8; with ``strip`` also ``strip``, a sheet that shows how each picture came to be.

    Args:
        steps: How many steps the noise is taken out in; 10 are nearly as good as 50.
        guidance: How strongly a picture follows its prompt: 1 as the networks learned it, more exaggerates it.
        strip: Also show the denoising.
        batch: How many pictures are painted at a time; more are painted one batch after another.

    Raises:
        ValueError: The number of steps is none, or more than the 1,000 times of training.
    """
    # The table is a constant of the pipeline: how many steps there are is an option, not a part of the request.
    table = SCHEDULE.table(steps)
    pipeline = Pipeline("digits")
    pipeline.example_inputs = example_inputs
    prompt = pipeline.input("prompt", str)
    seed = pipeline.input("seed", int, optional=True)
    tokens = pipeline.add("prompts", "digits.prompts", device="host", config={"batch": batch})(prompt)
    seed = pipeline.when("seed", seeding(), inputs={"seed": seed}, otherwise={"chosen": SEED})
    noise = pipeline.add("noise", "digits.noise", device="host")(tokens, seed)
    text = pipeline.add("text", "digits.text")(tokens)
    results = pipeline.loop(
        "denoise",
        denoising(strip=strip),
        carry={"latents": noise},
        each={"time": table.timesteps, "row": table.rows},
        inputs={"text": text["text"], "mask": text["mask"], "scale": torch.tensor(float(guidance))},
        collect=("preview",) if strip else (),
        outputs=("latents", "preview") if strip else ("latents",),
    )
    # The previews are painted inside the loop, where the latents of each step are; here there are only the last.
    latents, previews = results if strip else (results, None)
    pictures = pipeline.add("paint", "digits.painter")(latents)
    pipeline.output("picture", pipeline.add("sheet", "digits.sheet", device="host")(pictures))
    pipeline.output("pictures", pictures)
    if strip:
        pipeline.output("strip", pipeline.add("strip", "digits.strip", device="host")(previews))
    return pipeline

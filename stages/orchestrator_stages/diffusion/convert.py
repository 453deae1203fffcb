"""Turn a loaded diffusers pipeline into a pipeline of stages that runs and plans like any other.

    prompt -> tokens -> text encoders -> join -----------------+
    num_inference_steps -> schedule -> timesteps, rows --------+--> denoise, a loop --> decode -> images
    seed -> noise -> latents ----------------------------------+

The models are those of the given object, used as they are; the tokenizers run on the host; the scheduler's
arithmetic and guidance are stages on the device. The latents stay there from the first step to the last, and
what the prompt was encoded to is put there once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orchestrator import GraphError, Pipeline
from orchestrator_stages.diffusion.ddim import DDIM
from orchestrator_stages.diffusion.euler import Euler
from orchestrator_stages.diffusion.families import flux, stable_diffusion, stable_diffusion_xl
from orchestrator_stages.diffusion.flow_match import FlowMatchEuler
from orchestrator_stages.diffusion.options import Options, number, positive
from orchestrator_stages.diffusion.schedule import Scheduler

NOISE = {"DDIMScheduler": DDIM, "EulerDiscreteScheduler": Euler}
FLOW = {"FlowMatchEulerDiscreteScheduler": FlowMatchEuler}

Family = Callable[[Any, Any, Options], Pipeline]

FAMILIES: dict[str, tuple[Family, dict[str, Any]]] = {
    "StableDiffusionPipeline": (stable_diffusion, NOISE),
    "StableDiffusionXLPipeline": (stable_diffusion_xl, NOISE),
    "FluxPipeline": (flux, FLOW),
}
"""Class of diffusers to how it is converted, and the schedulers that it may have."""

STEPS = {"FluxPipeline": 28}
SCALE = {"StableDiffusionPipeline": 7.5, "StableDiffusionXLPipeline": 5.0, "FluxPipeline": 3.5}
"""What diffusers takes where a user says nothing."""

STEPS_ELSE = 50


def from_diffusers(
    pipe: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    batch: int | Sequence[int] = 1,
    guidance: bool = True,
    num_inference_steps: int | None = None,
    max_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    max_sequence_length: int = 512,
    truncate: bool = False,
    output_type: str = "pil",
    tile: int | None = None,
    overlap: float = 0.25,
) -> Pipeline:
    """Turns a loaded diffusers pipeline into a :class:`~orchestrator.Pipeline`.

    ``StableDiffusionPipeline`` and ``StableDiffusionXLPipeline`` with the scheduler DDIM or Euler, and
    ``FluxPipeline`` with flow matching Euler are supported. The inputs are named as in diffusers; all but
    ``prompt`` may be left out:

    - ``prompt``, ``negative_prompt``: a text, or a list of texts; for SDXL and Flux also ``prompt_2``, for SDXL
      ``negative_prompt_2``;
    - ``num_images_per_prompt``, ``num_inference_steps``, ``guidance_scale``: numbers;
    - ``seed``: an int or a ``torch.Generator`` of the CPU, or a list with one for each image.

    The output is ``images``; for a Stable Diffusion with a safety checker there is ``nsfw_content_detected`` too.
    With the same weights, on the CPU, the images have the bits of those of ``pipe(..., generator=...)``.

    Args:
        pipe: The pipeline of diffusers. Its models are used as they are, and stay on the host until a plan is
            loaded.
        height: Height of the images in pixels; None: as ``pipe`` chooses it.
        width: Their width.
        batch: How many images are made at once; several numbers are the sizes that are compiled. A smaller
            request is padded, a larger one runs in chunks.
        guidance: Guidance by a negative prompt, empty or not, which takes twice the work in each step. Flux has
            none. Without, ``guidance_scale`` is no input of Stable Diffusion.
        num_inference_steps: Steps of a request that does not say; None: as in diffusers.
        max_inference_steps: The most steps that a request may ask for, at least ``num_inference_steps``; None: as
            many as that, and at least 100.
        guidance_scale: Guidance of a request that does not say; None: as in diffusers. 1 and less is none.
        max_sequence_length: The longest prompt for Flux's T5 in tokens.
        truncate: A prompt that is longer than its text encoder takes is cut with a warning, as diffusers does;
            else it is an error.
        output_type: ``pil``: a list of PIL images; ``pt``: ``[images, 3, height, width]``, 0 to 1; ``uint8``:
            ``[images, height, width, 3]``; ``latent``: what the decoder would be given.
        tile: Images are decoded in tiles of so many pixels, for a decoder that only fits a tile; None: at once.
        overlap: Tiles overlap by at least this part of one.

    Raises:
        GraphError: The class, its scheduler or one of its options is not supported, or an argument is wrong.
    """
    name, convert, schedulers = _family(pipe)
    scheduler = _scheduler(pipe, schedulers)
    steps, most = _steps(name, num_inference_steps, max_inference_steps)
    tall, wide = _sides(pipe)
    options = Options(
        height=height or tall,
        width=width or wide,
        factor=pipe.vae_scale_factor * (2 if name == "FluxPipeline" else 1),
        batch=batch,
        guidance=guidance and name != "FluxPipeline",
        num_inference_steps=steps,
        max_inference_steps=most,
        guidance_scale=SCALE[name] if guidance_scale is None else number("guidance_scale", guidance_scale),
        truncate=truncate,
        output_type=output_type,
        tile=tile,
        overlap=overlap,
        max_sequence_length=positive("max_sequence_length", max_sequence_length),
    )
    return convert(pipe, scheduler, options)


def _family(pipe: Any) -> tuple[str, Family, dict[str, Any]]:
    """Finds the class that a pipeline's behaviour comes from; one that overrides it is another family."""
    home = next((cls for cls in type(pipe).__mro__ if "__call__" in vars(cls)), type(pipe))
    if home.__name__ not in FAMILIES or home.__module__.partition(".")[0] != "diffusers":
        raise GraphError(
            f"from_diffusers takes a loaded {', '.join(FAMILIES)} of diffusers, not {type(pipe).__name__}.",
            pipeline=type(pipe).__name__,
        )
    return home.__name__, *FAMILIES[home.__name__]


def _steps(name: str, default: int | None, most: int | None) -> tuple[int, int]:
    """Returns the steps of a request that does not say, and the most that one may ask for."""
    steps = STEPS.get(name, STEPS_ELSE) if default is None else positive("num_inference_steps", default)
    if most is None:
        return steps, max(steps, 100)
    if positive("max_inference_steps", most) < steps:
        raise GraphError(
            f"max_inference_steps={most} is less than num_inference_steps={steps}, the steps of a request that does "
            "not say.",
            option="max_inference_steps",
        )
    return steps, most


def _scheduler(pipe: Any, known: dict[str, Any]) -> Scheduler:
    name = type(pipe.scheduler).__name__
    if name not in known:
        first = next(iter(known))
        raise GraphError(
            f"The scheduler {name} is not supported for {type(pipe).__name__}; {', '.join(known)} is. Change it: "
            f"pipe.scheduler = {first}.from_config(pipe.scheduler.config).",
            scheduler=name,
        )
    scheduler: Scheduler = known[name].from_config(pipe.scheduler.config)
    return scheduler


def _sides(pipe: Any) -> tuple[int, int]:
    """Returns height and width that ``pipe`` chooses."""
    size = getattr(pipe, "default_sample_size", None)
    if size is None:
        size = pipe.unet.config.sample_size
    tall, wide = (size, size) if isinstance(size, int) else size
    return tall * pipe.vae_scale_factor, wide * pipe.vae_scale_factor

"""Turn a loaded diffusers pipeline into a pipeline of stages that runs and plans like any other.

    prompt -> tokens -> text encoders -> join -----------------+
    num_inference_steps -> schedule -> timesteps, rows --------+--> denoise, a loop --> decode -> images
    seed -> noise -> latents ----------------------------------+

The models are those of the given object, used as they are; the tokenizers run on the host; the scheduler's
arithmetic and guidance are stages on the device. The latents stay there from the first step to the last, and
what the prompt was encoded to is put there once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from orchestrator import GraphError, Pipeline
from orchestrator_stages.diffusion import parts
from orchestrator_stages.diffusion.families import flux, stable_diffusion, stable_diffusion_xl
from orchestrator_stages.diffusion.options import Options, number, positive
from orchestrator_stages.diffusion.parity import check_parity
from orchestrator_stages.diffusion.schedule import DiffusionScheduler
from orchestrator_stages.diffusion.schedulers import DDIM, Euler, FlowMatchEuler
from orchestrator_stages.origin import check_config, check_unchanged, library_class

NOISE: Mapping[str, type[DiffusionScheduler]] = {
    "diffusers.schedulers.scheduling_ddim:DDIMScheduler": DDIM,
    "diffusers.schedulers.scheduling_euler_discrete:EulerDiscreteScheduler": Euler,
}
FLOW: Mapping[str, type[DiffusionScheduler]] = {
    "diffusers.schedulers.scheduling_flow_match_euler_discrete:FlowMatchEulerDiscreteScheduler": FlowMatchEuler,
}


@dataclass(frozen=True)
class DiffusionFamily:
    """How pipelines of a class are converted.

    Attributes:
        path: The class.
        convert: Draws the pipeline.
        schedulers: The schedulers that it may have, each with ours.
        steps: Steps of a request that does not say, as in diffusers.
        scale: Its guidance, likewise.
        parts: Its parts, and the classes that they may be of; None: any that can be called.
    """

    path: str
    convert: Callable[[Any, Any, Options], Pipeline]
    schedulers: Mapping[str, type[DiffusionScheduler]]
    steps: int
    scale: float
    parts: Mapping[str, tuple[str, ...] | None]

    @property
    def name(self) -> str:
        """The name of its class."""
        return self.path.partition(":")[2]


FAMILIES = (
    DiffusionFamily(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion:StableDiffusionPipeline",
        stable_diffusion,
        NOISE,
        50,
        7.5,
        {"vae": parts.VAE, "text_encoder": parts.CLIP, "tokenizer": None, "unet": parts.UNET},
    ),
    DiffusionFamily(
        "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl:StableDiffusionXLPipeline",
        stable_diffusion_xl,
        NOISE,
        50,
        5.0,
        {
            "vae": parts.VAE,
            "text_encoder": parts.CLIP,
            "text_encoder_2": parts.CLIP_PROJECTED,
            "tokenizer": None,
            "tokenizer_2": None,
            "unet": parts.UNET,
        },
    ),
    DiffusionFamily(
        "diffusers.pipelines.flux.pipeline_flux:FluxPipeline",
        flux,
        FLOW,
        28,
        3.5,
        {
            "vae": parts.VAE,
            "text_encoder": parts.CLIP,
            "text_encoder_2": parts.T5,
            "tokenizer": None,
            "tokenizer_2": None,
            "transformer": parts.FLUX,
        },
    ),
)


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
        guidance: Guidance by a negative prompt, empty or not, which takes twice the work in each step; a request
            with a ``guidance_scale`` of 1 or less goes without, in a batch of half the size, which is compiled too.
            False: no request has guidance, and ``guidance_scale`` is no input. Flux has none of this kind.
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
        GraphError: The class, a part, its scheduler or one of its options is not supported; something of it was
            changed, or may keep anything from one step to the next; a part is missing; or an argument is wrong. The
            message names the part or option.
    """
    # What the pipeline is made of is checked before anything is drawn: the parts, then what stands between them.
    family = _family(pipe)
    for name, paths in family.parts.items():
        parts.part(pipe, name, paths)
    parts.check_pictures(pipe)
    scheduler = _scheduler(pipe, family)
    # What the caller leaves out is as in diffusers; Flux rounds to packed latents, and guides inside the model.
    steps, most = _steps(family, num_inference_steps, max_inference_steps)
    tall, wide = (height, width) if height is not None and width is not None else _sides(pipe)
    is_flux = family.convert is flux
    options = Options(
        height=tall if height is None else height,
        width=wide if width is None else width,
        factor=pipe.vae_scale_factor * (2 if is_flux else 1),
        batch=batch,
        guidance=guidance and not is_flux,
        num_inference_steps=steps,
        max_inference_steps=most,
        guidance_scale=family.scale if guidance_scale is None else number("guidance_scale", guidance_scale),
        truncate=truncate,
        output_type=output_type,
        tile=tile,
        overlap=overlap,
        max_sequence_length=positive("max_sequence_length", max_sequence_length),
    )
    pipeline = family.convert(pipe, scheduler, options)
    # Options are not all that a scheduler is: a walk beside diffusers' own, with the table that will be used, tells.
    levels = (options.height // options.factor) * (options.width // options.factor) if is_flux else None
    check_parity(scheduler, pipe.scheduler, options.steps.buckets, latents=levels)
    return pipeline


def _family(pipe: Any) -> DiffusionFamily:
    """Finds the class that a pipeline's behaviour comes from; one that changes any of it is refused."""
    base = library_class(pipe, [family.path for family in FAMILIES])
    if base is None:
        cls, names = type(pipe), ", ".join(family.name for family in FAMILIES)
        raise GraphError(
            f"from_diffusers takes a loaded {names} of diffusers, not {cls.__name__} of {cls.__module__}. Draw what it "
            "does as a pipeline: its models are stages as they are, and its steps are a loop.",
            pipeline=cls.__name__,
        )
    check_unchanged(pipe, base, "the pipeline")
    return next(family for family in FAMILIES if family.path == f"{base.__module__}:{base.__name__}")


def _steps(family: DiffusionFamily, default: int | None, most: int | None) -> tuple[int, int]:
    """Returns the steps of a request that does not say, and the most that one may ask for."""
    steps = family.steps if default is None else positive("num_inference_steps", default)
    if most is None:
        return steps, max(steps, 100)
    if positive("max_inference_steps", most) < steps:
        raise GraphError(
            f"max_inference_steps={most} is less than num_inference_steps={steps}, the steps of a request that does "
            "not say.",
            option="max_inference_steps",
        )
    return steps, most


def _scheduler(pipe: Any, family: DiffusionFamily) -> DiffusionScheduler:
    """Returns our scheduler for that of a pipeline."""
    theirs: Any = getattr(pipe, "scheduler", None)
    # The class first, since its options mean something only then; the message names one that would do.
    base = library_class(theirs, family.schedulers)
    if base is None:
        names = [path.partition(":")[2] for path in family.schedulers]
        cls = type(theirs)
        foreign = theirs is not None and not cls.__module__.startswith("diffusers.")
        description = (
            "None" if theirs is None else f"{cls.__name__} of {cls.__module__}" if foreign else cls.__name__
        )
        raise GraphError(
            f"The scheduler {description} is not supported for {family.name}; {', '.join(names)} is. Change it: "
            f"pipe.scheduler = {names[0]}.from_config(pipe.scheduler.config).",
            scheduler=cls.__name__,
            part="scheduler",
        )
    check_unchanged(theirs, base, "pipe.scheduler")
    kind = family.schedulers[f"{base.__module__}:{base.__name__}"]
    options = {field.name for field in fields(kind)} | kind.fixed_options.keys() | kind.unread_options
    config = theirs.config
    check_config(config, parts.defaults_of(base), options, f"The {base.__name__} of pipe.scheduler")
    return kind.from_config(config)


def _sides(pipe: Any) -> tuple[int, int]:
    """Returns height and width that ``pipe`` chooses."""
    size = getattr(pipe, "default_sample_size", None)
    if size is None:
        size = pipe.unet.config.sample_size
    if size is None:
        raise GraphError("The UNet has no sample_size; pass height and width.", option="sample_size")
    tall, wide = (size, size) if isinstance(size, int) else size
    return tall * pipe.vae_scale_factor, wide * pipe.vae_scale_factor

"""The three families of text-to-image pipelines, drawn from their parts."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator import GraphError, Pipeline, TensorSpec
from orchestrator_stages.diffusion import denoisers, encoders, parts
from orchestrator_stages.diffusion.draft import Draft
from orchestrator_stages.diffusion.latents import flux_table
from orchestrator_stages.diffusion.options import Options
from orchestrator_stages.diffusion.schedule import Scheduler
from orchestrator_stages.diffusion.tokens import Reader

LONGEST = 512
"""The longest prompt in tokens that diffusers gives to Flux's T5."""


def stable_diffusion(pipe: Any, scheduler: Scheduler, options: Options) -> Pipeline:
    """Stable Diffusion: one CLIP, whose last layer the denoiser reads."""
    parts.check_unet(pipe.unet, (None, "text"))
    parts.check_text_encoder(pipe.text_encoder)
    draft = Draft("stable-diffusion", pipe, scheduler, options, pipe.text_encoder.dtype)
    tokens = draft.tokens([_reader(pipe, pipe.tokenizer)])
    encode = draft.pipeline.add("text_encoder", encoders.LastLayer(pipe.text_encoder))
    text = encode(tokens["ids_1"])
    width = pipe.text_encoder.config.hidden_size
    if options.guidance:
        text = draft.pipeline.add("join", encoders.Pair())(encode(tokens["negative_ids_1"]), text)
    spec = draft.conditioning(pipe.tokenizer.model_max_length, width)
    latents = draft.denoise(
        "unet",
        denoisers.UNet(pipe.unet),
        tokens["count"],
        (pipe.unet.config.in_channels, options.height // options.factor, options.width // options.factor),
        {"text": (text, spec)},
    )
    return draft.finish(latents)


def stable_diffusion_xl(pipe: Any, scheduler: Scheduler, options: Options) -> Pipeline:
    """SDXL: two CLIPs side by side, the second one's pooled output, and six numbers about the picture."""
    parts.check_unet(pipe.unet, ("text_time",))
    if getattr(pipe, "watermark", None) is not None:
        raise GraphError(
            "A pipeline that puts a watermark into its images is not supported; load it with add_watermarker=False.",
            option="add_watermarker",
        )
    draft = Draft(
        "stable-diffusion-xl",
        pipe,
        scheduler,
        options,
        pipe.text_encoder_2.dtype,
        moments=True,
        upcast=True,
    )
    tokens = draft.tokens([_reader(pipe, pipe.tokenizer), _reader(pipe, pipe.tokenizer_2)])
    first = draft.pipeline.add("text_encoder", encoders.LastButOne(pipe.text_encoder))
    second = draft.pipeline.add(
        "text_encoder_2", encoders.LastButOneAndPooled(pipe.text_encoder_2), outputs=("text", "pooled")
    )
    given = [first(tokens["ids_1"]), *second(tokens["ids_2"])]
    if options.guidance:
        zeros = bool(pipe.config.force_zeros_for_empty_prompt)
        join = draft.pipeline.add("join", encoders.PairXL(zeros=zeros), outputs=("text", "pooled"))
        without = [first(tokens["negative_ids_1"]), *second(tokens["negative_ids_2"])]
        text, pooled = join(*without, *given, tokens["negated"])
    else:
        join = draft.pipeline.add("join", encoders.SideBySide())
        text, pooled = join(*given[:2]), given[2]
    width = pipe.text_encoder.config.hidden_size + pipe.text_encoder_2.config.hidden_size
    projection = pipe.text_encoder_2.config.projection_dim
    size = (options.height, options.width)
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=draft.dtype)
    latents = draft.denoise(
        "unet",
        denoisers.UNetXL(pipe.unet),
        tokens["count"],
        (pipe.unet.config.in_channels, options.height // options.factor, options.width // options.factor),
        {
            "text": (text, draft.conditioning(pipe.tokenizer.model_max_length, width)),
            "pooled": (pooled, draft.conditioning(projection)),
            "time_ids": (time_ids, TensorSpec((1, 6), draft.dtype)),
        },
    )
    return draft.finish(latents)


def flux(pipe: Any, scheduler: Any, options: Options) -> Pipeline:
    """Flux: T5's last layer and CLIP's pooled output; guidance is a number that the denoiser reads, if any."""
    config = pipe.transformer.config
    parts.check_channels(config, config.out_channels or config.in_channels)
    if pipe.vae.config.get("shift_factor") is None:
        raise GraphError("Flux reads shift_factor of its vae, which has none.", option="shift_factor")
    length = options.max_sequence_length
    if length > LONGEST:
        raise GraphError(
            f"max_sequence_length is at most {LONGEST} for Flux, not {length}.", option="max_sequence_length"
        )
    draft = Draft("flux", pipe, scheduler, options, pipe.text_encoder_2.dtype, shift=True)
    tokens = draft.tokens(
        [_reader(pipe, pipe.tokenizer, pipe.tokenizer_max_length), _reader(pipe, pipe.tokenizer_2, length)]
    )
    pooled = draft.pipeline.add("text_encoder", encoders.Pooled(pipe.text_encoder))(tokens["ids_1"])
    text = draft.pipeline.add("text_encoder_2", encoders.LastLayer(pipe.text_encoder_2))(tokens["ids_2"])
    height, width = options.height // options.factor, options.width // options.factor
    guided = bool(config.guidance_embeds)
    latents = draft.denoise(
        "transformer",
        denoisers.FluxTransformer(pipe.transformer, height, width, length, draft.dtype),
        tokens["count"],
        (config.in_channels // 4, 2 * height, 2 * width),
        {
            "text": (text, draft.conditioning(length, pipe.text_encoder_2.config.d_model)),
            "pooled": (
                pooled,
                draft.conditioning(pipe.text_encoder.config.hidden_size, dtype=pipe.text_encoder.dtype),
            ),
        },
        table=flux_table(scheduler, height * width),
        packed=True,
        embedded="guidance" if guided else None,
    )
    return draft.finish(latents, packed=(2 * height, 2 * width))


def _reader(pipe: Any, tokenizer: Any, length: int | None = None) -> Reader:
    return Reader(
        tokenizer, length or tokenizer.model_max_length, getattr(pipe, "maybe_convert_prompt", None)
    )

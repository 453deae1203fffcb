"""The three families of text-to-image pipelines, drawn from their parts."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator import GraphError, Pipeline, TensorSpec
from orchestrator_stages.diffusion import denoisers, encoders, parts
from orchestrator_stages.diffusion.builder import DiffusionBuilder
from orchestrator_stages.diffusion.latents import flux_table
from orchestrator_stages.diffusion.options import Options
from orchestrator_stages.diffusion.schedule import DiffusionScheduler
from orchestrator_stages.diffusion.tokens import PromptTokenizer

LONGEST = 512
"""The longest prompt in tokens that diffusers gives to Flux's T5."""


def stable_diffusion(pipe: Any, scheduler: DiffusionScheduler, options: Options) -> Pipeline:
    """Stable Diffusion: one CLIP, whose last layer the denoiser reads."""
    parts.check_unet(pipe.unet, (None, "text"))
    parts.check_text_encoder(pipe.text_encoder)
    builder = DiffusionBuilder("stable-diffusion", pipe, scheduler, options, pipe.text_encoder.dtype)
    tokens = builder.tokens([_prompt_tokenizer(pipe, pipe.tokenizer)])
    # One stage, called for each prompt: weights once, and with guidance both answers in one tensor.
    encode = builder.pipeline.add("text_encoder", encoders.LastLayer(pipe.text_encoder))
    text = encode(tokens["ids_1"])
    width = pipe.text_encoder.config.hidden_size
    if options.guidance:
        text = builder.pipeline.add("join", encoders.Pair())(encode(tokens["negative_ids_1"]), text)
    spec = builder.conditioning(pipe.tokenizer.model_max_length, width)
    latents = builder.denoise(
        "unet",
        denoisers.UNet(pipe.unet),
        tokens["count"],
        (pipe.unet.config.in_channels, options.height // options.factor, options.width // options.factor),
        {"text": (text, spec)},
    )
    return builder.finish(latents)


def stable_diffusion_xl(pipe: Any, scheduler: DiffusionScheduler, options: Options) -> Pipeline:
    """SDXL: two CLIPs side by side, the second one's pooled output, and six numbers about the picture."""
    parts.check_unet(pipe.unet, ("text_time",))
    if getattr(pipe, "watermark", None) is not None:
        raise GraphError(
            "A pipeline that puts a watermark into its images is not supported; load it with add_watermarker=False.",
            option="add_watermarker",
        )
    builder = DiffusionBuilder(
        "stable-diffusion-xl",
        pipe,
        scheduler,
        options,
        pipe.text_encoder_2.dtype,
        moments=True,
        upcast=True,
    )
    tokens = builder.tokens(
        [_prompt_tokenizer(pipe, pipe.tokenizer), _prompt_tokenizer(pipe, pipe.tokenizer_2)]
    )
    first = builder.pipeline.add("text_encoder", encoders.LastButOne(pipe.text_encoder))
    second = builder.pipeline.add(
        "text_encoder_2", encoders.LastButOneWithProjection(pipe.text_encoder_2), outputs=("text", "pooled")
    )
    # With guidance both prompts go through the same encoders and are joined to one tensor; what a denoiser without a
    # negative prompt reads is cut from it in the loop.
    positive = [first(tokens["ids_1"]), *second(tokens["ids_2"])]
    if options.guidance:
        zeros = bool(pipe.config.force_zeros_for_empty_prompt)
        join = builder.pipeline.add("join", encoders.PairXL(zeros=zeros), outputs=("text", "pooled"))
        negative = [first(tokens["negative_ids_1"]), *second(tokens["negative_ids_2"])]
        text, pooled_text = join(*negative, *positive, tokens["negated"])
    else:
        join = builder.pipeline.add("join", encoders.SideBySide())
        text, pooled_text = join(*positive[:2]), positive[2]
    width = pipe.text_encoder.config.hidden_size + pipe.text_encoder_2.config.hidden_size
    projection = pipe.text_encoder_2.config.projection_dim
    # SDXL was trained on crops; a request asks for a whole picture of its size: original, crop at 0, target.
    size = (options.height, options.width)
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=builder.dtype)
    latents = builder.denoise(
        "unet",
        denoisers.UNetXL(pipe.unet),
        tokens["count"],
        (pipe.unet.config.in_channels, options.height // options.factor, options.width // options.factor),
        {
            "text": (text, builder.conditioning(pipe.tokenizer.model_max_length, width)),
            "pooled_text": (pooled_text, builder.conditioning(projection)),
            "time_ids": (time_ids, TensorSpec((1, 6), builder.dtype)),
        },
    )
    return builder.finish(latents)


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
    builder = DiffusionBuilder("flux", pipe, scheduler, options, pipe.text_encoder_2.dtype, shift=True)
    tokens = builder.tokens(
        [
            _prompt_tokenizer(pipe, pipe.tokenizer, pipe.tokenizer_max_length),
            _prompt_tokenizer(pipe, pipe.tokenizer_2, length),
        ]
    )
    pooled_text = builder.pipeline.add("text_encoder", encoders.PooledText(pipe.text_encoder))(
        tokens["ids_1"]
    )
    text = builder.pipeline.add("text_encoder_2", encoders.LastLayer(pipe.text_encoder_2))(tokens["ids_2"])
    height, width = options.height // options.factor, options.width // options.factor
    # Where the model was trained with guidance the scale is a condition; schnell has none, and no such port.
    has_scale = bool(config.guidance_embeds)
    latents = builder.denoise(
        "transformer",
        denoisers.FluxTransformer(pipe.transformer, height, width, length, builder.dtype),
        tokens["count"],
        (config.in_channels // 4, 2 * height, 2 * width),
        {
            "text": (text, builder.conditioning(length, pipe.text_encoder_2.config.d_model)),
            "pooled_text": (
                pooled_text,
                builder.conditioning(pipe.text_encoder.config.hidden_size, dtype=pipe.text_encoder.dtype),
            ),
        },
        table=flux_table(scheduler, height * width),
        is_packed=True,
        scale_port="guidance" if has_scale else None,
    )
    return builder.finish(latents, packed_size=(2 * height, 2 * width))


def _prompt_tokenizer(pipe: Any, tokenizer: Any, length: int | None = None) -> PromptTokenizer:
    return PromptTokenizer(
        tokenizer, length or tokenizer.model_max_length, getattr(pipe, "maybe_convert_prompt", None)
    )

"""Tiny diffusers pipelines with random weights: to try, test and measure things without a download.

They draw noise in colours; what they share with a trained pipeline is every class and every step. Building one
takes a fraction of a second, running one step about a millisecond. They need diffusers and transformers.
"""

from __future__ import annotations

import importlib
import string
from typing import Any

from orchestrator_stages.seeding import seeded

WORDS = 77
"""The longest prompt in tokens, as in CLIP."""

SIDE = 64
"""Side of the pictures in pixels."""

LATENT = 8
"""Side of the latents: a decoder of these families makes 8 x 8 pixels of one."""


def stable_diffusion(seed: int = 0) -> Any:
    """Returns a ``StableDiffusionPipeline`` with the scheduler DDIM, options as in Stable Diffusion 1.5."""
    diffusers = importlib.import_module("diffusers")
    with seeded(seed):
        # The modules draw their weights in this order: another order would be another pipeline for the same seed.
        return _quiet(
            diffusers.StableDiffusionPipeline(
                vae=_vae(),
                text_encoder=_clip(),
                tokenizer=clip_tokenizer(),
                unet=_unet(),
                scheduler=diffusers.DDIMScheduler(
                    beta_start=0.00085,
                    beta_end=0.012,
                    beta_schedule="scaled_linear",
                    clip_sample=False,
                    set_alpha_to_one=False,
                    steps_offset=1,
                ),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        )


def stable_diffusion_xl(seed: int = 0) -> Any:
    """Returns a ``StableDiffusionXLPipeline`` with the scheduler Euler, options as in SDXL 1.0."""
    diffusers = importlib.import_module("diffusers")
    with seeded(seed):
        # As above the order of the modules is part of what a seed means.
        return _quiet(
            diffusers.StableDiffusionXLPipeline(
                vae=_vae(),
                text_encoder=_clip(),
                text_encoder_2=_clip(projection=32),
                tokenizer=clip_tokenizer(),
                tokenizer_2=clip_tokenizer(),
                unet=_unet(
                    cross_attention_dim=64,
                    addition_embed_type="text_time",
                    addition_time_embed_dim=8,
                    projection_class_embeddings_input_dim=6 * 8 + 32,
                ),
                scheduler=diffusers.EulerDiscreteScheduler(
                    beta_start=0.00085,
                    beta_end=0.012,
                    beta_schedule="scaled_linear",
                    steps_offset=1,
                    timestep_spacing="leading",
                ),
                add_watermarker=False,
            )
        )


def flux(seed: int = 0, *, guidance_embeds: bool = True) -> Any:
    """Returns a ``FluxPipeline``, options as in FLUX.1 dev, or schnell without ``guidance_embeds``."""
    diffusers = importlib.import_module("diffusers")
    with seeded(seed):
        # The transformer draws first: the order is part of what a seed means.
        transformer = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=guidance_embeds,
        )
        return _quiet(
            diffusers.FluxPipeline(
                scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                    shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
                ),
                vae=_vae(
                    scaling_factor=0.3611,
                    shift_factor=0.1159,
                    use_quant_conv=False,
                    use_post_quant_conv=False,
                ),
                text_encoder=_clip(),
                tokenizer=clip_tokenizer(),
                text_encoder_2=_t5(),
                tokenizer_2=t5_tokenizer(),
                transformer=transformer.eval(),
            )
        )


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _unet(**options: Any) -> Any:
    unet = importlib.import_module("diffusers").UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        **{"cross_attention_dim": 32, **options},
    )
    return unet.eval()


def _vae(**options: Any) -> Any:
    vae = importlib.import_module("diffusers").AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIDE,
        **options,
    )
    return vae.eval()


def _clip(projection: int | None = None) -> Any:
    """A text encoder, with a projection of the pooled output if a size is given."""
    transformers = importlib.import_module("transformers")
    # SDXL's second encoder, the one with a projection, has another activation than CLIP of Stable Diffusion.
    config = transformers.CLIPTextConfig(
        vocab_size=len(_clip_vocabulary()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=WORDS,
        projection_dim=projection or 32,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=_clip_vocabulary()["<|startoftext|>"],
        eos_token_id=_clip_vocabulary()["<|endoftext|>"],
        pad_token_id=_clip_vocabulary()["<|endoftext|>"],
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def _clip_vocabulary() -> dict[str, int]:
    """Letters and digits, within a word and at its end, and the two special tokens."""
    signs = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def clip_tokenizer() -> Any:
    """Returns a tokenizer of letters for CLIP."""
    transformers = importlib.import_module("transformers")
    return transformers.CLIPTokenizer(vocab=_clip_vocabulary(), merges=[], model_max_length=WORDS)


def _t5() -> Any:
    transformers = importlib.import_module("transformers")
    config = transformers.T5Config(
        vocab_size=len(_t5_vocabulary()),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        is_gated_act=True,
    )
    return transformers.T5EncoderModel(config).eval()


def _t5_vocabulary() -> list[tuple[str, float]]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return [
        *special,
        *((sign, -2.0) for sign in "▁" + string.ascii_letters + string.digits + string.punctuation),
    ]


def t5_tokenizer() -> Any:
    """Returns a tokenizer of letters for T5."""
    transformers = importlib.import_module("transformers")
    return transformers.T5Tokenizer(vocab=_t5_vocabulary(), extra_ids=0, model_max_length=WORDS)

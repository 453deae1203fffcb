"""The parts of a pipeline of diffusers: which classes they may be of, and which of their options are followed.

A pipeline of diffusers looks at some options of its parts itself. What each family looks at is written anew here, so
each option is followed, changes nothing, or is refused by its name; an option of a later version of diffusers, which
nobody thought of here, is refused unless it has its default. The models are called as a whole, with the arguments
that diffusers gives them, so the options that only they read are followed by themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from orchestrator import GraphError
from orchestrator_stages.origin import (
    check_config,
    check_modules,
    check_unchanged,
    library_class,
    unwrap,
)

UNET = ("diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",)
FLUX = ("diffusers.models.transformers.transformer_flux:FluxTransformer2DModel",)
CLIP = ("transformers.models.clip.modeling_clip:CLIPTextModel",)
CLIP_PROJECTED = ("transformers.models.clip.modeling_clip:CLIPTextModelWithProjection",)
T5 = ("transformers.models.t5.modeling_t5:T5EncoderModel",)
VAE = (
    "diffusers.models.autoencoders.autoencoder_kl:AutoencoderKL",
    "diffusers.models.autoencoders.autoencoder_tiny:AutoencoderTiny",
    "diffusers.models.autoencoders.autoencoder_asym_kl:AsymmetricAutoencoderKL",
)
CHECKER = ("diffusers.pipelines.stable_diffusion.safety_checker:StableDiffusionSafetyChecker",)
PROCESSOR = ("diffusers.image_processor:VaeImageProcessor",)

OPTIONS: Mapping[str, str] = {
    "UNet2DConditionModel": """
        sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift down_block_types
        mid_block_type up_block_types only_cross_attention block_out_channels layers_per_block downsample_padding
        mid_block_scale_factor dropout act_fn norm_num_groups norm_eps cross_attention_dim
        transformer_layers_per_block reverse_transformer_layers_per_block encoder_hid_dim encoder_hid_dim_type
        attention_head_dim num_attention_heads dual_cross_attention use_linear_projection class_embed_type
        addition_embed_type addition_time_embed_dim num_class_embeds upcast_attention resnet_time_scale_shift
        resnet_skip_time_act resnet_out_scale_factor time_embedding_type time_embedding_dim time_embedding_act_fn
        timestep_post_act time_cond_proj_dim conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim
        attention_type class_embeddings_concat mid_block_only_cross_attention cross_attention_norm
        addition_embed_type_num_heads
    """,
    "FluxTransformer2DModel": """
        patch_size in_channels out_channels num_layers num_single_layers attention_head_dim num_attention_heads
        joint_attention_dim pooled_projection_dim guidance_embeds axes_dims_rope
    """,
    "AutoencoderKL": """
        in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn
        latent_channels norm_num_groups sample_size scaling_factor shift_factor latents_mean latents_std force_upcast
        use_quant_conv use_post_quant_conv mid_block_add_attention
    """,
    "AutoencoderTiny": """
        in_channels out_channels encoder_block_out_channels decoder_block_out_channels act_fn upsample_fn
        latent_channels upsampling_scaling_factor num_encoder_blocks num_decoder_blocks latent_magnitude latent_shift
        force_upcast scaling_factor shift_factor
    """,
    "AsymmetricAutoencoderKL": """
        in_channels out_channels down_block_types down_block_out_channels layers_per_down_block up_block_types
        up_block_out_channels layers_per_up_block act_fn latent_channels norm_num_groups sample_size scaling_factor
    """,
    "VaeImageProcessor": """
        do_resize vae_scale_factor vae_latent_channels resample reducing_gap do_normalize do_binarize do_convert_rgb
        do_convert_grayscale
    """,
}
"""By class, the options that this module was written for: the model itself reads them, or they are followed or
refused below."""

UNREAD = (
    ("time_cond_proj_dim", "a guidance embedding, as latent consistency models have it"),
    ("class_embed_type", "class labels"),
    ("num_class_embeds", "class labels"),
)
"""Options of a UNet that ask for an input which a request does not have."""


def defaults_of(base: type) -> dict[str, Any]:
    """Returns the options of a class of diffusers with their defaults."""
    parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
    return {option.name: option.default for option in parameters}


def part(pipe: Any, name: str, paths: tuple[str, ...] | None = None) -> Any:
    """Returns a part of a pipeline.

    Args:
        pipe: The pipeline of diffusers.
        name: What the part is called there.
        paths: The classes that it may be of, as :func:`~orchestrator_stages.origin.library_class` has them; None: any
            that can be called.

    Raises:
        GraphError: The pipeline has none, or it is of another class, or changed.
    """
    value = getattr(pipe, name, None)
    if value is None:
        raise GraphError(
            f"The {type(pipe).__name__} has no {name}; load it with all its parts.", part=name, option=name
        )
    # A tokenizer or an extractor runs on the host as it is, whatever its class.
    if paths is None:
        if not callable(value):
            raise GraphError(f"pipe.{name} is a {type(value).__name__}, which cannot be called.", part=name)
        return value
    model = unwrap(value)
    base = library_class(model, paths)
    if base is None:
        classes = ", ".join(path.partition(":")[2] for path in paths)
        cls = type(model)
        raise GraphError(
            f"pipe.{name} is a {cls.__module__}.{cls.__qualname__}; what is supported here is {classes} of "
            f"{paths[0].partition('.')[0]}.",
            part=name,
        )
    # The class is the library's; what is left is whether this object does what the class does, option by option.
    if hasattr(model, "named_modules"):
        check_modules(model, f"pipe.{name}")
    check_unchanged(model, base, f"pipe.{name}")
    options = OPTIONS.get(base.__name__)
    if options is not None:
        check_config(model.config, defaults_of(base), options.split(), f"The {base.__name__} of pipe.{name}")
    return value


def check_pictures(pipe: Any) -> None:
    """Refuses what makes other pictures of a decoder's output than its range brought to 0 to 1.

    Raises:
        GraphError: The image processor or safety checker is of another class, or changed, or has such an option.
    """
    processor = part(pipe, "image_processor", PROCESSOR)
    if not processor.config.do_normalize:
        raise GraphError(
            "The image processor of the pipeline has do_normalize=False, which is not supported.",
            option="do_normalize",
        )
    if getattr(pipe, "safety_checker", None) is not None:
        part(pipe, "safety_checker", CHECKER)
        part(pipe, "feature_extractor")


def check_unet(unet: Any, embed_types: tuple[str | None, ...]) -> None:
    """Refuses a UNet that reads what a request does not give.

    Args:
        unet: The UNet.
        embed_types: The values of ``addition_embed_type`` for which its pipeline has inputs.

    Raises:
        GraphError: It does; the option is named.
    """
    # Each of these options makes the UNet read another input, which a text-to-image request does not have.
    config = unet.config
    for option, reading in UNREAD:
        if config.get(option) is not None:
            raise GraphError(f"A UNet with {reading} ({option}) is not supported.", option=option)
    if config.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise GraphError(
            f"A UNet that reads pictures, as with an IP adapter (encoder_hid_dim_type="
            f"{config.encoder_hid_dim_type!r}), is not supported; call pipe.unload_ip_adapter().",
            option="encoder_hid_dim_type",
        )
    if config.get("addition_embed_type") not in embed_types:
        raise GraphError(
            f"The UNet has addition_embed_type={config.addition_embed_type!r}; in this pipeline it is one of "
            f"{', '.join(map(repr, embed_types))}.",
            option="addition_embed_type",
        )
    check_channels(config, config.out_channels)


def check_channels(config: Any, out_channels: int) -> None:
    """Refuses a denoiser that reads more than latents, as for inpainting or control.

    Raises:
        GraphError: It does.
    """
    if config.in_channels != out_channels:
        raise GraphError(
            f"The denoiser reads {config.in_channels} channels and gives {out_channels} (in_channels): the rest is a "
            "picture or mask that a text-to-image pipeline does not have.",
            option="in_channels",
        )


def check_text_encoder(model: Any) -> None:
    """Refuses a text encoder that Stable Diffusion gives a mask.

    Raises:
        GraphError: Its config asks for one.
    """
    if getattr(model.config, "use_attention_mask", False):
        raise GraphError(
            "The text encoder's config has use_attention_mask=True, with which diffusers hides the padding of a "
            "prompt; that is not supported. Set it to False only if the model was trained without.",
            option="use_attention_mask",
        )

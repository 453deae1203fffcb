"""Tiny models with an encoder of pictures or sound before their decoder, and what a processor gives of one item."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stages.generation.tiny import PAD, SHAPE, transformers

ITEM, VIDEO, BEFORE = 98, 97, 96
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
CLIP = {"model_type": "clip_vision_model", **VISION, "num_hidden_layers": 2, "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", **VISION, "projection_dim": 32, "vision_use_head": False}
PIXTRAL = {"model_type": "pixtral", **VISION, "image_size": 32, "head_dim": 12}
INTERN = {**VISION, "image_size": [16, 16], "patch_size": [4, 4]}
PATCHES = {
    "depth": 1,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
QWEN2 = {**PATCHES, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
QWEN25 = {**PATCHES, "window_size": 16, "fullatt_block_indexes": [0]}
QWEN3 = {**PATCHES, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
LLAMA4 = {
    **VISION,
    "intermediate_size": 96,
    "vision_output_dim": 32,
    "patch_size": 4,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "pixel_shuffle_ratio": 0.5,
}
SOUND = {"num_mel_bins": 8, "max_source_positions": 8}
WHISPER = {**SOUND, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
VOXTRAL = {
    **SOUND,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
QFORMER = {**VISION, "encoder_hidden_size": 24, "vocab_size": 99}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
PARTS = {"rope_parameters" if transformers.__version__ >= "5" else "rope_scaling": ROTARY}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention"]}
CHUNKS = {"intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 8}

PICTURE = {"pixel_values": (1, 3, 16, 16)}
GRID = {"pixel_values": (16, 96), "image_grid_thw": [[1, 4, 4]], "mm_token_type_ids": []}
RECORDING = {"input_features": (1, 8, 16)}
LARGE = {"pixel_values": (1, 3, 32, 32), "image_sizes": [[32, 32]]}
TILES = {"pixel_values": (1, 5, 3, 16, 16), "image_sizes": [[32, 32]]}

#: Name of its classes, config of its encoder, kind and config of its decoder, further options, what an item is (shapes
#: of numbers, integers, token types), and how many tokens it has.
MODELS: Mapping[str, tuple[str, Any, str, Any, Any, Any, int]] = {
    "llava": ("Llava", CLIP, "llama", {}, {}, PICTURE, 4),
    "pixtral": (
        "Llava",
        PIXTRAL,
        "mistral",
        {},
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        {"pixel_values": (1, 3, 16, 16), "image_sizes": [[16, 16]]},
        4,
    ),
    "llava-next": (
        "LlavaNext",
        CLIP,
        "llama",
        {},
        {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]},
        TILES,
        24,
    ),
    "mistral3": (
        "Mistral3",
        PIXTRAL,
        "mistral",
        {},
        {"spatial_merge_size": 2, "multimodal_projector_bias": False},
        LARGE,
        4,
    ),
    "paligemma": ("PaliGemma", SIGLIP, "gemma", {}, {"projection_dim": 32, "hidden_size": 32}, PICTURE, 4),
    "gemma3": (
        "Gemma3",
        {**SIGLIP, "image_size": 32},
        "gemma3_text",
        WINDOW,
        {"mm_tokens_per_image": 4, "tie_word_embeddings": False},
        {"pixel_values": (1, 3, 32, 32), "token_type_ids": []},
        4,
    ),
    "qwen2-vl": ("Qwen2VL", QWEN2, "qwen2_vl_text", PARTS, {}, GRID, 4),
    "qwen2.5-vl": ("Qwen2_5_VL", QWEN25, "qwen2_5_vl_text", PARTS, {}, GRID, 4),
    "qwen3-vl": ("Qwen3VL", QWEN3, "qwen3_vl_text", PARTS, {}, GRID, 4),
    "idefics3": (
        "Idefics3",
        VISION,
        "llama",
        {},
        {"scale_factor": 2},
        {"pixel_values": (1, 1, 3, 16, 16)},
        1,
    ),
    "smolvlm": ("SmolVLM", VISION, "llama", {}, {"scale_factor": 2}, {"pixel_values": (1, 1, 3, 16, 16)}, 1),
    "internvl": ("InternVL", INTERN, "qwen2", {}, {"image_seq_length": 4}, PICTURE, 4),
    "llama4": ("Llama4", LLAMA4, "llama4_text", CHUNKS, {}, PICTURE, 4),
    "blip-2": (
        "Blip2",
        VISION,
        "opt",
        OPT,
        {"qformer_config": QFORMER, "num_query_tokens": 4},
        PICTURE,
        4,
    ),
    "qwen2-audio": (
        "Qwen2Audio",
        {"model_type": "qwen2_audio_encoder", **WHISPER},
        "qwen2",
        {},
        {},
        {**RECORDING, "feature_attention_mask": [[1] * 16]},
        4,
    ),
    "voxtral": ("Voxtral", VOXTRAL, "llama", {}, {}, RECORDING, 2),
}


def tiny_with_items(name: str) -> Any:
    """The model of one of :data:`MODELS`, in eval mode; its weights are large enough that pictures matter."""
    family, encoder, kind, text, options, item, _ = MODELS[name]
    if not hasattr(transformers, f"{family}ForConditionalGeneration"):
        pytest.skip(f"this version of transformers has no {family}")
    label = "audio" if "input_features" in item else "image"
    config = getattr(transformers, f"{family}Config")(
        **{"audio_config" if label == "audio" else "vision_config": encoder},
        text_config={"model_type": kind, **SHAPE, **text},
        **{f"{label}_token_id": ITEM, f"{label}_token_index": ITEM},
        **({"video_token_id": VIDEO, "vision_start_token_id": BEFORE} if "image_grid_thw" in item else {}),
        **options,
    )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def item_of(name: str) -> dict[str, Tensor]:
    """What a processor gives of a prompt with one item and nothing else."""
    ids = torch.full((1, MODELS[name][-1]), ITEM)
    return {"input_ids": ids, **items_in(name, ids)}


def items_in(name: str, ids: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What a processor gives of the items of a prompt, besides its tokens."""
    family, *_, item, count = MODELS[name]
    forward = getattr(transformers, f"{family}ForConditionalGeneration").forward
    number = int((ids == ITEM).sum()) // count
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for key, value in item.items():
        if key.endswith("token_type_ids"):
            # An older Qwen-VL takes no types: it tells pictures from videos by their tokens.
            if key in inspect.signature(forward).parameters:
                values[key] = (ids == ITEM).to(torch.int64)
        elif isinstance(value, tuple):
            values[key] = torch.randn(number * value[0], *value[1:], generator=generator)
        else:
            values[key] = torch.tensor(value * number)
    return values

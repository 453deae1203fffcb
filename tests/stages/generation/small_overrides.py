"""What small configurations and items of single classes are where no rule of names can know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.stages.generation.small_fields import (
    BEFORE,
    END,
    HEAD,
    HEADS,
    ITEM,
    PAD,
    POSITIONS,
    START,
    VOCABULARY,
    WIDTH,
    WINDOW,
)

FULL_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BOTH_ATTENTIONS = ["sliding_attention", "full_attention"]
BOTH_ROPES = dict.fromkeys(BOTH_ATTENTIONS, FULL_ROPE)
TILES = [[16, 32], [32, 16], [32, 32]]
SHARED_LAYERS = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": [*BOTH_ATTENTIONS, *BOTH_ATTENTIONS],
    "intermediate_size": [2 * WIDTH] * 4,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}
QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
}
SMALL_CONVOLUTIONS = {"audio_config.downsample_hidden_size": 8}
PICTURE_READER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
GEMMA4_VISION = {
    **PICTURE_READER,
    **{"model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4},
    **{"pooling_kernel_size": 2, "position_embedding_size": 16},
}
TEXT_WRITER = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": HEADS,
    "n_positions": POSITIONS,
}
TEXT_READER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}

#: By class or model type, what else is set; ``...``: the field is left out. Parts are named by dots.
OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "blenderbot": {"encoder_no_repeat_ngram_size": 0},
    "instructblip": {"image_token_index": ITEM},
    "deepseek_vl_hybrid": {"high_res_vision_config.global_attn_indexes": [1]},
    "gemma4": {"vision_config": GEMMA4_VISION},
    "gemma4_unified": {"vision_config": {**GEMMA4_VISION, "model_type": "gemma4_unified_vision"}},
    "blt": {
        "encoder_hash_byte_group_vocab": 32,
        "encoder_hash_byte_group_size": [3],
        "encoder_config.hidden_size_global": WIDTH,
        "decoder_config.hidden_size_global": WIDTH,
    },
    "bailing_hybrid": {"layer_group_size": 2, "layer_types": ...},
    "chameleon": {
        "vocabulary_map": {"<image>": ITEM, **{f"IMGIMGA{chr(65 + n)}Z": n + 40 for n in range(8)}},
        **{"vq_config.num_embeddings": 8, "vq_config.base_channels": WIDTH},
    },
    "cohere2_vision": {"alignment_intermediate_size": 2 * WIDTH, "downsample_factor": 2},
    "aria": {"projector_patch_to_query_dict": {4: 4}},
    "cohere_compass_text": {"rope_parameters": BOTH_ROPES, "layer_types": BOTH_ATTENTIONS},
    "cohere_compass": {"text_config.rope_parameters": BOTH_ROPES, "text_config.layer_types": BOTH_ATTENTIONS},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "layer_types": BOTH_ATTENTIONS,
    },
    "falcon_h1": {"mamba_d_ssm": WIDTH},
    "gemma3n_text": SHARED_LAYERS,
    "gemma3n": {f"text_config.{name}": value for name, value in SHARED_LAYERS.items()},
    "bamba": {"attn_layer_indices": [1]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "hrm_text": {
        **{"num_hidden_layers": 1, "H_cycles": 1, "L_cycles": 1, "L_bp_cycles": [1]},
        "num_layers_per_stack": None,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {
        **{"hidden_size": 64, "embedding_dim": 64, "num_heads": 2},
        **{"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    },
    "zamba": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 16,
        "hybrid_layer_ids": [1],
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "attention_hidden_size": 2 * WIDTH,
        "attention_head_dim": 16,
        "kv_channels": HEAD,
        "mamba_ngroups": 1,
        "n_mamba_heads": HEADS,
        "mamba_headdim": HEAD,
        "hybrid_layer_ids": [1],
    },
    "led": {"attention_window": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "glm5_next": {"text_config.qk_rope_head_dim": 0, "text_config.head_dim": 0},
    "molmo2": {"adapter_config.vision_feature_layer": [1, 0]},
    "qwen4_exp_text": QWEN4,
    "qwen4_exp": {f"text_config.{name}": value for name, value in QWEN4.items()},
    "reformer": {
        "is_decoder": True,
        "attention_head_size": HEAD,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "roc_bert": {
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": VOCABULARY,
        "pronunciation_vocab_size": VOCABULARY,
        "is_decoder": True,
    },
    "xlnet": {"d_head": HEAD},
    "zaya": {"num_experts_per_tok": 1},
    "qwen3_omni_moe": {"talker_config.text_config.shared_expert_intermediate_size": 16},
    "mamba2": {"n_groups": 1},
    "qwen3_asr": SMALL_CONVOLUTIONS,
    "qwen3_omni_moe_thinker": {**SMALL_CONVOLUTIONS, "vision_start_token_id": BEFORE},
    "florence2": {
        "vision_config.depths": [1, 1],
        "vision_config.patch_size": [7, 3],
        "vision_config.patch_stride": [4, 2],
        "vision_config.patch_padding": [3, 1],
        "vision_config.patch_prenorm": [False, True],
        "vision_config.embed_dim": [8, 16],
        "vision_config.num_heads": [2, 2],
        "vision_config.num_groups": [2, 2],
        "vision_config.window_size": 4,
        "vision_config.projection_dim": WIDTH,
    },
    "fsmt": {
        "langs": ["en", "de"],
        "src_vocab_size": VOCABULARY,
        "tgt_vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    },
    "vipllava": {"vision_feature_layers": [-1, -2]},
    **{
        name: {"text_config.rope_parameters.mrope_section": [1, 1, 2]}
        for name in ("glm4v", "glm46v", "glm_ocr", "paddleocr_vl", "hunyuan_vl")
    },
    "glm4v_moe": {
        "text_config.rope_parameters.mrope_section": [1, 1, 2],
        "text_config.rope_parameters.partial_rotary_factor": 1.0,
    },
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters.mrope_section": [1, 1, 2],
        "text_config.moe_intermediate_size": [16, 16],
    },
    **{name: {"vision_config.window_size": 16} for name in ("exaone4_5", "hyperclovax_vision_v2")},
    "qwen2_5_omni_thinker": {
        **{"vision_config.window_size": 16, "vision_start_token_id": BEFORE},
        "text_config.rope_parameters.mrope_section": [1, 1, 2],
    },
    **{name: {"image_token_id": ITEM} for name in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")},
    "moonshine_streaming": {"num_key_value_heads": HEADS, "head_dim": HEAD},
    "idefics2": {"perceiver_config.resampler_n_latents": 4},
    "deepseek_ocr2": {
        "text_config.max_position_embeddings": 4 * POSITIONS,
        "text_config.mlp_layer_types": ["dense", "sparse"],
        **{
            "vision_config.sam_config.output_channels": 8,
            "vision_config.sam_config.global_attn_indexes": [1],
        },
        **{"vision_config.sam_config.downsample_channels": [16, WIDTH], "text_config.num_experts_per_tok": 2},
    },
    "dots3_note_text": {"swa_qk_nope_head_dim": HEAD, "swa_kv_lora_rank": 8, "swa_q_lora_rank": 8},
    "janus": {
        **{"vq_config.base_channels": WIDTH, "vq_config.channel_multiplier": [1, 1]},
        **{"vq_config.num_embeddings": 16, "vq_config.latent_channels": WIDTH},
        **{"vq_config.image_token_embed_dim": WIDTH, "vision_config.num_image_tokens": 4},
    },
    "emu3": {
        "text_config.max_position_embeddings": 4 * POSITIONS,
        "vocabulary_map": {
            **{"<image>": ITEM, "<|extra_200|>": 40},
            **{f"<|visual token {number:06}|>": number + 41 for number in range(8)},
        },
        **{"vq_config.codebook_size": 8, "vq_config.base_channels": WIDTH},
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.attn_resolutions": [],
    },
    "SpeechEncoderDecoderModel": {
        "": {
            "encoder": {
                **{"model_type": "wav2vec2", "vocab_size": 32, "hidden_size": WIDTH, "num_hidden_layers": 1},
                **{"num_attention_heads": 2, "intermediate_size": 48, "conv_dim": [16, 16]},
                **{"conv_kernel": [8, 4], "conv_stride": [8, 4], "num_conv_pos_embeddings": 8},
                **{"num_conv_pos_embedding_groups": 2},
            },
            "decoder": {"model_type": "gpt2", "add_cross_attention": True, "is_decoder": True, **TEXT_WRITER},
            "decoder_start_token_id": START,
            "pad_token_id": PAD,
        }
    },
    "fun_asr_nano": {"adaptor_config.intermediate_size": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "mistral4": {
        "rope_parameters": {
            **{**FULL_ROPE, "partial_rotary_factor": 0.5, "llama_4_scaling_beta": 0.1},
            "original_max_position_embeddings": POSITIONS,
        }
    },
    "kimi_k25": {"projection_hidden_size": WIDTH, "vision_config.projection_hidden_size": WIDTH},
    "llava_onevision": {"image_grid_pinpoints": TILES},
    "llava_next_video": {"image_grid_pinpoints": TILES},
    "muse_glimmer": {"projector_hidden_size": 2 * WIDTH},
    "muse_spark": {
        **{"projector_hidden_size": 2 * WIDTH, "text_config.moe_hidden_size": 16},
        **{"audio_config.patch_sizes": [4, 2], "audio_config.hidden_sizes": [8, 16]},
        **{"audio_config.depths": [1, 1], "audio_config.num_hidden_layers": 2},
    },
    "step3p7": {
        "text_config.sliding_window": WINDOW,
        "text_config.share_expert_dim": 16,
    },
    **{
        name: {"encoder_config.input_dim": 16, "encoder_config.context_size": 4, "window_size": 3}
        for name in ("granite_speech", "granite_speech_plus")
    },
    "pix2struct": {"text_config.bos_token_id": START},
    "vibevoice": {"eos_token_id": END},
    "VisionEncoderDecoderModel": {
        "": {
            "encoder": {"model_type": "vit", **PICTURE_READER},
            "decoder": {"model_type": "gpt2", "add_cross_attention": True, "is_decoder": True, **TEXT_WRITER},
            "decoder_start_token_id": START,
            "pad_token_id": PAD,
        }
    },
    "EncoderDecoderModel": {
        "": {
            "encoder": {"model_type": "bert", **TEXT_READER},
            "decoder": {"model_type": "bert", "add_cross_attention": True, "is_decoder": True, **TEXT_READER},
            "decoder_start_token_id": START,
            "pad_token_id": PAD,
        }
    },
}

#: By class or model type, one item of what a model reads besides text: shapes of numbers, integers, token types, and
#: ``count``, how many tokens of a prompt stand for it; of an encoder, its input's shape and a mask's ``length``.
ITEMS: Mapping[str, Mapping[str, Any]] = {
    "WhisperForConditionalGeneration": {"input_features": (1, 8, 16)},
    "Speech2TextForConditionalGeneration": {"input_features": (1, 16, 80), "length": 16},
    "MoonshineForConditionalGeneration": {"input_values": (1, 1200), "length": 1200},
    "VisionEncoderDecoderModel": {"pixel_values": (1, 3, 16, 16)},
    "SpeechEncoderDecoderModel": {"input_values": (1, 1200)},
    "SeamlessM4TForSpeechToText": {"input_features": (1, 16, 160), "length": 16, "count": 1},
    "SeamlessM4Tv2ForSpeechToText": {"input_features": (1, 16, 160), "length": 16, "count": 1},
    "instructblip": {
        "pixel_values": (1, 3, 16, 16),
        "qformer_input_ids": [[3, 4]],
        "qformer_attention_mask": [[1, 1]],
        "count": 4,
    },
    "deepseek_vl_hybrid": {
        "pixel_values": (1, 3, 16, 16),
        "high_res_pixel_values": (1, 3, 16, 16),
        "count": 4,
    },
    "qwen2_vl": {
        "pixel_values": (16, 384),
        "image_grid_thw": [[1, 4, 4]],
        "mm_token_type_ids": [],
        "count": 4,
    },
}

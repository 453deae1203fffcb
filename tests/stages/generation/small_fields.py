"""What the fields of small configurations are by their names, and for single classes what no rule of names can know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VOCABULARY, WIDTH, HEADS, HEAD, LAYERS, POSITIONS, WINDOW = 99, 32, 4, 8, 2, 64, 3
ITEM, VIDEO, AUDIO, BEFORE, AFTER = 98, 97, 96, 95, 94
PAD, END, START = 0, 1, 2

#: Names of fields to what they are in a small model.
SIZES: Mapping[str, Any] = {
    name: value
    for names, value in (
        ("vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size", VOCABULARY),
        (
            "hidden_size d_model n_embd dim embed_dim embedding_size model_dim encoder_hidden_size emb_dim "
            "word_embed_proj_dim text_hidden_size out_hidden_size attention_hidden_size projection_dim hidden_dim "
            "decoder_hidden_size cross_attention_hidden_size rnn_hidden_size lru_width output_hidden_size "
            "attention_size ple_embed_dim vision_output_dim projector_input_dim projector_output_dim",
            WIDTH,
        ),
        (
            "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth num_decoder_layers "
            "num_encoder_layers layers num_blocks qformer_layers resampler_depth",
            LAYERS,
        ),
        (
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "attention_heads num_encoder_attention_heads num_decoder_attention_heads resampler_n_heads "
            "swa_num_attention_heads mamba_num_heads mamba_n_heads linear_num_value_heads",
            HEADS,
        ),
        ("swa_num_key_value_heads index_n_heads linear_num_key_heads", 2),
        (
            "head_dim d_kv v_head_dim qk_nope_head_dim qk_rope_head_dim rotary_dim kv_channels swa_head_dim "
            "swa_v_head_dim mamba_head_dim mamba_d_head linear_key_head_dim linear_value_head_dim index_head_dim "
            "resampler_head_dim",
            HEAD,
        ),
        ("qk_head_dim", 2 * HEAD),
        (
            "q_lora_rank kv_lora_rank o_lora_rank laurel_rank gated_norm_rank d_rel mamba_dt_rank time_step_rank "
            "hidden_size_per_layer_input mamba_d_state state_size ssm_state_size hc_lowrank adapter_rank",
            8,
        ),
        (
            "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim ffn_hidden_size n_inner dff mlp_dim "
            "dense_intermediate_size intermediate_size_mlp dim_ff shared_intermediate_size mamba_intermediate_size "
            "attention_intermediate_size feed_forward_size mlp_hidden_size",
            2 * WIDTH,
        ),
        (
            "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size ffn_size "
            "moe_shared_expert_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size moe_latent_size",
            16,
        ),
        ("num_experts num_local_experts n_routed_experts moe_num_experts", 4),
        ("num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k num_selected_experts", 2),
        (
            "n_group topk_group num_expert_group n_groups mamba_n_groups first_k_dense_replace num_dense_layers "
            "n_shared_experts num_shared_experts moe_num_shared_experts moe_layer_start_index",
            1,
        ),
        (
            "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions model_max_length "
            "original_max_position_embeddings max_sequence_length",
            POSITIONS,
        ),
        (
            "sliding_window window_size sliding_window_size attention_window local_attention_window_len",
            WINDOW,
        ),
        ("chunk_size mamba_chunk_size attention_chunk_size chunkwise_kernel_size floor_scale", HEAD),
        ("image_token_id image_token_index media_token_id", ITEM),
        ("video_token_id video_token_index", VIDEO),
        ("audio_token_id audio_token_index", AUDIO),
        (
            "vision_start_token_id image_start_token_id boi_token_id video_start_token_id audio_start_token_id "
            "boi_token_index boa_token_id",
            BEFORE,
        ),
        (
            "vision_end_token_id image_end_token_id eoi_token_id video_end_token_id audio_end_token_id "
            "eoi_token_index eoa_token_index eoa_token_id",
            AFTER,
        ),
        ("pad_token_id _pad_token_id", PAD),
        ("decoder_start_token_id", START),
        ("bos_token_id", START),
        ("eos_token_id forced_eos_token_id forced_bos_token_id encoder_no_repeat_ngram_size", None),
        ("tie_word_embeddings", False),
        ("temporal_patch_size spatial_merge_size", 2),
        ("image_size", 16),
        ("patch_size", 8),
        ("num_mel_bins mel_bins", 8),
        ("max_source_positions", 8),
        ("num_nextn_predict_layers num_mtp_layers num_kv_shared_layers", 0),
        ("mamba_expand expand", 1),
        ("mm_tokens_per_image image_seq_length num_query_tokens", 4),
        ("num_position_embeddings", 16),
        ("embed_dropout dropout attention_dropout", 0.0),
    )
    for name in names.split()
}

#: Of a field, the number of layers that its lists have one entry for each of.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_blocks")

FULL_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BOTH_ATTENTIONS = ["sliding_attention", "full_attention"]
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
    "blt": {
        "encoder_hash_byte_group_vocab": 32,
        "encoder_hash_byte_group_size": [3],
        "encoder_config.hidden_size_global": WIDTH,
        "decoder_config.hidden_size_global": WIDTH,
    },
    "bailing_hybrid": {"layer_group_size": 2, "layer_types": ...},
    "chameleon": {
        "vocabulary_map": {"<image>": ITEM, **{f"IMGIMGA{chr(65 + n)}Z": n + 40 for n in range(8)}}
    },
    "cohere2_vision": {"alignment_intermediate_size": 2 * WIDTH, "downsample_factor": 2},
    "cohere_compass_text": {"rope_parameters": FULL_ROPE, "layer_types": BOTH_ATTENTIONS},
    "cohere_compass": {"text_config.rope_parameters": FULL_ROPE, "text_config.layer_types": BOTH_ATTENTIONS},
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
    "hrm_text": {"num_hidden_layers": 4},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"hidden_size": WIDTH, "embedding_dim": WIDTH, "num_heads": 2, "qk_dim_factor": 0.5},
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
    },
    "led": {"attention_window": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
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
    "qwen3_omni_moe_thinker": SMALL_CONVOLUTIONS,
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
        for name in ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
    },
    "exaone4_5": {"vision_config.window_size": 16},
    "funasr_nano": {"adaptor_config.intermediate_size": 8},
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

#: Fields that a small configuration does not have: what they say of single layers is for the default number of them.
FOR_OTHER_LAYERS = frozenset(
    {"per_layer_config", "no_rope_layers", "full_attn_idxs", "layer_rope_theta"}
    | {"transformers_version", "architectures", "dtype", "id2label", "label2id", "_name_or_path"}
)

#: By class or model type, one item of what a model reads besides text: shapes of numbers, integers, token types, and
#: ``count``, how many tokens of a prompt stand for it; of an encoder, its input's shape and a mask's ``length``.
ITEMS: Mapping[str, Mapping[str, Any]] = {
    "WhisperForConditionalGeneration": {"input_features": (1, 8, 16)},
    "Speech2TextForConditionalGeneration": {"input_features": (1, 16, 80), "length": 16},
    "MoonshineForConditionalGeneration": {"input_values": (1, 1200), "length": 1200},
    "VisionEncoderDecoderModel": {"pixel_values": (1, 3, 16, 16)},
    "qwen2_vl": {
        "pixel_values": (16, 384),
        "image_grid_thw": [[1, 4, 4]],
        "mm_token_type_ids": [],
        "count": 4,
    },
}

"""What the fields of small configurations are by their names."""

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

#: Fields that a small configuration does not have: what they say of single layers is for the default number of them.
FOR_OTHER_LAYERS = frozenset(
    {"per_layer_config", "no_rope_layers", "full_attn_idxs", "layer_rope_theta"}
    | {"transformers_version", "architectures", "dtype", "id2label", "label2id", "_name_or_path"}
)

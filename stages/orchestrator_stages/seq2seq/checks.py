"""Refuse models of which a pipeline would not generate the same: changed classes, parts that are missing, options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orchestrator import GraphError
from orchestrator_stages.origin import check_config, check_modules, check_unchanged

__all__ = ["check_model", "check_prepared", "check_stack"]

COMMON = """
    _name_or_path architectures chunk_size_feed_forward dtype id2label is_encoder_decoder label2id model_type
    output_attentions output_hidden_states problem_type return_dict transformers_version
    bos_token_id eos_token_id pad_token_id decoder_start_token_id forced_eos_token_id tie_word_embeddings use_cache
    vocab_size is_decoder
"""
"""Options of all configs: annotations, tokens that the generation config has, and shapes that the modules have."""

BART = """
    activation_dropout activation_function attention_dropout classifier_dropout d_model decoder_attention_heads
    decoder_ffn_dim decoder_layerdrop decoder_layers dropout encoder_attention_heads encoder_ffn_dim encoder_layerdrop
    encoder_layers init_std max_position_embeddings scale_embedding
"""

T5 = """
    classifier_dropout d_ff d_kv d_model dense_act_fn dropout_rate feed_forward_proj initializer_factor is_gated_act
    layer_norm_epsilon num_decoder_layers num_heads num_layers relative_attention_max_distance
    relative_attention_num_buckets scale_decoder_outputs
"""

OPTIONS: Mapping[str, str] = {
    "t5": T5,
    "mt5": T5,
    "bart": BART,
    "mbart": BART,
    "pegasus": BART,
    "marian": f"{BART} decoder_vocab_size share_encoder_decoder_embeddings",
    "whisper": f"""{BART}
        apply_spec_augment begin_suppress_tokens classifier_proj_size mask_feature_length mask_feature_min_masks
        mask_feature_prob mask_time_length mask_time_min_masks mask_time_prob max_source_positions
        max_target_positions median_filter_width num_mel_bins suppress_tokens use_weighted_layer_sum
    """,
    "trocr": f"{BART} cross_attention_hidden_size layernorm_embedding use_learned_position_embeddings",
    "gpt2": """
        activation_function add_cross_attention attn_pdrop embd_pdrop initializer_range layer_norm_epsilon n_embd
        n_head n_inner n_layer n_positions reorder_and_upcast_attn resid_pdrop scale_attn_by_inverse_layer_idx
        scale_attn_weights summary_activation summary_first_dropout summary_proj_to_labels summary_type
        summary_use_proj
    """,
}
"""By model type, the options that were gone through: the modules hold what they say, or they are checked below."""

SHARED_MODULES = ("torch", "peft", "transformers.activations", "transformers.pytorch_utils")
"""Where the modules of a decoder may be from, but for the file of its model: they are called, not written anew."""

READ = ("embed_tokens", "embed_positions")
"""Modules of which the weights, scale and offset are read, which a wrapper around them does not have."""


def check_model(model: nn.Module, base: type) -> None:
    """Refuses a model that was changed, or that lacks what it generates with.

    Args:
        model: The model.
        base: Its class in transformers.

    Raises:
        GraphError: It is.
    """
    # First what a user forgets, then what was changed, then what generate() itself would miss or refuse.
    busy = next((name or "itself" for name, module in model.named_modules() if module.training), None)
    if busy is not None:
        raise GraphError(
            f"The model is in training mode ({busy}); call model.eval() first.", model=model, part=busy
        )
    check_modules(model, "the model")
    check_unchanged(model, base, "the model")
    if getattr(model, "generation_config", None) is None:
        raise GraphError("The model has no generation_config; load it with one.", part="generation_config")
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise GraphError("The model has no projection to its vocabulary.", part="lm_head")
    config: Any = model.config
    legacy = config._get_generation_parameters()
    if legacy:
        raise GraphError(
            f"model.config says how to generate ({', '.join(legacy)}), which generate() refuses as well; put it into "
            "model.generation_config.",
            option=next(iter(legacy)),
        )


def check_stack(stack: nn.Module, dtype: torch.dtype, name: str = "decoder") -> None:
    """Refuses a decoder whose modules are not those that its class makes, or an encoder.

    Args:
        stack: The decoder, which is written anew here from the modules that it holds.
        dtype: Of its weights.
        name: What it is.

    Raises:
        GraphError: A module is of another class, or an option changes what they compute.
    """
    # The options that the modules do not hold themselves, then module by module: each is of the model's own file,
    # unchanged, or of the libraries whose modules are called and not written anew.
    config: Any = stack.config
    kind = str(config.model_type)
    names = f"{COMMON} {OPTIONS[kind]}".split()
    check_config(config.to_dict(), type(config)().to_dict(), names, f"The config of the {kind} {name}")
    home = type(stack).__module__
    checked_classes: set[type] = set()
    for path, module in stack.named_modules():
        cls = type(module)
        place = f"the model's {name}.{path}" if path else f"the model's {name}"
        is_wrapper = path in READ and cls is not nn.Embedding
        if cls.__module__ != home and (is_wrapper or not cls.__module__.startswith(SHARED_MODULES)):
            raise GraphError(
                f"{place} is a {cls.__module__}.{cls.__qualname__}, which the {name} of a {kind} does not have.",
                part=path,
            )
        if cls.__module__ == home and cls not in checked_classes:
            checked_classes.add(cls)
            check_unchanged(module, cls, place)
    _check_attention(config, dtype)


def _check_attention(config: Any, dtype: torch.dtype) -> None:
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (None, "eager", "sdpa"):
        raise GraphError(
            f"The model computes attention with {implementation!r}; here it is 'sdpa'. Call "
            "model.set_attn_implementation('sdpa').",
            option="attn_implementation",
        )
    wide = dtype in (torch.float32, torch.float64)
    if not wide and getattr(config, "reorder_and_upcast_attn", False) and implementation == "eager":
        raise GraphError(
            f"reorder_and_upcast_attn=True computes attention in float32, which is not supported in {dtype}.",
            option="reorder_and_upcast_attn",
        )


def check_prepared(tokenizer: Any, processor: Any) -> None:
    """Refuses what cannot prepare a request.

    Raises:
        GraphError: The tokenizer or processor is none.
    """
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "decode")):
        raise GraphError(
            f"tokenizer= is a tokenizer of transformers, not {tokenizer!r:.80}.", option="tokenizer"
        )
    if processor is not None and not callable(processor):
        raise GraphError(
            f"processor= is a processor of transformers, not {processor!r:.80}.", option="processor"
        )

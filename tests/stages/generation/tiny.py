"""Tiny models of transformers with random weights that go on with a prompt, whose tokens vary and depend on it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

VOCABULARY = 99
PAD, END, START = 0, 1, 2
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "eos_token_id": None,
    "bos_token_id": START,
}
WINDOWS = {
    "num_hidden_layers": 2,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention"],
}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {
    "num_hidden_layers": 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}

#: Class of the model, class of its config, and what differs from :data:`SHAPE`; ``...``: it has no such option.
DECODERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 3}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", WINDOWS),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", WINDOWS),
    "phi": ("PhiForCausalLM", "PhiConfig", {"num_key_value_heads": 4}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {"alibi": False, "head_dim": ...}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"n_layer": 1, "n_head": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", EXPERTS),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS),
    "qwen3-next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", {**EXPERTS, **LINEAR}),
    "mamba": ("MambaForCausalLM", "MambaConfig", {}),
}


def tiny(name: str, seed: int = 0) -> Any:
    """The model of one of :data:`DECODERS`, in eval mode."""
    kind, config, options = DECODERS[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"this version of transformers has no {kind}")
    torch.manual_seed(seed)
    shape = {option: value for option, value in {**SHAPE, **options}.items() if value is not ...}
    return getattr(transformers, kind)(getattr(transformers, config)(**shape)).eval()


def prompts(*lengths: int, side: str = "left", seed: int = 0) -> dict[str, Tensor]:
    """Prompts of these lengths in one batch."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(longest - length, None) if side == "left" else slice(length)
        ids[row, place] = torch.randint(START + 1, VOCABULARY, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def letters() -> Any:
    """A tokenizer whose words are of few letters, so that texts of any tokens hold most short strings."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = ["".join(word) for length in range(1, 6) for word in itertools.product("ab", repeat=length)]
    texts += ["".join(word) for length in range(1, 4) for word in itertools.product("abc", repeat=length)]
    words = dict.fromkeys(["<pad>", "<end>", "<start>", "abcdef", *texts, *"defghijk"])
    model = tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, "<end>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")

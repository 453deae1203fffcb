"""Cache layers of fixed size give the logits that the library's own growing cache gives, token by token."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

cache_room = pytest.importorskip("orchestrator_stages.generation.cache")
state_room = pytest.importorskip("orchestrator_stages.generation.state")

PROMPT, NEW, VOCABULARY = 7, 4, 99
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
}
WINDOWS = {"head_dim": 8, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}


def model_of(name: str, config: str, **options: Any) -> Any:
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    torch.manual_seed(0)
    options = {**SHAPE, "num_hidden_layers": 2, **options}
    return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


@pytest.mark.parametrize("in_place", [False, True], ids=["functional", "in place"])
@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("LlamaForCausalLM", "LlamaConfig", {}),
        ("Gemma3ForCausalLM", "Gemma3TextConfig", WINDOWS),
        ("Qwen3NextForCausalLM", "Qwen3NextConfig", LINEAR),
    ],
)
@torch.no_grad()
def test_slots_give_the_logits_of_a_cache_that_grows(name: str, config: str, options: Any, in_place: bool):
    model = model_of(name, config, **options)
    ids = torch.randint(3, VOCABULARY, (2, PROMPT))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    following = torch.randint(3, VOCABULARY, (2, NEW))
    growing = transformers.DynamicCache(config=model.config)
    slots = cache_room.empty_cache(model.config, PROMPT + NEW)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    full = torch.cat([mask, torch.ones(2, NEW, dtype=mask.dtype)], 1)
    state: list[torch.Tensor] = []
    template: Any = None
    for number in range(NEW):
        token = ids if number == 0 else following[:, number - 1 : number]
        where = places if number == 0 else places[:, -1:] + number
        common = {"input_ids": token, "position_ids": where, "use_cache": True}
        right = model(**common, attention_mask=full[:, : PROMPT + number], past_key_values=growing)
        # A position is a number or a tensor: what is filled is read then, or all, with a mask that hides the rest.
        is_number = number % 2 == 1
        if number:
            slot = PROMPT + number - 1
            position = slot if is_number else torch.tensor([slot])
            slots = template.cache(state, position, in_place=in_place)
        seen = full[:, : PROMPT + number] if number == 0 or is_number else full
        ours = model(**common, attention_mask=seen, past_key_values=slots)
        torch.testing.assert_close(ours.logits[:, -1], right.logits[:, -1], rtol=1e-4, atol=1e-4)
        if number == 0:
            template = state_room.CacheTemplate(slots)
        before, state = state, list(state_room.state_of(slots).values())
        assert [tensor.shape for tensor in state] == [tensor.shape for tensor in before or state]
        if number:
            assert in_place == all(
                old.data_ptr() == new.data_ptr() for old, new in zip(before, state, strict=True)
            )


@torch.no_grad()
def test_a_template_has_no_tensor_and_names_every_place():
    model = model_of("LlamaForCausalLM", "LlamaConfig")
    cache = cache_room.empty_cache(model.config, 5)
    model(input_ids=torch.ones(1, 2, dtype=torch.int64), past_key_values=cache, use_cache=True)
    template = state_room.CacheTemplate(cache)
    assert template.names == ("keys_0", "values_0", "keys_1", "values_1") == tuple(state_room.state_of(cache))
    assert all(tensor.shape == (1, 2, 5, 8) for tensor in state_room.state_of(cache).values())
    tensors = [weakref.ref(tensor) for tensor in state_room.state_of(cache).values()]
    del cache
    assert [tensor() for tensor in tensors] == [None] * 4


@torch.no_grad()
def test_what_the_encoder_gave_has_places_of_its_own():
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    cache = cache_room.empty_cross_cache(config, 4)
    ids = torch.ones(2, 3, dtype=torch.int64)
    model(input_ids=ids, decoder_input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    assert {name: tuple(tensor.shape) for name, tensor in state_room.state_of(cache).items()} == {
        "keys_0": (2, 2, 4, 8),
        "values_0": (2, 2, 4, 8),
        "cross_keys_0": (2, 2, 3, 8),
        "cross_values_0": (2, 2, 3, 8),
    }

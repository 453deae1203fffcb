"""Drawn tokens: from the right distribution, by the seed, whatever the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator_stages import from_transformers
from orchestrator_stages.seq2seq.choose import sample_tokens
from orchestrator_stages.seq2seq.rules import Sampling
from tests.stages.tiny_models import generated, inputs, tiny, transformers

NEW = 10


def grid(logits: Tensor, sampling: Sampling, count: int = 4000) -> Tensor:
    """The share of each token over numbers that are spread evenly."""
    numbers = (torch.arange(count) + 0.5) / count
    tokens = sample_tokens(logits.expand(count, -1), numbers, sampling)
    return torch.bincount(tokens, minlength=logits.shape[1]) / count


def warped(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution as transformers makes it."""
    processors = transformers.LogitsProcessorList()
    processors.append(transformers.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    return processors(torch.zeros(1, 1, dtype=torch.int64), logits).softmax(1)[0]


@given(
    st.integers(0, 2**16),
    st.floats(0.3, 3),
    st.sampled_from([0, 1, 3, 7, 100]),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_shares_are_those_of_transformers(seed: int, temperature: float, top_k: int, top_p: float):
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed)) * 2
    sampling = Sampling(temperature, top_k, top_p)
    assert torch.allclose(grid(logits, sampling), warped(logits, sampling), atol=1e-3)


@given(st.integers(0, 2**16), st.sampled_from([0.0, 0.5, 1 - 2**-24]))
@settings(max_examples=40, deadline=None)
def test_a_banned_token_is_never_drawn(seed: int, number: float):
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(seed))
    logits[:, ::2] = -torch.inf
    logits[:, -1] = -torch.inf
    for sampling in (Sampling(), Sampling(top_k=40), Sampling(top_p=0.9)):
        tokens = sample_tokens(logits, torch.full((8,), number), sampling)
        assert logits.gather(1, tokens[:, None]).isfinite().all()


def run(model: Any, request: dict[str, Any], **options: Any) -> Tensor:
    options = {"max_new_tokens": NEW, "do_sample": True, "batch": (1, 4), "tokens": (16,), **options}
    with from_transformers(model, **options).plan(device="cpu").load() as session:
        return session(**request)["tokens"]


def test_the_seed_decides():
    model, request = tiny("bart"), inputs("bart")
    first, again, other = (run(model, {**request, "seed": seed}) for seed in (5, 5, 6))
    assert first.equal(again)
    assert not first.equal(other)


def test_a_row_does_not_depend_on_the_others():
    model, request = tiny("bart"), inputs("bart")
    together = run(model, {**request, "seed": 5})
    alone = run(model, {"seed": 5, **{name: value[:1] for name, value in request.items()}})
    assert together[:1].equal(alone)


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_without_choice_it_is_greedy(options: dict[str, Any]):
    model, request = tiny("marian"), inputs("marian")
    tokens = run(model, {**request, "seed": 1}, **options)
    assert tokens.equal(generated(model, request, max_new_tokens=NEW))


def test_the_generator_of_the_caller_is_left_alone():
    before = torch.get_rng_state()
    run(tiny("bart"), {**inputs("bart"), "seed": 1})
    assert torch.get_rng_state().equal(before)

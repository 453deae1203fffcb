"""A cache that is read in buckets of its length gives the tokens that one read as a whole gives."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import GraphError, Plan
from orchestrator_stages import from_transformers
from orchestrator_stages.generation.cache import empty_cache
from orchestrator_stages.generation.lanes import copy_steps, reorder
from tests.stages import tiny_models
from tests.stages.generation.tiny import PAD, prompts, tiny
from tests.stages.seq2seq.test_text import tokenizer

NEW, CACHE = 7, (6, 7, 9, 50)


def plan_of(model: Any, device: str = "cpu", **options: Any) -> Plan[Any]:
    options = {"max_new_tokens": NEW, "batch": (2,), "tokens": (4, 8), "cache": CACHE, **options}
    return from_transformers(model, **options).plan(device=device)


def generated(model: Any, request: dict[str, Tensor], **options: Any) -> Tensor:
    return model.generate(**request, max_new_tokens=NEW, do_sample=False, **options)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_tokens_are_those_of_generate_across_every_border(name: str):
    """Prompts that enter the first loop, or skip some; rows of different lengths."""
    model = tiny(name)
    with plan_of(model).load() as session:
        for lengths in ((4, 2), (8, 3)):
            request = prompts(*lengths)
            tokens = session(**request)["tokens"]
            assert tokens.equal(generated(model, request))
            assert not tokens.is_inference(), "what comes out may be used where gradients are taken"


def iterations(session: Any, request: dict[str, Tensor]) -> tuple[dict[str, int], Tensor]:
    """How often each loop ran, where it ran at all, and the tokens."""
    counts: dict[str, int] = {}
    result = session.run(request, progress=lambda loop, count, _: counts.update({loop: count}))
    return counts, result["tokens"]


def test_each_loop_runs_what_its_bucket_holds_and_later_ones_not_once_all_are_done():
    model, request = tiny("llama"), prompts(4, 2)
    tokens = generated(model, request)
    ended = {"eos_token_id": [int(tokens[0, 5]), int(tokens[1, 5])], "pad_token_id": PAD}
    expected = generated(model, request, **ended)
    assert expected.shape[1] == 6, "all rows end in the first bucket"
    with plan_of(model).load() as session:
        assert iterations(session, request)[0] == {
            "decode-6": 2,
            "decode-7": 1,
            "decode-9": 2,
            "decode-15": 1,
        }
        assert iterations(session, prompts(8, 3))[0] == {"decode-9": 1, "decode-15": 5}
    with plan_of(model, **ended).load() as session:
        counts, tokens = iterations(session, request)
        assert counts == {"decode-6": 1}
        assert tokens.equal(expected)


def test_all_loops_share_one_buffer_and_the_plan_says_when_each_runs():
    plan = plan_of(tiny("llama"))
    assert not [edge for edge in plan.edges if any(part.kind == "clone" for part in edge.adapters)]
    text = str(plan)
    for name in ("decode-6", "decode-7", "decode-9", "decode-15"):
        assert plan.call(f"{name}/decode").aliases == (("keys_0", "keys_0"), ("values_0", "values_0"))
        assert f"none unless 'within-{name[7:]}" in text


def test_a_device_that_compiles_has_a_program_for_each_bucket_and_one_cache_for_texts_too():
    model, reader, texts = tiny("llama"), tokenizer(), ["w5 w6 w7 w8", "w9 w4"]
    options = {"tokenizer": reader, "tokens": (4,), "cache": (6,), "max_new_tokens": 4}
    plan = plan_of(model, "neuron-emulated", **options)
    assert [len(state.updates) for state in plan.states] == [2, 2], "keys and values, each in two loops"
    with plan.load() as session:
        request = reader(texts, padding=True, padding_side="left", return_tensors="pt")
        request = {name: request[name] for name in ("input_ids", "attention_mask")}
        assert session(text=texts)["tokens"].equal(generated(model, request)[:, :8])
        counts = session.stats["measured"]["neuron-emulated"]
    # Two prompts of four tokens go up, with their masks; tokens come home, a flag for each, and one for each loop.
    assert counts["upload_bytes"] == 2 * (2 * 4 * 4)
    assert counts["download_bytes"] == 2 * 4 * 4 + 3 + 2


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_beams_read_the_cache_in_lengths_and_change_places_in_it(name: str):
    """Behind a prompt and behind an encoder; on a device that compiles it is one state of the application."""
    is_text = name == "llama"
    model, request = (
        (tiny(name), prompts(4, 2)) if is_text else (tiny_models.tiny(name), tiny_models.texts((4, 2)))
    )
    options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 3, "cache": (6 if is_text else 3,)}
    pipeline = from_transformers(model, batch=(2,), tokens=(4,), **options)
    plan = pipeline.plan()
    assert not [edge for edge in plan.edges if any(part.kind == "clone" for part in edge.adapters)]
    with plan.load() as session:
        tokens = session(**request)["tokens"]
    assert tokens.equal(model.generate(**request, max_new_tokens=5, num_beams=3, do_sample=False))
    if name == "t5":
        states = pipeline.plan(device="neuron-emulated").states
        assert [len(state.updates) for state in states] == [2] * 4, (
            "keys and values of two layers, each in two loops"
        )


def test_rows_become_those_that_are_named_for_them():
    for order in itertools.product(range(4), repeat=4):
        rows = torch.arange(12).view(3, 4)
        steps = copy_steps(order)
        reorder(rows, 1, steps)
        assert rows.equal(torch.arange(12).view(3, 4)[:, list(order)])
        assert len({target for target, _ in steps} - {-1}) == sum(
            row != source for row, source in enumerate(order)
        )


@pytest.mark.parametrize(
    ("reach", "position", "places"),
    [(3, 2, [0, 1, 2]), (5, 1, [0, 1, 2]), (5, 4, [2, 3, 4]), (None, 5, [3, 4, 5])],
)
def test_a_window_is_read_where_it_is_smaller_than_the_bucket(
    reach: int | None, position: int, places: list[int]
):
    """Three tokens, by a position whose number is not known."""
    layer = empty_cache(tiny("mistral").config, 6).layers[0]
    layer.keys = layer.values = torch.arange(6.0)[None, None, :, None]
    layer.lazy_initialization(layer.keys)
    layer.position, layer.reach = torch.tensor(position), reach
    new = torch.full((1, 1, 1, 1), float(position))
    keys, _ = layer.update(new, new)
    count, first = layer.get_mask_sizes(1)
    assert keys.flatten().tolist() == places
    assert (count, int(first)) == (3, places[0])


@pytest.mark.parametrize("cache", [(0,), (2.5,), (True,)])
def test_lengths_that_are_none_are_refused(cache: Any):
    with pytest.raises(GraphError, match="cache="):
        from_transformers(tiny("llama"), max_new_tokens=NEW, batch=(1,), tokens=(4,), cache=cache)

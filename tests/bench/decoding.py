"""Greedy decoding of 64 tokens: the loop of `from_transformers` next to ``generate()``, and to one written by hand.

Both run the same random weights on the same texts of different lengths, with no token that ends a text, so that both
make all 64. The tiny models are those of the tests; *wide* is as large as a small translator, where most of the time is
arithmetic.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.bench.measure import Effort, Row, compare

LIMIT, LIMIT_BY_HAND = 1.0, 1.05
NEW, LINKED = 64, 8
DEVICE = "neuron-emulated"

#: Name, model, rows of the batch, rounds.
CASES = (
    ("tiny BART", "bart", 1, 40),
    ("tiny BART", "bart", 4, 40),
    ("tiny T5", "t5", 1, 40),
    ("wide Marian", "wide", 1, 15),
    ("wide Marian", "wide", 4, 15),
)


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures, where transformers is installed; yields rows."""
    assert device == "cpu"
    if absent():
        return
    from tests.stages.tiny_models import generated, texts

    model, request = _model("wide"), texts((12, 9, 5, 16))
    expected = generated(model, request, max_new_tokens=LINKED)
    yield link("decode", "wide Marian", model, request, expected, LINKED)
    for rounds, batch in ((10, 1), (6, 4)):
        yield _beside_expert(effort, f"wide Marian, {batch} x {NEW} tokens by hand", model, batch, rounds)
    for name, kind, batch, rounds in CASES:
        yield _decoding(effort, f"{name}, {batch} x {NEW} tokens", _model(kind), batch, rounds)


def absent() -> list[str]:
    """Returns the libraries that are needed and not installed."""
    return [name for name in ("transformers",) if importlib.util.find_spec(name) is None]


def _model(kind: str) -> Any:
    from tests.stages import tiny_models

    model = tiny_models.tiny(kind) if kind != "wide" else _wide(tiny_models)
    model.generation_config.eos_token_id = None
    return model


def _wide(tiny_models: Any) -> Any:
    shape = {
        **tiny_models.TEXT,
        "vocab_size": 32_000,
        "d_model": 256,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 1536,
        "decoder_ffn_dim": 1536,
        "init_std": 0.05,
    }
    transformers = tiny_models.transformers
    torch.manual_seed(0)
    return transformers.MarianMTModel(transformers.MarianConfig(**shape)).eval()


def link(
    figure: str, case: str, model: Any, request: Mapping[str, Tensor], expected: Tensor, new: int
) -> Row:
    """Bytes over the link for each token of a request, counted by the device: the tokens and whether all are done.

    Args:
        figure: Which figure the row belongs to.
        case: Which model it is.
        model: The model.
        request: Prompts, all of one bucket.
        expected: What comes of them by ``generate()``.
        new: How many tokens are added.
    """
    from orchestrator_stages import from_transformers

    rows, length = request["input_ids"].shape
    pipeline = from_transformers(model, max_new_tokens=new, batch=(rows,), tokens=(length,))
    plan = pipeline.plan(device=DEVICE)
    # The reference is every value of a step; what goes up are prompts alone.
    everything = sum(edge.bytes for edge in plan.edges if "decode/" in f"{edge.source} {edge.target}")
    with plan.load() as session, torch.inference_mode():
        equal = session(**request)["tokens"].equal(expected)
        seen = session.stats["measured"][DEVICE]
    crossing = seen["download_bytes"] / new
    return Row(
        figure,
        f"{case}, {rows} rows on {DEVICE}: bytes over the link for each token",
        "B",
        crossing,
        everything,
        crossing,
        "B",
        4 * rows + 1,
        equal=equal and seen["uploads"] == len(request),
        note="limit: the tokens and whether all are done; reference: every value of a step",
    )


def _decoding(effort: Effort, case: str, model: Any, batch: int, rounds: int) -> Row:
    from orchestrator_stages import from_transformers
    from tests.stages.tiny_models import generated, texts

    request = texts((12, 9, 5, 16)[:batch])
    length = request["input_ids"].shape[1]
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(batch,), tokens=(length,))
    with pipeline.plan(device="cpu").load() as session:
        expected = generated(model, request, max_new_tokens=NEW)
        equal = session(**request)["tokens"].equal(expected) and expected.shape == (batch, NEW + 1)
        pair = compare(
            lambda: session(**request),
            lambda: generated(model, request, max_new_tokens=NEW),
            effort.rounds(rounds),
        )
    return pair.row("decode", case, limit=LIMIT, equal=equal, note="reference: generate() of transformers")


def _beside_expert(effort: Effort, case: str, model: Any, batch: int, rounds: int) -> Row:
    """The same against a loop of the model's own forward over an in-place cache that is read where it is filled."""
    from orchestrator_stages import from_transformers
    from tests.bench.expert import expert_layer
    from tests.stages.tiny_models import texts

    request = texts((12, 9, 5, 16)[:batch])
    config, caches = model.config, importlib.import_module("transformers.cache_utils")
    size = config.d_model // config.decoder_attention_heads

    @torch.inference_mode()
    def expert() -> Tensor:
        encoding = model.get_encoder()(**request)
        own, new_ids = caches.DynamicCache(), torch.zeros(batch, NEW + 1, dtype=torch.int64)
        own.layers = [
            expert_layer()(batch, NEW, 0, size, heads=config.decoder_attention_heads)
            for _ in range(config.decoder_layers)
        ]
        cache = caches.EncoderDecoderCache(own, caches.DynamicCache())
        new_ids[:, 0] = config.decoder_start_token_id
        for step in range(NEW):
            logits = model(
                encoder_outputs=encoding,
                attention_mask=request["attention_mask"],
                decoder_input_ids=new_ids[:, step : step + 1],
                past_key_values=cache,
            ).logits
            new_ids[:, step + 1] = logits[:, -1].argmax(-1)
        return new_ids

    pipeline = from_transformers(
        model, max_new_tokens=NEW, batch=(batch,), tokens=(request["input_ids"].shape[1],)
    )
    with pipeline.plan(device="cpu").load() as session:
        equal = session(**request)["tokens"].equal(expert())
        pair = compare(lambda: session(**request), expert, effort.rounds(rounds))
    note = "reference: the loop by hand over an in-place cache"
    return pair.row("decode", case, unit="ms/token", parts=NEW, limit=LIMIT_BY_HAND, equal=equal, note=note)

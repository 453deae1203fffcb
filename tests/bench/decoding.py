"""Greedy decoding of 64 tokens: the loop of `from_transformers` next to the model's own ``generate()``.

Both run the same random weights on the same texts of different lengths, with no token that ends a text, so that both
make all 64. The tiny models are those of the tests; *wide* is as large as a small translator, where most of the time is
arithmetic.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator import Residency
from tests.bench.measure import Effort, Row, compare

LIMIT = 1.0
NEW = 64

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
    yield _link()
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


def _link() -> Row:
    """Bytes over the link for each token, by the plan, against every value of a step up and down."""
    from orchestrator_stages import from_transformers

    pipeline = from_transformers(_model("wide"), max_new_tokens=NEW, batch=(4,), tokens=(16,))
    plan = pipeline.plan(device="neuron-emulated")
    step = [edge for edge in plan.edges if "decode/step." in f"{edge.source} {edge.target}"]
    everything = sum(edge.bytes for edge in step)
    crossing = sum(edge.bytes for edge in step if edge.residency is Residency.HOST)
    return Row(
        "decode",
        "wide Marian, 4 rows on neuron-emulated: bytes over the link for each token",
        "B",
        crossing,
        everything,
        everything / crossing,
        "times fewer",
        note="reference: every value of a step up and down",
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
    return Row(
        "decode",
        case,
        "ms",
        pair.ours * 1e3,
        pair.reference * 1e3,
        pair.ratio,
        "x",
        LIMIT,
        equal=equal,
        note="reference: generate() of transformers",
    )

"""A model that generates over a cache that it updates in place, and its pipeline, for tests of several folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import orchestrator_neuron
from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator.testing.pytest_plugin import make_plugins
from tests.kit import spec

__all__ = ["CACHE", "LENGTH", "STEPS", "WORDS", "Writer", "generation", "prompt", "words_by_hand"]

LENGTH, STEPS, WORDS = 6, 4, 11
CACHE = spec(1, LENGTH, 4)
PLACE = TensorSpec((1,), torch.int32)
PORTS = ("token", "cache", "place")


class Writer(nn.Module):
    """Embeds a word, notes it in its cache, and gives the word that the whole cache makes likely."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.words, self.note, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, 4), nn.Linear(4, WORDS)
        self.eval()

    def _next(self, hidden: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        return self.head(hidden + cache.sum(1)).argmax(-1).to(torch.int32)

    def prefill(self, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.words(prompt)
        cache = torch.zeros(len(prompt), LENGTH, 4, dtype=hidden.dtype)
        cache[:, :2] = self.note(hidden)
        return self._next(hidden[:, -1], cache), cache

    def decode(
        self, token: torch.Tensor, cache: torch.Tensor, place: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.words(token)
        cache.index_copy_(1, place.long(), self.note(hidden)[:, None])
        return self._next(hidden, cache), cache, place + 1


def generation(
    model: Writer,
    *,
    placement: Mapping[str, str] | None = None,
    collect: tuple[str, ...] = ("token",),
    outputs: tuple[str, ...] | None = None,
    start: Any = None,
    batch: int | Dim = 1,
    loops: Sequence[int] = (STEPS,),
    reads: bool = False,
) -> Pipeline:
    """Prefill, then loops that decode, one after another.

    Args:
        model: The model.
        placement: Where ``prefill`` and ``decode`` run.
        collect: What the loop collects.
        outputs: What the loop gives.
        start: What the cache begins with; None: what prefill gives.
        batch: Prompts in a request.
        loops: How many words each loop adds.
        reads: A host stage gives the prompts, and so decides how many there are.
    """
    plugins, placement = make_plugins(), placement or {}
    plugins.register(orchestrator_neuron)
    body = Pipeline("step", plugins=plugins)
    forms = {"token": TensorSpec((batch,), torch.int32), "cache": spec(batch, LENGTH, 4), "place": PLACE}
    values = {name: body.input(name, form) for name, form in forms.items()}
    decode = body.add(
        "decode",
        model.decode,
        outputs=PORTS,
        aliases={"cache": "cache"},
        device=placement.get("decode"),
    )
    results = decode(*values.values())
    for name in PORTS:
        body.output(name, results[name])
    pipeline = Pipeline("writer", plugins=plugins)
    prefill = pipeline.add(
        "prefill", model.prefill, outputs=("token", "cache"), device=placement.get("prefill")
    )
    form = TensorSpec((batch, 2), torch.int32, pad=0)
    words = pipeline.input("prompt", TensorSpec((Dim.dynamic("prompts"), 2), torch.int32) if reads else form)
    if reads:
        words = pipeline.add("read", lambda words: words, device="host", outputs={"words": form})(words)
    token, cache = prefill(words)
    carry = {
        "token": token,
        "cache": cache if start is None else start,
        "place": torch.tensor([2], dtype=torch.int32),
    }
    # Of each loop what it collects is an output; of the last one also what else is asked for.
    for number, steps in enumerate(loops):
        mark = f"-{number}" if number else ""
        parts = tuple(f"{name}[]" for name in collect)
        is_last = number == len(loops) - 1
        names = (*carry, *parts) if not is_last else outputs or parts
        results = pipeline.loop(
            f"talk{mark}", body, carry=carry, max_steps=steps, collect=collect, outputs=names
        )
        for name in names if is_last else parts:
            plural = f"{name.removesuffix('[]')}s{mark}"
            pipeline.output(plural, results[name] if len(names) > 1 else results)
        if not is_last:
            carry = {name: results[name] for name in carry}
    return pipeline


def prompt(seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Prompts of two words."""
    return torch.randint(
        0, WORDS, (batch, 2), dtype=torch.int32, generator=torch.Generator().manual_seed(seed)
    )


def words_by_hand(model: Writer, words: torch.Tensor) -> torch.Tensor:
    """What the pipeline gives, by hand."""
    given = []
    with torch.no_grad():
        token, cache = model.prefill(words)
        place = torch.tensor([2], dtype=torch.int32)
        for _ in range(STEPS):
            token, cache, place = model.decode(token, cache, place)
            given.append(token)
    return torch.stack(given)

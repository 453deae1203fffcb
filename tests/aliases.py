"""Stages that update a cache in place, and loops around them, for tests of several folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from orchestrator import Pipeline, Plan, TensorSpec
from tests.kit import new, spec

__all__ = ["LENGTH", "STEPS", "Write", "by_hand", "clones", "looped", "requests", "zeros"]

LENGTH, STEPS = 6, 4
CACHE = spec(2, LENGTH)


class Write(nn.Module):
    """Writes ``x`` into its cache at ``i``; gives the sum of the cache, the cache, and the next place."""

    def forward(
        self, x: torch.Tensor, cache: torch.Tensor, i: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cache.index_copy_(1, i, x[:, None])
        return cache.sum(1) + 1, cache, i + 1


def zeros(x: torch.Tensor) -> torch.Tensor:
    """A cache of its own."""
    return torch.zeros(2, LENGTH) * x[:, None]


def by_hand(x: torch.Tensor, cache: torch.Tensor, steps: int = STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """The loop by hand, on a copy of the cache."""
    cache, i, step = cache.clone(), torch.zeros(1, dtype=torch.int64), Write()
    for _ in range(steps):
        x, cache, i = step(x, cache, i)
    return x, cache


def looped(
    start: Callable[[Pipeline, Any], Any] | None = None,
    body: Callable[[Pipeline, Mapping[str, Any], Any], None] = lambda *_: None,
    *,
    make: Callable[..., Pipeline] = new,
    stage: nn.Module | None = None,
    **loop: Any,
) -> Pipeline:
    """A loop of :class:`Write`.

    Args:
        start: Makes the cache that it begins with; None: the request gives it.
        body: Adds to the body, given its inputs and what the stage gives.
        make: Makes pipelines.
        stage: What runs in place of :class:`Write`.
        loop: More arguments of the loop.
    """
    inner = make("body")
    names = {"x": spec(2), "cache": CACHE, "i": TensorSpec((1,), torch.int64)}
    values = {name: inner.input(name, form) for name, form in names.items()}
    step = inner.add("write", stage or Write(), outputs=tuple(names), aliases={"cache": "cache"})
    results = step(*values.values())
    body(inner, values, results)
    for name in names:
        inner.output(name, results[name])
    pipeline = make()
    x = pipeline.input("x", spec(2))
    cache = pipeline.input("cache", CACHE) if start is None else start(pipeline, x)
    carry = {"x": x, "cache": cache, "i": torch.zeros(1, dtype=torch.int64)}
    arguments = {"max_steps": STEPS, "outputs": ("x", "cache"), **loop}
    results = pipeline.loop("loop", inner, carry=carry, **arguments)
    for name in arguments["outputs"]:
        pipeline.output(name.replace("[]", "_parts"), results[name])
    return pipeline


def requests() -> dict[str, torch.Tensor]:
    """A request of :func:`looped`."""
    generator = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(2, generator=generator),
        "cache": torch.randn(2, LENGTH, generator=generator),
    }


def clones(plan: Plan) -> dict[str, str]:
    """Edges that are copied before an update, with the reason."""
    return {
        f"{edge.source} -> {edge.target}": edge.reason
        for edge in plan.edges
        if any(adapter.kind == "clone" for adapter in edge.adapters)
    }

"""What the core's tests build pipelines from: plugins of the checkout alone, short builders, a check of errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator.backends
import orchestrator.testing.plugin
from orchestrator import Dim, Pipeline, Plan, TensorSpec
from orchestrator.errors import OrchestratorError
from orchestrator.plugin import PluginManager

__all__ = [
    "COMPUTE",
    "PLUGINS",
    "Double",
    "batch",
    "chain",
    "host",
    "linear",
    "new",
    "pair",
    "refuses",
    "spec",
    "ways",
]

#: Only what the checkout ships, whatever else is installed.
PLUGINS = PluginManager(load_entry_points=False)
PLUGINS.register(orchestrator.backends)
PLUGINS.register(orchestrator.testing.plugin)

#: The null device with contents: its handles hide CPU tensors.
COMPUTE = {"compute": True}


def new(name: str = "p") -> Pipeline:
    """A pipeline that knows the plugins of the checkout."""
    return Pipeline(name, plugins=PLUGINS)


def spec(*dims: Any, dtype: torch.dtype = torch.float32, **rules: Any) -> TensorSpec:
    """``TensorSpec`` with its dims spelled out."""
    return TensorSpec(dims, dtype, **rules)


def batch(name: str, buckets: tuple[int, ...] = ()) -> Dim:
    """A dim with the promise that items along it are independent of one another."""
    return Dim(name, buckets, batch=True)


def linear(width: int, out: int, seed: int = 0) -> nn.Linear:
    """A seeded ``Linear`` in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, out).eval()


class Double(nn.Module):
    """Twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def chain(
    *stages: Any, takes: TensorSpec | type | None = None, names: str = "abcdefgh", **add: Any
) -> Pipeline:
    """``x`` through the stages, called a, b, c and so on, to ``y``; ``add`` goes to every stage."""
    pipeline = new()
    value = pipeline.input("x", takes or spec(2))
    for name, stage in zip(names, stages, strict=False):
        value = pipeline.add(name, stage, **add)(value)
    pipeline.output("y", value)
    return pipeline


def host(pipeline: Pipeline, name: str, function: Callable[..., Any], **outputs: Any) -> Any:
    """Adds a host stage that gives ``outputs``."""
    return pipeline.add(name, function, device="host", outputs=outputs)


def pair() -> tuple[Pipeline, nn.Linear, nn.Linear]:
    """Two towers and a fusion: ``image`` and ``text`` of one batch, ``logits`` out; and its two modules."""
    vision, fusion = linear(8, 4), linear(8, 5, seed=1)
    pipeline = new("pair")
    image = pipeline.input("image", spec(batch("batch"), 8, pad=0))
    text = pipeline.input("text", spec(batch("batch"), 4, pad=0))
    seen = pipeline.add("vision", vision)(image)
    joined = pipeline.add("join", lambda seen, text: torch.cat([seen, text], 1))(seen, text)
    pipeline.output("logits", pipeline.add("fusion", fusion)(joined))
    return pipeline, vision, fusion


def ways(plan: Plan) -> Mapping[str, list[str]]:
    """Edges to the kinds of their adapters."""
    return {str(edge): [adapter.kind for adapter in edge.adapters] for edge in plan.edges}


def refuses(kind: type[OrchestratorError], words: str | tuple[str, ...], call: Callable[[], object]) -> Any:
    """Checks that a call raises exactly this error, with these words in its message; returns the error."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    for word in (words,) if isinstance(words, str) else words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    return caught.value

"""Toy stages: one of each form that a stage can have, for tests of whatever plans or runs stages.

They work row by row, so that padding a batch never changes the rows that are kept. All are registered as ``toy.*``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from orchestrator.pipeline import Pipeline
from orchestrator.plugin import PluginManager
from orchestrator.specs import Dim, TensorSpec
from orchestrator.stage import ModelWrapper

__all__ = [
    "Add",
    "Concat",
    "Crops",
    "Double",
    "Fail",
    "FixedWidth",
    "Linear",
    "Rows",
    "SeededLinear",
    "Slow",
    "SplitHalves",
    "TotalAndShift",
    "diamond",
]


class Double(torch.nn.Module):
    """Gives twice its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Doubles ``x``, of any shape."""
        return x * 2


class Add(torch.nn.Module):
    """Adds two inputs, or one and nothing: ``b`` is an optional port."""

    def forward(self, a: torch.Tensor, b: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Adds values of shapes that broadcast."""
        return a + b


class Concat(torch.nn.Module):
    """Puts two inputs side by side."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Joins ``[..., m]`` and ``[..., n]`` to ``[..., m + n]``."""
        return torch.cat([a, b], dim=-1)


class SplitHalves(ModelWrapper):
    """Gives the two halves of the last dim as a tuple, ports ``left`` and ``right``."""

    outputs = ("left", "right")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Splits ``[..., n]`` into ``[..., n // 2]`` and the rest; views of one storage."""
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]


class TotalAndShift(ModelWrapper):
    """Gives a dict, ports ``total`` and ``shifted``."""

    outputs = ("total", "shifted")

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gives the sums of the last dim, ``[..., 1]``, and ``x + 1``."""
        return {"shifted": x + 1, "total": x.sum(-1, keepdim=True)}


class SeededLinear(torch.nn.Linear):
    """A linear layer whose weights follow from a seed; torch's own random state is left alone."""

    def __init__(self, features_in: int = 4, features_out: int = 4, seed: int = 0) -> None:
        super().__init__(features_in, features_out)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in self.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, device="cpu"))

    def reset_parameters(self) -> None:
        """Does nothing: the constructor fills the weights, and keeps no seed: it would count as part of the model."""


class Linear(ModelWrapper):
    """A seeded linear layer, built when it is first needed.

    Args:
        config: ``features_in``, ``features_out`` (both 4), ``seed`` (0).
    """

    model_cls = SeededLinear


class FixedWidth(ModelWrapper):
    """Takes one width only; its port pads smaller values, and cuts larger ones.

    Args:
        config: ``width`` (6), ``pad`` (0), ``dim`` (``"batch"``).
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        options = {"width": 6, "pad": 0, "dim": "batch", **(config or {})}
        super().__init__(options)
        spec = TensorSpec((options["dim"], options["width"]), pad=options["pad"], allow_slice=True)
        self.inputs = {"x": spec}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives ``x + 1`` at the fixed width."""
        if x.shape[-1] != self.config["width"]:
            raise ValueError(f"It takes a width of {self.config['width']}, not {x.shape[-1]}.")
        return x + 1


class Crops(ModelWrapper):
    """A host stage that decides how many rows it gives, one port ``crops`` with the born dim ``n``.

    The first element of its input says how many: its whole part, modulo 8.

    Args:
        config: ``width`` (4), ``buckets`` (2 and 4), ``pad`` (0).
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        options = {"width": 4, "buckets": (2, 4), "pad": 0, **(config or {})}
        super().__init__(options)
        dims = (Dim("n", buckets=options["buckets"], batch=True), options["width"])
        self.outputs = {"crops": TensorSpec(dims, pad=options["pad"])}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives ``[n, width]``: the first element of ``x`` plus 0, 1, 2 and so on."""
        count = int(x.flatten()[0].abs().nan_to_num(posinf=0)) % 8 if x.numel() else 0
        rows = torch.arange(count * self.config["width"], dtype=torch.float32)
        first = x.flatten()[0] if x.numel() else torch.zeros(())
        return (rows + first).reshape(count, self.config["width"])


class Rows(ModelWrapper):
    """A host stage that gives a Python int, port ``rows``."""

    outputs: Mapping[str, type] = {"rows": int}

    def forward(self, x: torch.Tensor) -> int:
        """Gives the size of the first dim."""
        return len(x)


class Fail(ModelWrapper):
    """Raises whenever it really runs; planning, which runs it on fake tensors, does not see it.

    Attributes:
        is_armed: Set it to False to make it hand its input through.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__({"message": "the toy failed", **(config or {})})
        self.is_armed = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives ``x + 0``, or raises ``ValueError``."""
        if self.is_armed and not isinstance(x, FakeTensor):
            raise ValueError(self.config["message"])
        return x + 0


class Slow(torch.nn.Module):
    """Sleeps before it adds one, so that other threads can run.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float = 0.02) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gives ``x + 1``, of any shape."""
        if not isinstance(x, FakeTensor):
            time.sleep(self.seconds)
        return x + 1


def diamond(width: int = 4, plugins: PluginManager | None = None) -> Pipeline:
    """Makes a pipeline with fan-out, fan-in, a tuple, a dict and two outputs, batches of 2 and 4."""
    pipeline = Pipeline("toy.diamond", plugins=plugins)
    x = pipeline.input("x", TensorSpec((Dim("batch", buckets=(2, 4), batch=True), width), pad=0))
    features = pipeline.add("linear", Linear({"features_in": width, "features_out": 6}))(x)
    left, right = pipeline.add("split", SplitHalves())(features)
    stats = pipeline.add("stats", TotalAndShift())(pipeline.add("double", Double())(left))
    halves = pipeline.add("concat", Concat())(stats["shifted"], right)
    pipeline.output("y", pipeline.add("add", Add())(halves, features))
    pipeline.output("total", stats["total"])
    return pipeline

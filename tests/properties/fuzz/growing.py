"""Blocks of random pipelines in the making: values to choose from, inputs, stages and calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from tests.properties.fuzz.dims import (
    BUCKETS,
    NamedDim,
    Names,
    Value,
    spec_code,
)
from tests.properties.fuzz.recipe import Block, Input, Op, StageDef

__all__ = ["Growing", "Shared"]


class Shared:
    """What all blocks of a recipe share: the random numbers, names, variables and dims.

    Attributes:
        odd: Whether stages may make sizes that pass oddly.
        infinite: Whether pad rules may be infinite.
        dims: Named dims by name.
        optional: Inputs that a request may leave out.
    """

    def __init__(self, rng: Random, nasty: float, odd: bool) -> None:
        self.rng, self.odd = rng, odd
        self.infinite = rng.random() < 0.15
        self.name = Names(rng, nasty)
        self.dims: dict[str, NamedDim] = {}
        self.optional: list[Value] = []
        self._vars = 0

    def var(self, letter: str = "v") -> str:
        self._vars += 1
        return f"{letter}{self._vars}"

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def dim(self, hint: str, **more: Any) -> NamedDim:
        """Makes a named dim of a kind: padded or not, a batch or not."""
        kind = {"padded": self.chance(0.5), "batch": self.chance(0.3), **more}
        if not kind["padded"] and not kind["batch"]:
            kind["strict"] = self.chance(0.3)
        if not kind["padded"]:
            kind["exact"] = self.chance(0.3)
        name = self.name("dim", hint)
        self.dims[name] = NamedDim(name, self.rng.choice(BUCKETS), **kind)
        return self.dims[name]

    def pad(self, kind: str = "float32") -> Any:
        if kind == "int64":
            return 1
        infinite = (math.inf, -math.inf) if self.infinite else ()
        return self.rng.choice((0, 0, 1.5, -1, "repeat_first", *infinite, *infinite))


class Growing:
    """A block in the making.

    Args:
        shared: What all blocks share.
        name: Of the pipeline.
        depth: How many blocks are around it.
    """

    def __init__(self, shared: Shared, name: str, depth: int = 0) -> None:
        self.shared, self.rng, self.depth = shared, shared.rng, depth
        self.block = Block(name)
        self.values: list[Value] = []
        self.again: list[tuple[int, tuple[Any, ...], Callable[[Value], list[Value]]]] = []

    def pick(self, fits: Callable[[Value], bool] = lambda _: True) -> Value | None:
        fitting = [value for value in self.values if not value.last and fits(value)]
        return self.rng.choice(fitting[-6:]) if fitting else None

    def pick_float(self, fits: Callable[[Value], bool] = lambda _: True) -> Value | None:
        return self.pick(lambda value: value.kind == "float32" and fits(value))

    def take(self, name: str, like: Value, *, optional: bool = False, **rules: Any) -> Value:
        """Adds an input of the block."""
        value = replace(like, var=self.shared.var(), last=False)
        self.block.inputs.append(Input(name, value.var, spec_code(value.dims, value.kind, **rules), optional))
        return value

    def stage(self, target: str, hint: str, **rest: Any) -> int:
        """Adds a stage that is not called yet."""
        name = self.shared.name("stage", hint)
        self.block.stages.append(StageDef(name, self.shared.var("s"), target, **rest))
        return len(self.block.stages) - 1

    def call(self, stage: int, given: list[Value | str], *made: Value, **named: str) -> list[Value]:
        """Calls a stage; ``made`` says the forms of what it gives."""
        results = [replace(value, var=self.shared.var(), raw=False, ones=False) for value in made]
        args = [value if isinstance(value, str) else value.var for value in given]
        self.block.ops.append(
            Op("call", [value.var for value in results], stage=stage, args=args, named=named)
        )
        self.values += results
        return results

    def one(self, target: str, value: Value, made: Value | None = None, **rest: Any) -> list[Value]:
        """Adds a stage of one input and calls it."""
        hint = target.partition("(")[0].lower().strip("_")[:8]
        made = made or value
        stage = self.stage(target, hint, **rest)
        self.again.append((stage, value.form, lambda other: [replace(made, var="")]))
        return self.call(stage, [value], made)

    operations: tuple[str, ...] = ()

    def grow(self, count: int) -> None:
        for _ in range(count):
            getattr(self, self.rng.choice(self.operations))()

"""What random pipelines are made of: stages, data, and loops, maps and branches by hand.

A fault's script is printed with what it uses of this file, so it needs torch and orchestrator alone. A stage is one of

- pointwise: an element is computed from those at its own place along all named dims;
- causal: also from those before it, or from its position, so that padding behind it changes nothing;
- mixing: from all along a dim, so that neither a pad rule nor ``batch=True`` would be true of that dim.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from orchestrator import ModelWrapper, TensorSpec
from tests.properties.fuzz.hosts import shapes_of

By_hand = Callable[[dict[str, Any]], dict[str, Any]]


def data(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random values that are far from each other's rounding errors."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randint(-16, 17, shape, generator=generator) / 8 + 0.03
    return value > 0 if dtype is torch.bool else value.to(dtype)


def linear(width: int, out: int, seed: int) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, out).eval()


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 - 1


class Scale(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by + 0.25


class Norm(nn.Module):
    """Normalises the last dim."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:])


def squash(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


def viewed(x: torch.Tensor) -> torch.Tensor:
    """Needs a contiguous value."""
    return x.view(-1).add(1).view(x.shape)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Gives a strided view."""
    return x.transpose(0, 1)


def swapped(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).contiguous()


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def merged(x: torch.Tensor) -> torch.Tensor:
    """Merges all dims behind the first two."""
    return x.view(*x.shape[:2], math.prod(x.shape[2:]))


def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Splits the last dim."""
    half = x.shape[-1] // 2
    return x[..., :half].contiguous(), x[..., half:].contiguous()


def facts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"shifted": x + 1, "total": x.sum(-1, keepdim=True)}


def tagged(x: torch.Tensor) -> dict[Any, torch.Tensor]:
    return {"class": x - 1, "total": x.sum(-1, keepdim=True)}


def pyramid(x: torch.Tensor) -> dict[Any, torch.Tensor]:
    """Keys that are ints."""
    return {0: x - 1, 1: x.sum(-1, keepdim=True)}


def keyed(x: torch.Tensor) -> dict[Any, torch.Tensor]:
    """Keys of all kinds, beside what is no output."""
    return OrderedDict([(("a", 1), x - 1), (None, x.sum(-1, keepdim=True)), ("unused", None)])


def add(a: torch.Tensor, b: torch.Tensor | float = 0.5) -> torch.Tensor:
    return a + b


def blend(a: torch.Tensor, b: torch.Tensor, *, share: float = 0.25) -> torch.Tensor:
    return a * share + b * (1 - share)


def beside(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cat([a, b], -1)


def positive(x: torch.Tensor) -> torch.Tensor:
    return x > 0


def choose(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(c, a, b)


class To(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(self.dtype) if self.dtype is torch.int64 else x.to(self.dtype)


class Wrapped(ModelWrapper):
    """A wrapper that builds a linear layer of its config."""

    def make_model(self) -> nn.Module:
        return linear(self.config["width"], self.config["out"], self.config["seed"])


class Own(ModelWrapper):
    """A wrapper with a forward of its own; a tuple of ports."""

    outputs = ("up", "down")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x - 1


class Opaque(ModelWrapper):
    """A stage that says what it gives, and is not run while planning."""

    opaque = True

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self.inputs, self.outputs = {"x": spec}, {"y": spec}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 0.5


class Along(nn.Module):
    """Something done along one dim, which the function finds in front."""

    def __init__(self, what: Callable[..., torch.Tensor], axis: int, number: int = 2) -> None:
        super().__init__()
        self.what, self.axis, self.number = what, axis, number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.what(x.movedim(self.axis, 0), self.number).movedim(0, self.axis).contiguous()


def running(x: torch.Tensor, number: int) -> torch.Tensor:
    return x.cumsum(0) / 4


def positions(x: torch.Tensor, number: int) -> torch.Tensor:
    return x + torch.arange(x.shape[0]).reshape(-1, *(1,) * (x.ndim - 1)) / 8


def attention(x: torch.Tensor, number: int) -> torch.Tensor:
    """Each place looks at all others along the dim, by itself along all other dims."""
    return (torch.softmax(x[:, None] * x[None] / 4, 1) * x[None]).sum(1)


def causal(x: torch.Tensor, number: int) -> torch.Tensor:
    """As attention, at what lies before only."""
    seen = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).tril()
    scores = (x[:, None] * x[None] / 4).masked_fill(~seen.reshape(*seen.shape, *(1,) * (x.ndim - 1)), -1e9)
    return (torch.softmax(scores, 1) * x[None]).sum(1)


def reverse(x: torch.Tensor, number: int) -> torch.Tensor:
    return x.flip(0)


def ordered(x: torch.Tensor, number: int) -> torch.Tensor:
    return x.sort(0).values


def centred(x: torch.Tensor, number: int) -> torch.Tensor:
    return x - x.mean(0, keepdim=True)


def mean(x: torch.Tensor, number: int) -> torch.Tensor:
    return x.mean(0, keepdim=True)


def counted(x: torch.Tensor, number: int) -> torch.Tensor:
    return x * (x.shape[0] / 4)


def neighbours(x: torch.Tensor, number: int) -> torch.Tensor:
    return (x + torch.cat([x[1:], x[-1:]])) / 2


def last(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[-1:]


def first(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[:1]


def even(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[: x.shape[0] // 2 * 2]


def half(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[: x.shape[0] // 2]


def every_other(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[::2]


def down_and_up(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[::2].repeat_interleave(2, 0)


def at_most(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[:number]


def token(x: torch.Tensor, number: int) -> torch.Tensor:
    return torch.cat([torch.zeros_like(x[:1]), x])


def token_behind(x: torch.Tensor, number: int) -> torch.Tensor:
    return torch.cat([x, torch.zeros_like(x[:1])])


def without_first(x: torch.Tensor, number: int) -> torch.Tensor:
    return x[1:]


def doubled(x: torch.Tensor, number: int) -> torch.Tensor:
    return x.repeat_interleave(2, 0)


def twice(x: torch.Tensor, number: int) -> torch.Tensor:
    return torch.cat([x, x + 1])


def filled_up(x: torch.Tensor, number: int) -> torch.Tensor:
    return torch.cat([x, x.new_zeros((-x.shape[0] % number, *x.shape[1:]))])


def windows(x: torch.Tensor, number: int) -> torch.Tensor:
    return filled_up(x, number).unfold(0, number, number).mean(-1)


def whole_windows(x: torch.Tensor, number: int) -> torch.Tensor:
    count = x.shape[0] // number
    return x[: count * number].reshape(count, number, *x.shape[1:]).mean(1)


class Masked(nn.Module):
    """Sums along a dim what a mask lets through, so that padding adds nothing."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return (x * mask.reshape(shape)).sum(self.axis)


class Count(nn.Module):
    """Counts iterations up to a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = k + 1
        return k, k >= self.limit


def pick(given: Mapping[Any, Any], *names: Any) -> list[Any]:
    return [given[name] for name in names]


def loop_by_hand(
    body: By_hand,
    carry: dict[str, Any],
    each: dict[str, Any],
    inputs: dict[str, Any],
    until: str | None,
    max_steps: int | None,
    check_every: int,
    collect: tuple[str, ...],
) -> tuple[Any, ...]:
    """A Python loop; returns the carries, then what was collected."""
    bounds = [len(value) for value in each.values()] + ([] if max_steps is None else [max_steps])
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in collect}
    ended: list[bool] = []
    blank = {name: value.new_zeros(value.shape[1:]) for name, value in each.items()}
    sample = shapes_of(body, {**carry, **blank, **inputs}) if not min(bounds) else {}
    for at in range(min(bounds)):
        given = body({**carry, **{name: value[at] for name, value in each.items()}, **inputs})
        carry = {name: given[name] for name in carry}
        for name, values in parts.items():
            values.append(given[name])
        ended.append(until is not None and bool(given[until]))
        if any(ended) and len(ended) % check_every == 0:
            break
    kept = ended.index(True) + 1 if any(ended) else len(ended)
    stacked = [
        torch.stack(values[:kept]) if values else sample[name].new_empty((0, *sample[name].shape))
        for name, values in parts.items()
    ]
    return (*carry.values(), *stacked)


def map_by_hand(
    body: By_hand, over: dict[str, Any], inputs: dict[str, Any], names: tuple[str, ...]
) -> tuple[Any, ...]:
    """A call for each item."""
    lists = {name: list(value) for name, value in over.items()}
    (count,) = {len(items) for items in lists.values()}
    made = [
        body({**{name: items[at][None] for name, items in lists.items()}, **inputs}) for at in range(count)
    ]
    found = [[one[name][0] for one in made] for name in names]
    if any(isinstance(value, list) for value in over.values()):
        return tuple(found)
    if count:
        return tuple(torch.stack(items) for items in found)
    zeros = {name: value.new_zeros((1, *value.shape[1:])) for name, value in over.items()}
    blank = shapes_of(body, {**zeros, **inputs})
    return tuple(blank[name][:0] for name in names)


def when_by_hand(
    body: By_hand, inputs: dict[str, Any], otherwise: dict[str, Any], condition: Any
) -> tuple[Any, ...]:
    """The body, or not."""
    runs = bool(condition) and all(value is not None for value in inputs.values())
    given = body(inputs) if runs else otherwise
    return tuple(given[name] for name in otherwise)

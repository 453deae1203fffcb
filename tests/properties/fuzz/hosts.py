"""Host stages of random pipelines: at a request's own sizes, some of them with bad manners.

They write into what they are given, keep it, or raise. By hand they get copies, so that only they see what they do.
"""

from __future__ import annotations

from typing import Any

import torch


def halve_low(x: torch.Tensor) -> torch.Tensor:
    """On the host, by numpy."""
    given = x.numpy()
    return torch.from_numpy(given.clip(-100, 100) / 2).to(x.dtype)


def over_batch(x: torch.Tensor) -> torch.Tensor:
    """On the host, where a stage sees a request's own size."""
    return x / (1 + x.abs().sum(0, keepdim=True))


def count_rows(x: torch.Tensor) -> int:
    return len(x)


def is_high(x: torch.Tensor) -> bool:
    return bool(x.double().mean() > 0.1)


def listed(x: torch.Tensor) -> list[Any]:
    return [float(x.double().mean()), list(x.shape)]


def filled(number: int) -> torch.Tensor:
    return torch.full((2, 3), float(number))


def successor(number: int) -> int:
    return number + 1


def kept_rows(x: torch.Tensor) -> torch.Tensor:
    """Decides how many rows there are; none is legal."""
    return x[x.double().flatten(1).sum(1) > 0]


def scribbled(x: torch.Tensor) -> torch.Tensor:
    """Writes into what it is given where torch does not see it."""
    given = x.numpy()
    given *= 0.5
    return torch.from_numpy(given.copy())


def scrubbed(x: torch.Tensor) -> torch.Tensor:
    """Likewise, and gives it back."""
    x.numpy()[...] += 1
    return x


def overwritten(x: torch.Tensor) -> torch.Tensor:
    """Writes by torch, which is refused."""
    return x.add_(1) * 2


class Keeps:
    """Keeps what it is given and what it gives; if any of it has changed since, so does the result."""

    def __init__(self) -> None:
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        same = all(torch.equal(one.nan_to_num(), copy.nan_to_num()) for one, copy in self.kept)
        result = x - 1
        self.kept = [*self.kept, (x, x.clone()), (result, result.clone())][-4:]
        return result if same else result + 1000


class Haunts:
    """Writes into what it was given the last time, which is nobody else's any more."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for one in self.kept:
            one.numpy()[...] = 1000
        self.kept = [x]
        return x - 1


def numbered(x: torch.Tensor) -> dict[Any, torch.Tensor]:
    """Keys that are no strings."""
    return {0: x - 1, 1: x * 2}


class TooHighError(ValueError):
    """What ``not_high`` raises."""


#: Not empty while a body is called by hand for its shapes alone.
HUSHED: list[bool] = []


def not_high(x: torch.Tensor) -> torch.Tensor:
    if not HUSHED and bool((x > 1.9).any()):
        raise TooHighError("a value is too high")
    return x + 0.5


def shapes_of(body: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What a body gives, where only the shapes of it count."""
    HUSHED.append(True)
    try:
        result: dict[str, Any] = body(given)
    finally:
        HUSHED.pop()
    return result

"""The surroundings of a piece of work: the modes that a thread has set in torch, and the random state of its process.

Planning, compiling and loading are work of this project's own. What a caller has set for other work does not reach into
it, and it moves no random state: the same seed gives the same numbers afterwards, whether or not a model had to be
built or a program compiled.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

__all__ = ["RandomStates", "autocast_hint", "own_modes", "same_random_state"]

_NOTHING = contextlib.nullcontext()


@contextlib.contextmanager
def own_modes() -> Iterator[None]:
    """Takes inference mode, autocast, the default device and dispatch modes of the calling thread out of force."""
    inference = torch.is_inference_mode_enabled()
    with (
        torch.inference_mode(False) if inference else _NOTHING,
        torch.no_grad() if inference else _NOTHING,  # leaving inference mode turns gradients on
        torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else _NOTHING,
        torch.autocast("cuda", enabled=False) if torch.is_autocast_enabled("cuda") else _NOTHING,
        # A default device is one of the modes that torch's functions ask.
        torch.device("cpu") if torch._C._len_torch_function_stack() else _NOTHING,
        _disable_current_modes() if _get_current_dispatch_mode_stack() else _NOTHING,  # as fake mode is one
    ):
        yield


@contextlib.contextmanager
def same_random_state() -> Iterator[None]:
    """Puts the global random generators of Python, numpy and torch back to where they were, if they were moved.

    Keep the block short: numbers that another thread draws meanwhile are drawn again after it.
    """
    states = RandomStates()
    try:
        yield
    finally:
        states.restore()


def autocast_hint() -> str:
    """Returns a hint for the error of a request that failed while its caller has autocast on; else nothing."""
    if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
        return ""
    return (
        " torch.autocast is on in the thread that asks: stages on torch devices compute as it says, in other dtypes "
        "than the plan. Ask outside of it, or with torch.autocast(..., enabled=False)."
    )


class RandomStates:
    """The states of the global random generators of Python, torch and numpy, as they are when it is made."""

    def __init__(self) -> None:
        self._before = [(generator, generator.state()) for generator in _random_generators()]

    def changed_generators(self) -> tuple[str, ...]:
        """Returns the names of the generators that were drawn from since, or seeded."""
        return tuple(generator.name for generator, _ in self._changes())

    def restore(self) -> None:
        """Puts those back that were moved."""
        for generator, state in self._changes():
            generator.restore(state)

    def _changes(self) -> list[tuple[_RandomGenerator, Any]]:
        return [
            (generator, state)
            for generator, state in self._before
            if not generator.same(state, generator.state())
        ]


@dataclass(frozen=True)
class _RandomGenerator:
    """A global random generator.

    Attributes:
        name: Its name in messages.
        state: Returns its state.
        restore: Sets it.
        same: Compares two states.
    """

    name: str
    state: Callable[[], Any]
    restore: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]


def _random_generators() -> Iterator[_RandomGenerator]:
    yield _RandomGenerator(
        "random", random.getstate, random.setstate, lambda first, second: bool(first == second)
    )
    yield _RandomGenerator("torch", torch.get_rng_state, torch.set_rng_state, torch.equal)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield _RandomGenerator(
            "torch.cuda", torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, _all_equal
        )
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        yield _RandomGenerator(
            "numpy.random", numpy.random.get_state, numpy.random.set_state, _equal_in_numpy
        )


def _all_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def _equal_in_numpy(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return all(
        bool((one == other).all() if hasattr(one, "all") else one == other)
        for one, other in zip(first, second, strict=True)
    )

"""Standing for what cannot be read: a token that no other object and no other process has.

A key with a token in it is found again in this process, for the same objects, and nowhere else: better compile again
than run something stale.
"""

from __future__ import annotations

import itertools
import os
import secrets
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["process_unique_token", "token_uses"]

_PROCESS = secrets.token_hex(16)
_COUNT = itertools.count()
#: By identity, what gives the object while it lives, and its number.
_TOKENS: dict[int, tuple[Callable[[], Any], int]] = {}
_USES = itertools.count()


def process_unique_token(value: Any) -> str:
    """Returns an object's token, the same while it lives; what has no weak reference lives on."""
    next(_USES)
    token = _TOKENS.get(id(value))
    if token is None or token[0]() is not value:
        token = _TOKENS[id(value)] = (_reference(value), next(_COUNT))
    return f"unique {_PROCESS} {os.getpid()} {token[1]}"  # a fork shares the rest


def token_uses() -> int:
    """Returns a number that grows with each use of a token, this look at it included."""
    return next(_USES)


def _reference(value: Any) -> Callable[[], Any]:
    identity = id(value)
    try:
        return weakref.ref(value, lambda _: _TOKENS.pop(identity, None))
    except TypeError:
        return lambda: value

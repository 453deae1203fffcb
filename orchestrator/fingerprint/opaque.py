"""Standing for what cannot be read: a mark that no other object and no other process has.

A key with a mark in it is found again in this process, for the same objects, and nowhere else: better compile again
than run something stale.
"""

from __future__ import annotations

import itertools
import os
import secrets
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["unique"]

_PROCESS = secrets.token_hex(16)
_COUNT = itertools.count()
#: By identity, what gives the object while it lives, and its number.
_MARKS: dict[int, tuple[Callable[[], Any], int]] = {}


def unique(value: Any) -> str:
    """Returns an object's mark, the same while it lives; what has no weak reference lives on."""
    known = _MARKS.get(id(value))
    if known is None or known[0]() is not value:
        known = _MARKS[id(value)] = (_reference(value), next(_COUNT))
    return f"unique {_PROCESS} {os.getpid()} {known[1]}"  # a fork shares the rest


def _reference(value: Any) -> Callable[[], Any]:
    identity = id(value)
    try:
        return weakref.ref(value, lambda _: _MARKS.pop(identity, None))
    except TypeError:
        return lambda: value

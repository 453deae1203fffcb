"""Where an object keeps what it holds: in attributes, in slots, in a block of memory, in what pickling it would store.

A kind *hides* something if its instances have more memory than their attributes, slots and items take: code in C keeps
something there that only it can tell.
"""

from __future__ import annotations

import copyreg
import hashlib
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator.fingerprint.code import release_of

__all__ = ["attributes", "buffer_parts", "hides_state", "pickle_parts", "plain_text"]

#: Kinds whose items are read; `object` has none.
_READ = (dict, list, tuple, set, frozenset, str, int, float, complex, bytes, object)
_WORD = struct.calcsize("P")


def attributes(value: Any) -> dict[str, Any]:
    """Returns attributes and slots."""
    slots = (name for kind in type(value).__mro__ for name in _slots(kind))
    slot_values = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return slot_values | getattr(value, "__dict__", {})


def _slots(kind: type) -> Iterator[str]:
    """Names of slots, as the class spells them outside of its body."""
    slots = vars(kind).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else tuple(slots):
        if name.startswith("__") and not name.endswith("__"):
            yield f"_{kind.__name__.lstrip('_')}{name}"
        elif name not in ("__dict__", "__weakref__"):
            yield name


def hides_state(kind: type) -> bool:
    """Tells whether a kind hides something."""
    base = next(each for each in kind.__mro__ if each in _READ)
    if kind.__itemsize__ != base.__itemsize__:
        return True
    # A dict or a weak reference that Python manages beside the object has a negative offset and takes no room.
    dicts = bool(kind.__dictoffset__) if kind.__itemsize__ else kind.__dictoffset__ > 0
    words = dicts + (kind.__weakrefoffset__ > 0)
    words += sum(len(tuple(_slots(each))) for each in kind.__mro__ if each not in _READ)
    return kind.__basicsize__ > base.__basicsize__ + words * _WORD


def plain_text(value: Any) -> str | None:
    """Returns the text of what is also a number or a text; None where it is neither."""
    for kind in (str, int, float, complex, bytes):
        if isinstance(value, kind):
            return kind.__repr__(value)
    return None


def buffer_parts(value: Any) -> list[Any] | None:
    """Returns form and content of what is one block of memory, such as a numpy array; None where it is not."""
    try:
        view = memoryview(value)
    except Exception:
        return None
    if "O" in view.format:  # addresses of Python objects
        return None
    return [view.format, list(view.shape or ()), hashlib.sha256(view.tobytes()).hexdigest()]


def pickle_parts(value: Any) -> list[Any] | None:
    """Returns what pickling an object would store; None where it cannot be pickled.

    What counts as a global is that, if it is where it says and that has a release.
    """
    try:
        reducer = copyreg.dispatch_table.get(type(value))
        parts = reducer(value) if reducer else value.__reduce_ex__(4)
    except Exception:
        return None
    if not isinstance(parts, str):
        # Items of a container come as an iterator.
        return [list(part) if isinstance(part, Iterator) else part for part in parts]
    # A text is the name of a global, and stands for the object only where that name really leads to it.
    module = _home(value, parts)
    return None if module is None else [module, parts, release_of(module)]


def _home(value: Any, name: str) -> str | None:
    places: Iterable[Any] = (getattr(value, "__module__", None), type(value).__module__.partition(".")[0])
    for module in places:
        target: Any = sys.modules.get(module) if isinstance(module, str) else None
        for part in name.split("."):
            target = getattr(target, part, None)
        if target is value and release_of(module):
            return str(module)
    return None

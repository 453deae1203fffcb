"""Calling a session is calling its generated entry: the session has a class of its own with the entry as ``__call__``.

Python looks ``__call__`` up on the class, never on the object. A method that hands on to the entry of the object costs
each request one more Python call, and its keywords are packed into a dict twice. With a class of its own a request of a
plain session is four Python calls for two stages: the entry, the generated function, the stages.

The price: a class is part of a cycle, so it is freed by the cyclic collector only. What it holds must not wait for
that: :func:`forget_call` takes the entry out of it, and with it the stages and the memory of their devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["forget_call", "set_call"]


def set_call(instance: object, base: type, call: Callable[..., Any]) -> None:
    """Gives an object of class ``base`` a class of its own, with another ``__call__``.

    Args:
        instance: The object; one that has such a class already keeps it.
        base: Its class. Its name and all else stay as they are.
        call: A function that takes the object first.
    """
    if instance.__class__ is base:
        instance.__class__ = type(base.__name__, (base,), {"__call__": call, "__slots__": ()})


def forget_call(instance: object, base: type) -> None:
    """Gives an object its first class back, and empties the one of its own."""
    own = type(instance)
    instance.__class__ = base
    if own is not base:
        del own.__call__

"""Structure: an equal key for objects that act alike on shapes."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["StructureKey", "key_of", "structure"]

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, type)

#: The flag of a class that is made by a ``class`` statement (``Py_TPFLAGS_HEAPTYPE``).
_HEAP_TYPE = 1 << 9


def structure(target: Any) -> Any:
    """Returns a hashable key: equal for objects that act alike on shapes.

    Tensors count by shape and dtype, modules and other objects of classes written in Python by their attributes.
    Functions, and what has state that Python does not show, count by identity.
    """
    return _Keys().key(target)


def key_of(value: Any) -> Any:
    """Returns the key of an argument: a shape and dtype, or a Python constant."""
    return _Keys().key(value)


class StructureKey:
    """A structure that is hashed once: that takes as long as a module is large, and each trial looks it up."""

    __slots__ = ("_hash", "_structure")

    def __init__(self, structure: Any) -> None:
        self._structure = structure
        self._hash = hash(structure)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StructureKey) and (
            self is other or (self._hash == other._hash and self._structure == other._structure)
        )


class _Keys:
    """Keys of an object and of its parts; what several parts refer to, such as a model's config, is read once."""

    def __init__(self) -> None:
        self._enclosing: set[int] = set()
        self._keys: dict[int, Any] = {}

    def key(self, value: Any) -> Any:
        """The key of one value."""
        if isinstance(value, _PLAIN):
            return (type(value), value)
        if isinstance(value, torch.Tensor):
            return ("tensor", tuple(value.shape), value.dtype, str(value.device))
        identity = id(value)
        # An object inside itself is known by its identity there, so that the walk ends.
        if identity in self._enclosing:
            return ("object", identity)
        if identity not in self._keys:
            self._enclosing.add(identity)
            self._keys[identity] = self._parts(value)
            self._enclosing.remove(identity)
        return self._keys[identity]

    def _parts(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return (type(value), tuple(map(self.key, value)))
        if isinstance(value, (set, frozenset)):
            return (type(value), frozenset(map(self.key, value)))
        if isinstance(value, dict):
            return (type(value), tuple((self.key(name), self.key(item)) for name, item in value.items()))
        if isinstance(value, torch.nn.Module) or _shows_its_state(value):
            attributes = sorted(vars(value).items(), key=lambda pair: str(pair[0]))
            return (type(value), tuple((name, self.key(item)) for name, item in attributes))
        return ("object", id(value))


def _shows_its_state(value: Any) -> bool:
    """Tells whether all that an object knows is in its ``__dict__``: no slots, and no base class written in C."""
    classes = type(value).__mro__[:-1]
    return hasattr(value, "__dict__") and all(
        kind.__flags__ & _HEAP_TYPE and not kind.__dict__.get("__slots__") for kind in classes
    )

"""Turn a Python value into JSON's own types.

JSON has no tensors, tuples, dataclasses or numbers that are not finite. Tensors and arrays become nested
lists, tuples lists, named tuples and dataclasses objects by field; a number that is not finite becomes
``null``.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

from orchestrator.cli.report import JobError

__all__ = ["to_plain"]


def to_plain(value: Any) -> Any:
    """Returns the value as dicts, lists, strings, numbers, booleans and None.

    Raises:
        JobError: It holds something that JSON has no form for.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return to_plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _container(value)


def _container(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: to_plain(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, Set):
        return [to_plain(item) for item in sorted(value, key=repr)]
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        return to_plain(value.tolist())
    raise JobError(f"a {type(value).__name__} has no form in JSON; return dicts, lists, text and numbers.")


def _key(key: Any) -> str:
    plain = to_plain(key)
    if plain is None or isinstance(plain, (bool, int, float)):
        return str(key)
    if isinstance(plain, str):
        return plain
    raise JobError(f"a key of JSON is text, not a {type(key).__name__}.")

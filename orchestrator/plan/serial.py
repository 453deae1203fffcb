"""Plans as JSON: versioned, checked for form when read, and equal again after a round trip.

Reading builds plain data: no code named in the text is imported or run. What the plan says is proven only by
``pipeline.bind(plan)``.
"""

from __future__ import annotations

import builtins
import json
import math
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch

from orchestrator.adapter import Adapter
from orchestrator.errors import PlanError
from orchestrator.plan.count import summarise
from orchestrator.plan.records import (
    CompiledRegion,
    DimPlan,
    HostOperations,
    PlanData,
    PlannedApplication,
    PlannedCall,
    PlannedEdge,
    PlannedGroup,
    PlannedLock,
    PlannedProgram,
    PlannedState,
    PlannedValue,
    Residency,
    StateUpdate,
)
from orchestrator.plan.steps import (
    AdaptStep,
    BranchStep,
    CallStep,
    Carry,
    LoopStep,
    MapStep,
    RegionStep,
    Slice,
)
from orchestrator.program import ProgramInput, ProgramOutput
from orchestrator.specs import Derived, Dim, StepsDim, TensorSpec, dtype_name

__all__ = ["FORMAT", "VERSION", "from_json", "to_json"]

FORMAT = "stage-orchestrator plan"
VERSION = 9

P = TypeVar("P", bound=PlanData)

_RECORDS = (
    Adapter,
    CompiledRegion,
    DimPlan,
    HostOperations,
    PlannedApplication,
    PlannedCall,
    PlannedEdge,
    PlannedGroup,
    PlannedLock,
    PlannedProgram,
    PlannedState,
    StateUpdate,
    PlannedValue,
    ProgramInput,
    ProgramOutput,
    CallStep,
    AdaptStep,
    RegionStep,
    LoopStep,
    MapStep,
    BranchStep,
    Carry,
    Slice,
    Dim,
    Derived,
    TensorSpec,
)
_BY_NAME: dict[str, type[Any]] = {record.__name__: record for record in _RECORDS}


def to_json(plan: PlanData) -> str:
    """Returns the plan as JSON text."""
    body = {item.name: _encode(getattr(plan, item.name)) for item in fields(plan) if item.name != "loader"}
    head = {"format": FORMAT, "version": VERSION}
    return json.dumps({**head, **body, "summary": _encode(summarise(plan, {}))}, indent=1, allow_nan=False)


def _encode(value: Any) -> Any:
    # What is no record goes by a name; a record by its class, with the entries that differ from their defaults.
    if isinstance(value, StepsDim):
        return {"is": "StepsDim", "name": str(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"is": "float", "name": str(value)}
    if isinstance(value, torch.dtype):
        return {"is": "dtype", "name": dtype_name(value)}
    if isinstance(value, Residency):
        return {"is": "Residency", "name": value.value}
    if isinstance(value, type):
        return {"is": "type", "name": f"{value.__module__}:{value.__qualname__}"}
    if is_dataclass(value):
        record = {"is": type(value).__name__}
        for item in fields(value):
            content = getattr(value, item.name)
            if item.default is MISSING or content != item.default:
                record[item.name] = _encode(content)
        return record
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return value


def from_json(text: str, kind: type[P]) -> P:
    """Reads a plan of this class.

    Raises:
        PlanError: The text is no JSON (truncated?), no plan, of another version, or malformed.
    """
    # Of the right kind first: what is said of a text that is no plan, or of another version, is what to do about it.
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(
            f"This is no plan: the JSON cannot be read, it may be truncated ({error})."
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PlanError(f'This is no plan: the JSON lacks "format": "{FORMAT}".')
    if data.get("version") != VERSION:
        raise PlanError(
            f"The plan is of version {data.get('version')!r}, but this release reads version {VERSION}; plan the "
            f"pipeline again.",
            version=data.get("version"),
        )
    # Whatever else is wrong in it makes it malformed: a file was edited, or damaged.
    try:
        body = {name: _decode(data[name]) for name in _names(kind) if name != "loader"}
        plan = kind(**body)
        _check_form(plan)
    except PlanError:
        raise
    except KeyError as error:
        raise PlanError(f"The plan is malformed: it lacks {error.args[0]!r}.") from error
    except Exception as error:
        raise PlanError(f"The plan is malformed: {error}.") from error
    return plan


def _refuse_constant(name: str) -> float:
    raise ValueError(f'{name} is no JSON; a plan says {{"is": "float", "name": ...}}')


def _names(record: type[Any]) -> list[str]:
    return [item.name for item in fields(record)]


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = str(value.get("is"))
    if kind in _SCALARS:
        return _SCALARS[kind](str(value["name"]))
    if kind not in _BY_NAME:
        raise PlanError(f"The plan is malformed: it has a {kind!r}, which is no part of a plan.")
    # Only what the record knows: an entry that nobody reads would be a promise that nobody keeps.
    record = _BY_NAME[kind]
    strange = set(value) - set(_names(record)) - {"is"}
    if strange:
        raise PlanError(f"The plan is malformed: a {kind} has no {sorted(strange)[0]!r}.")
    return record(**{name: _decode(item) for name, item in value.items() if name != "is"})


def _dtype(name: str) -> torch.dtype:
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype):
        raise PlanError(f"The plan is malformed: {name!r} is no dtype.")
    return dtype


def _type(name: str) -> type:
    """A type that is loaded already; nothing is imported or run on the word of a file.

    Looked up in dictionaries: an attribute of a module or a class may be code that runs, and imports.
    """
    module, _, path = name.partition(":")
    value: Any = builtins if module == "builtins" else sys.modules.get(module)
    for part in path.split("."):
        value = vars(value).get(part) if isinstance(value, (ModuleType, type)) else None
    if not isinstance(value, type):
        raise PlanError(
            f"The plan speaks of the Python type {name!r}; import its module before reading the plan."
        )
    return value


def _number(name: str) -> float:
    """A float that JSON has no word for."""
    number = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(name)
    if number is None:
        raise PlanError(f"The plan is malformed: {name!r} is no float that JSON lacks.")
    return number


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "dtype": _dtype,
    "float": _number,
    "type": _type,
    "Residency": Residency,
    "StepsDim": StepsDim,
}


def _check_form(record: Any) -> None:
    """Checks every field against its annotation, all the way down."""
    hints = _hints(type(record))
    for item in fields(record):
        if item.name != "loader":
            _check_value(record, item, hints[item.name], getattr(record, item.name))


_known_hints: dict[type[Any], dict[str, Any]] = {}


def _hints(record: type[Any]) -> dict[str, Any]:
    if record not in _known_hints:
        _known_hints[record] = typing.get_type_hints(record)
    return _known_hints[record]


def _check_value(owner: Any, item: Field[Any], hint: Any, value: Any) -> None:
    if not _matches(hint, value):
        raise PlanError(f"The plan is malformed: {item.name!r} of a {type(owner).__name__} is {value!r}.")
    for part in value if isinstance(value, tuple) else (value,):
        for inner in part if isinstance(part, tuple) else (part,):
            if is_dataclass(inner) and not isinstance(inner, type):
                _check_form(inner)


def _matches(hint: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if isinstance(hint, typing.ForwardRef):
        return True
    # Unions are tried one by one; a bool is an int to Python, but never where a number is meant.
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return all(_matches(arguments[0], part) for part in value)
        return len(value) == len(arguments) and all(map(_matches, arguments, value))
    if origin is typing.Literal:
        return value in arguments
    if origin is not None and origin is not type:
        return any(_matches(option, value) for option in arguments)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint if isinstance(hint, type) else object)

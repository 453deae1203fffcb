"""The content key of an application: a digest of all that its compiled programs depend on.

Weights are left out: a program is compiled for their shapes and dtypes. What is *baked in* is not: numbers and tensors
that a stage holds outside of its parameters and buffers, and whatever its functions close over or find among their
globals, modules included, become part of a program. So their content counts, and so does the code of helper functions.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from orchestrator.duplicate import owner_of
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.stage import ModelWrapper, Stage
from orchestrator.store import content_key, fingerprint
from orchestrator_neuron.options import OPTION_TYPES, Settings

__all__ = ["application_key"]

#: Settings that say where weights come from; a program does not depend on them.
WEIGHTS = ("checkpoint",)

#: Packages whose versions are part of the key, so that their content need not be.
_KNOWN = ("torch", "builtins", "orchestrator", "orchestrator_neuron")
_LEFT_OUT = frozenset({"_model", "training"})
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)


def application_key(application: Application, settings: Settings, versions: Iterable[object]) -> str:
    """Returns the content key of an application.

    Args:
        application: The application.
        settings: What is in force for its stage.
        versions: What else its form depends on: compiler, packages, formats.
    """
    stage = application.stage
    own = (
        None
        if stage is None
        else [fingerprint(_without_options(stage)), list(_baked(stage.target, _weights(stage)))]
    )
    in_force = {
        name: repr(getattr(settings, name)) for name in settings.__dataclass_fields__ if name not in WEIGHTS
    }
    programs = [_describe(program) for program in application.programs]
    return content_key([list(map(str, versions)), own, programs, in_force])


def _without_options(stage: Stage) -> Stage:
    """The stage without options of this device family: those that matter are in force, or shaped its programs."""
    config = {name: value for name, value in stage.config.items() if name not in OPTION_TYPES}
    return dataclasses.replace(stage, config=config)


def _weights(stage: Stage) -> set[int]:
    """Identities of what a checkpoint provides."""
    owner = owner_of(stage.target)
    if isinstance(owner, ModelWrapper):
        owner = owner.__dict__.get("_model")
    if not isinstance(owner, torch.nn.Module):
        return set()
    return {id(tensor) for tensor in (*owner.parameters(), *owner.buffers())}


def _describe(program: Program) -> list[Any]:
    """A program as plain data; a derived size is known by what it is at the compiled sizes."""
    constants = [list(_baked(item.constant, set())) for item in program.inputs]
    inputs = tuple(dataclasses.replace(item, constant=None) for item in program.inputs)
    parts: list[ProgramInput | ProgramOutput] = [*program.inputs, *program.outputs]
    adapters = [adapter for part in parts for adapter in part.adapters]
    shapes = [
        [part.spec.shape(sizes) for part in parts if part.spec is not None]
        + [adapter.shape((0,) * len(adapter.dims), sizes) for adapter in adapters]
        for sizes in program.sizes
    ]
    return [repr(dataclasses.replace(program, inputs=inputs)), constants, shapes]


def _baked(thing: Any, seen: set[int]) -> Iterator[str]:
    """Yields what an object adds to a program, alike in every process; each object once."""
    if isinstance(thing, _PLAIN):
        yield repr(thing)
        return
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield _digest(thing)
    elif isinstance(thing, (set, frozenset)):
        yield from sorted(text for item in thing for text in _baked(item, seen))
    elif isinstance(thing, Mapping):
        yield from (text for pair in thing.items() for item in pair for text in _baked(item, seen))
    elif isinstance(thing, (list, tuple)):
        yield from (text for item in thing for text in _baked(item, seen))
    else:
        yield from _baked_object(thing, seen)


def _baked_object(thing: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(thing, functools.partial):
        yield from _baked([thing.func, thing.args, thing.keywords], seen)
    elif isinstance(thing, MethodType):
        yield from _baked([thing.__self__, thing.__func__], seen)
    elif isinstance(thing, FunctionType):
        yield from _baked_function(thing, seen)
    elif isinstance(thing, type) or inspect.isroutine(thing) or isinstance(thing, ModuleType):
        yield getattr(thing, "__qualname__", thing.__name__)
    else:
        yield type(thing).__qualname__
        yield from _baked_state(thing, seen)


def _baked_state(thing: Any, seen: set[int]) -> Iterator[str]:
    """Attributes of an object, its parts, and what the methods of its class refer to."""
    held = {name: value for name, value in getattr(thing, "__dict__", {}).items() if name not in _LEFT_OUT}
    yield from _baked(held, seen)
    if isinstance(thing, ModelWrapper) and thing.model_cls is None:
        yield from _baked(thing.__dict__.get("_model"), seen)
    for kind in type(thing).__mro__:
        if _package(kind) not in _KNOWN:
            methods = [item for item in vars(kind).values() if isinstance(item, FunctionType)]
            yield from _baked(methods, seen)


def _baked_function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    """Source, defaults, closure, and globals of its own package."""
    if _package(function) in _KNOWN:
        yield function.__qualname__
        return
    yield _code(function.__code__)
    yield from _baked([function.__defaults__, function.__kwdefaults__], seen)
    for cell in function.__closure__ or ():
        try:
            yield from _baked(cell.cell_contents, seen)
        except ValueError:  # not filled yet
            continue
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        helper = isinstance(value, FunctionType) and _package(value) == _package(function)
        if helper or isinstance(value, (*_PLAIN, torch.Tensor, torch.nn.Module, list, tuple, dict)):
            yield from _baked(value, seen)


def _code(code: CodeType) -> str:
    """What a function does, whatever file it is in: instructions and constants, nested functions included."""
    parts = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for item in code.co_consts:
        # A set of strings has another order in every process.
        parts.append(_code(item) if isinstance(item, CodeType) else repr(_sorted(item)))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _sorted(item: Any) -> Any:
    return sorted(map(repr, item)) if isinstance(item, frozenset) else item


def _names(code: CodeType) -> set[str]:
    nested = [_names(item) for item in code.co_consts if isinstance(item, CodeType)]
    return set(code.co_names).union(*nested)


def _package(thing: Any) -> str:
    return str(getattr(thing, "__module__", "") or "").partition(".")[0]


def _digest(tensor: torch.Tensor) -> str:
    form = f"{list(tensor.shape)} {tensor.dtype}"
    if tensor.is_meta or tensor.numel() == 0:
        return form
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return f"{form} {hashlib.sha256(ctypes.string_at(flat.data_ptr(), flat.nbytes)).hexdigest()}"

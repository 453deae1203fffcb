"""Functions and classes in a description: a released one by name, somebody's own by its code and what that reads."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from orchestrator.fingerprint.code import code_parts, global_names, release_of

if TYPE_CHECKING:
    from orchestrator.fingerprint.walk import Walk

__all__ = ["Use", "cell", "function", "kind", "module", "name_of", "use", "written"]

#: What Python, or a library, adds to a function or a class; all else is from its author.
_ADDED = {
    "__module__",
    "__name__",
    "__qualname__",
    "__doc__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__dict__",
    "__weakref__",
    "__type_params__",
    "__orig_bases__",
    "__parameters__",
    "__abstractmethods__",
    "__static_attributes__",
    "__firstlineno__",
    "__slotnames__",
    "__dataclass_fields__",
    "__protocol_attrs__",
    "__non_callable_proto_members__",
    "__classdictcell__",
    "_abc_impl",
}


@dataclass(frozen=True, eq=False)
class Use:
    """Names that code uses of a module, e.g. ``settings.SCALE``."""

    module: ModuleType
    names: frozenset[str]


def name_of(value: type) -> str:
    """Returns a class's full name."""
    return f"{value.__module__}.{value.__qualname__}"


def written(own: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns what an author gave a class or a function, by name."""
    return sorted(
        (name, item)
        for name, item in own.items()
        if name not in _ADDED and not name.startswith("__pydantic_")
    )


def kind(walk: Walk, value: type) -> list[Any]:
    """A class."""
    release = release_of(value.__module__)
    if release and not _is_stray(value):
        return [name_of(value), release]
    walk.places.note(value.__module__)
    made_by = [] if type(value) is type else [walk.of(type(value))]
    return [name_of(value), made_by, walk.all(value.__bases__), walk.pairs(written(dict(vars(value))))]


def _is_stray(value: type) -> bool:
    """Tells whether a class only says that it is Python's, as those of ``make_dataclass`` do."""
    return value.__module__ == "types" and getattr(types, value.__name__, None) is not value


def function(walk: Walk, value: FunctionType) -> list[Any]:
    """A function; one that was compiled counts as what it was made from."""
    compiled = vars(value).get("_torchdynamo_orig_callable")
    if compiled is not None:
        return ["compiled", walk.of(compiled)]
    code, module = value.__code__, value.__globals__.get("__name__")
    release = release_of(module)
    if release and not code.co_filename.startswith("<string"):  # a text that was run may be any
        known = [module, code.co_name, code.co_firstlineno, release]
    else:
        walk.places.note(module)
        known = [code_parts(code), _globals(walk, value)]
    return [
        known,
        walk.of(value.__defaults__),
        walk.of(value.__kwdefaults__),
        walk.all(cell(each) for each in value.__closure__ or ()),
        walk.pairs(written(vars(value))),
    ]


def cell(value: Any) -> Any:
    """What a cell holds; None: nothing yet."""
    try:
        return value.cell_contents
    except ValueError:
        return None


def _globals(walk: Walk, value: FunctionType) -> list[Any]:
    read, names = global_names(value.__code__)
    own = value.__globals__
    return [[name, _global(walk, own[name], names)] for name in read if name in own]


def _global(walk: Walk, value: Any, names: frozenset[str]) -> Any:
    if not isinstance(value, ModuleType):
        return walk.of(value)
    released = release_of(value.__name__) is not None
    used = frozenset() if released else frozenset(name for name in names if name in vars(value))
    return walk.of(walk.uses.setdefault((id(value), used), Use(value, names)))


def use(walk: Walk, value: Use) -> list[Any]:
    """What code uses of a module."""
    release = release_of(value.module.__name__)
    if release:
        return [value.module.__name__, release]
    own = vars(value.module)
    return [[name, _global(walk, own[name], value.names)] for name in sorted(value.names) if name in own]


def module(walk: Walk, value: ModuleType) -> list[Any]:
    """A module that an object holds: nothing says what of it is used, so all of somebody's own counts."""
    made = type(value)
    release = release_of(value.__name__) or (None if made is ModuleType else release_of(made.__module__))
    if release:
        return [value.__name__, release]
    return [value.__name__, walk.pairs(_own(value))]


def _own(value: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, item in sorted(vars(value).items()):
        if not (name.startswith("__") and name.endswith("__")) or isinstance(item, FunctionType):
            yield name, item

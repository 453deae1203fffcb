"""Functions and classes in a description: a released one by name, somebody's own by its code and what that reads."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from orchestrator.fingerprint.code import code_parts, global_names, release_of
from orchestrator.fingerprint.describer import Describer

__all__ = [
    "ModuleUse",
    "authored_items",
    "cell_value",
    "describe_class",
    "describe_function",
    "describe_module",
    "describe_use",
    "name_of",
]

#: What Python, or a library, adds to a function or a class; all else is from its author.
_GENERATED_NAMES = {
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
class ModuleUse:
    """What code uses of a module, e.g. ``settings.SCALE``.

    Attributes:
        module: The module.
        names: All names in the code: those that the module has are used of it, others of what these stand for.
    """

    module: ModuleType
    names: frozenset[str]

    def key(self) -> tuple[int, frozenset[str]]:
        """Returns what two uses of the same have in common."""
        if release_of(self.module.__name__):
            return id(self.module), frozenset()
        return id(self.module), frozenset(name for name in self.names if name in vars(self.module))


def name_of(value: type) -> str:
    """Returns a class's full name."""
    return f"{value.__module__}.{value.__qualname__}"


def authored_items(own: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns what an author wrote into a class or a function, by name."""
    return sorted(
        (name, item)
        for name, item in own.items()
        if name not in _GENERATED_NAMES and not name.startswith("__pydantic_")
    )


def describe_class(describer: Describer, value: type) -> list[Any]:
    """A class."""
    release = release_of(value.__module__)
    if release and not _is_stray(value):
        return [name_of(value), release]
    describer.note_module(value.__module__)
    made_by = [] if type(value) is type else [describer.of(type(value))]
    return [
        name_of(value),
        made_by,
        describer.all(value.__bases__),
        describer.pairs(authored_items(dict(vars(value)))),
    ]


def _is_stray(value: type) -> bool:
    """Tells whether a class only says that it is Python's, as those of ``make_dataclass`` do."""
    return value.__module__ == "types" and getattr(types, value.__name__, None) is not value


def describe_function(describer: Describer, value: FunctionType) -> list[Any]:
    """A function; one that was compiled counts as what it was made from."""
    original = vars(value).get("_torchdynamo_orig_callable")
    if original is not None:
        return ["compiled", describer.of(original)]
    code, module = value.__code__, value.__globals__.get("__name__")
    release = release_of(module)
    # What a release wrote is the same wherever it is; somebody's own may change under one name, so its bytecode counts.
    if release and not code.co_filename.startswith("<string"):  # a text that was run may be any
        code_record = [module, code.co_name, code.co_firstlineno, release]
    else:
        describer.note_module(module)
        code_record = [code_parts(code), _globals(describer, value)]
    return [
        code_record,
        describer.of(value.__defaults__),
        describer.of(value.__kwdefaults__),
        describer.all(cell_value(each) for each in value.__closure__ or ()),
        describer.pairs(authored_items(vars(value))),
    ]


def cell_value(value: Any) -> Any:
    """What a cell holds; None: nothing yet."""
    try:
        return value.cell_contents
    except ValueError:
        return None


def _globals(describer: Describer, value: FunctionType) -> list[Any]:
    read, names = global_names(value.__code__)
    own = value.__globals__
    return [[name, _global(describer, own[name], names)] for name in read if name in own]


def _global(describer: Describer, value: Any, names: frozenset[str]) -> Any:
    if not isinstance(value, ModuleType):
        return describer.of(value)
    return describer.module_use(value, names)


def describe_use(describer: Describer, value: ModuleUse) -> list[Any]:
    """What code uses of a module."""
    release = release_of(value.module.__name__)
    if release:
        return [value.module.__name__, release]
    own = vars(value.module)
    return [[name, _global(describer, own[name], value.names)] for name in sorted(value.names) if name in own]


def describe_module(describer: Describer, value: ModuleType) -> list[Any]:
    """A module that an object holds: nothing says what of it is used, so all of somebody's own counts."""
    module_class = type(value)
    own_class_release = None if module_class is ModuleType else release_of(module_class.__module__)
    release = release_of(value.__name__) or own_class_release
    if release:
        return [value.__name__, release]
    return [value.__name__, describer.pairs(_own(value))]


def _own(value: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, item in sorted(vars(value).items()):
        if not (name.startswith("__") and name.endswith("__")) or isinstance(item, FunctionType):
            yield name, item

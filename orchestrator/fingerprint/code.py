"""What a piece of code is, alike in every process: by release where a release says it, else by its bytecode.

The *release* of a module is the name and version of the installed package, or of Python, that it belongs to. Code
without one is somebody's own and may change under the same name, so its bytecode counts, and so do the globals that it
reads. Bytecode is what runs, also where no source can be found, and it does not change with a comment.
"""

from __future__ import annotations

import dis
import functools
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import CodeType
from typing import Any

__all__ = ["code_parts", "constant_parts", "global_names", "release_of"]

#: Parts of the core that stages are made of; its testing kit has models of its own.
_CORE, _KIT = "orchestrator", "orchestrator.testing"


def release_of(module: str | None) -> str | None:
    """Returns the release that a module belongs to, or None where its code has to be looked at."""
    if not module:
        return None
    top = module.partition(".")[0]
    if top == _CORE and not module.startswith(_KIT):
        return f"{_CORE} {_version(_CORE)}"
    return _release(top)


@functools.lru_cache(maxsize=4096)
def _release(top: str) -> str | None:
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return f"python {platform.python_version()}"
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    if not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None
    version = _version(top)
    return f"{top} {version}" if version else None


def _version(top: str) -> str:
    version = getattr(sys.modules.get(top), "__version__", None)
    if version is not None:
        return str(version)
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        return ""


@functools.lru_cache(maxsize=4096)
def code_parts(code: CodeType) -> tuple[Any, ...]:
    """Returns what a function's code does, in JSON-like parts: instructions, names and constants."""
    return (
        code.co_code.hex(),
        [constant_parts(value) for value in code.co_consts],
        code.co_names,
        code.co_varnames,
        code.co_cellvars,
        code.co_freevars,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        getattr(code, "co_exceptiontable", b"").hex(),
    )


def constant_parts(value: Any) -> Any:
    """Returns a constant of a code object in JSON-like parts."""
    if isinstance(value, CodeType):
        return ["code", *code_parts(value)]
    if isinstance(value, tuple):
        return ["tuple", [constant_parts(item) for item in value]]
    if isinstance(value, frozenset):
        return ["frozenset", sorted(repr(constant_parts(item)) for item in value)]
    return repr(value)


@functools.lru_cache(maxsize=4096)
def global_names(code: CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """Returns the globals that a function reads, its inner functions included, and all names that it uses."""
    globals_read: dict[str, None] = {}
    names: set[str] = set()
    for each in _codes(code):
        names.update(each.co_names)
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                globals_read[str(step.argval)] = None
    return tuple(globals_read), frozenset(names)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _codes(value)

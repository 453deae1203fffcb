"""Packages whose names are imported when they are first used, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping

__all__ = ["lazy_names"]


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Returns ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its ``__name__``.
        modules: Each lazy name with the module that defines it; a leading dot: one of the package.
    """
    namespace = vars(sys.modules[package])

    def import_name(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name], package), name)
        # Python asks only for what the package lacks: from here on it finds the name by itself.
        namespace[name] = value
        return value

    def list_names() -> list[str]:
        return sorted({*namespace, *modules})

    return import_name, list_names

"""Entries of a registry, their owners, and plugins that could not be used.

All are values. An :class:`RegistryEntry` refuses an unfit name, target or device when it is made, so that a
fault is found while its plugin registers and not when a user asks for the name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import PluginError, nearest

__all__ = ["BY_HAND", "DISABLE_VARIABLE", "BrokenPlugin", "Owner", "RegistryEntry"]

DISABLE_VARIABLE = "ORCHESTRATOR_DISABLE_PLUGINS"
"""The environment variable with the names of plugins to leave out, separated by commas."""

_HOST = "host"
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Owner:
    """Who added an entry.

    Attributes:
        plugin: The plugin's name: that of its entry point, or the one it was registered under.
        distribution: The distribution that ships it; ``None`` if it was registered by hand.
        version: The version of that distribution.
    """

    plugin: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        """Returns the words by which errors name a plugin."""
        if self.distribution is None:
            return f"plugin {self.plugin!r} (registered by hand, no distribution)"
        return f"plugin {self.plugin!r} (distribution {self.distribution} {self.version or '?'})"


BY_HAND = Owner("(by hand)")


@dataclass(frozen=True)
class RegistryEntry:
    """One registered name.

    Attributes:
        kind: ``"stage"``, ``"backend"`` or ``"pipeline"``.
        name: The name by which users ask for it.
        target: An import path ``"package.module:Attribute"``, or the object itself.
        summary: One line for ``orchestrator list``.
        owner: The plugin that added it.
        devices: For a backend, the device families it serves, e.g. ``("cuda",)``; else empty.

    Raises:
        PluginError: The name, target, summary or a device family is unfit.
    """

    kind: str
    name: str
    target: object
    summary: str = ""
    owner: Owner = BY_HAND
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses unfit fields."""
        fault = (
            _name_fault(self.name)
            or _target_fault(self.target)
            or _summary_fault(self.summary)
            or _device_fault(self.devices)
        )
        if fault is not None:
            message = f"{self.owner} adds the {self.kind} {self.name!r}: {fault}"
            raise PluginError(message, name=self.name, target=self.target, plugin=self.plugin)

    @property
    def plugin(self) -> str:
        """The name of the plugin that added this entry."""
        return self.owner.plugin

    @property
    def distribution(self) -> str | None:
        """The distribution that ships the plugin, or ``None``."""
        return self.owner.distribution

    @property
    def version(self) -> str | None:
        """The version of that distribution, or ``None``."""
        return self.owner.version

    def load(self) -> Callable[..., Any]:
        """Returns the target, imported now if it was given by its path.

        Raises:
            PluginError: The module cannot be imported, lacks the attribute, or the target cannot be called.
        """
        factory = self._import(self.target) if isinstance(self.target, str) else self.target
        if not callable(factory):
            raise self._load_error(
                f"it is of type {type(factory).__name__!r}, and a {self.kind} is a class or a factory.",
                f"Correct the target in {self.owner}.",
            )
        return factory

    def _import(self, path: str) -> object:
        # Importing runs code of the plugin, which may raise anything; a missing attribute is a slip of its author.
        module_name, _, attributes = path.partition(":")
        try:
            value: object = importlib.import_module(module_name)
        except Exception as error:
            raise self._load_error(
                f"{type(error).__name__}: {error}.", self._fix(module_name, error)
            ) from error
        for attribute in attributes.split("."):
            try:
                value = getattr(value, attribute)
            except AttributeError as error:
                public = [name for name in dir(value) if not name.startswith("_")]
                why = f"{path.split(':')[0]!r} has no {attribute!r}.{nearest(attribute, public)}"
                raise self._load_error(why, f"Correct the target in {self.owner}.") from error
        return value

    def _fix(self, module: str, error: Exception) -> str:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None:
            return f"Repair or upgrade {self.owner}."
        if module == missing or module.startswith(f"{missing}."):
            return f"Correct the target in {self.owner}, or install what ships {missing!r}."
        return f"Install {missing!r}, which {module!r} imports."

    def _load_error(self, why: str, fix: str) -> PluginError:
        return PluginError(
            f"The {self.kind} {self.name!r} of {self.owner} cannot be loaded from {self.target!r}:"
            f" {why} {fix}",
            entry=self,
            plugin=self.plugin,
            distribution=self.distribution,
            target=self.target,
        )


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was found and could not be used.

    Attributes:
        name: The plugin's name.
        distribution: The distribution that ships it, or ``None``.
        version: The version of that distribution, or ``None``.
        error: The fault and how to mend it; the exception behind it is its ``__cause__``.
        provides: The ``(kind, name)`` pairs it had added before it failed; they are not registered.
    """

    name: str
    distribution: str | None
    version: str | None
    error: PluginError
    provides: tuple[tuple[str, str], ...] = ()

    @property
    def owner(self) -> Owner:
        """The plugin as errors name it."""
        return Owner(self.name, self.distribution, self.version)


def _name_fault(name: object) -> str | None:
    if not isinstance(name, str) or not name:
        return "a name is text and not empty, e.g. 'vision-text'."
    if any(letter.isspace() or not letter.isprintable() for letter in name):
        return "a name holds no spaces; write '-' instead."
    if ":" in name or "->" in name or name.startswith("-"):
        return "a name holds no ':' (that is MODULE:ATTRIBUTE), no '->' (an edge) and no leading '-'."
    return None


def _target_fault(target: object) -> str | None:
    if isinstance(target, str):
        if _IMPORT_PATH.fullmatch(target):
            return None
        return f"the target {target!r} is no import path; write 'package.module:Attribute'."
    if callable(target):
        return None
    return f"the target is of type {type(target).__name__!r}; give an import path, a class or a factory."


def _summary_fault(summary: object) -> str | None:
    if isinstance(summary, str) and "\n" not in summary:
        return None
    return f"the summary {summary!r} is not one line of text."


def _device_fault(devices: tuple[str, ...]) -> str | None:
    for family in devices:
        if _name_fault(family) is not None:
            return f"{family!r} is no device family, the word before the ':' of a device string, e.g. 'cuda'."
        if family == _HOST:
            return f"the device {_HOST!r} is kept for plain Python stages."
    return None

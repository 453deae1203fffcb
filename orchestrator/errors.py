"""Everything Stage Orchestrator raises on purpose.

    OrchestratorError
    |-- GraphError      the graph: names, ports fed twice or never, cycles, a stage never called
    |-- PlanError       planning: shapes, dtypes, devices, sizes, memory budget, options, a wrong plan
    |   `-- PlanOptionError  a name or value in an argument of plan(), or in the config of a stage
    |-- CompileError    compiling or loading a stage on its device
    |-- InputError      a request: names, dtype, rank, size, a closed session
    |-- StageError      a stage raised, or returned what it did not declare; ``__cause__`` is kept
    |-- CancelledError  a request was cancelled between two iterations of a loop
    `-- PluginError     an unknown or broken plugin

A message states the rule that was broken, both ports with their shapes and dtypes, the nearest known
name, and the way out. The objects it speaks of are attributes, so that a program need not parse text.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterable

__all__ = [
    "CancelledError",
    "CompileError",
    "GraphError",
    "InputError",
    "OrchestratorError",
    "PlanError",
    "PlanOptionError",
    "PluginError",
    "StageError",
    "nearest",
]


class OrchestratorError(Exception):
    """Root of the tree; keyword arguments become attributes of the error.

    Args:
        message: The rule, what broke it, and the way out.
        objects: What the message speaks of, e.g. ``stage="vision"``, ``port="image"``.
    """

    def __init__(self, message: str, **objects: object) -> None:
        super().__init__(message)
        self.message = message
        self.objects = objects
        for name, value in objects.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the attributes that can be pickled, so that an error crosses a process border."""
        objects = {name: value for name, value in self.objects.items() if _travels(value)}
        return _rebuild, (type(self), self.message, objects)


class GraphError(OrchestratorError):
    """The graph breaks a rule: names, ports fed twice or never, cycles, a stage never called."""


class PlanError(OrchestratorError):
    """The graph cannot be planned as asked: shapes, dtypes, devices, sizes, budget, options."""


class PlanOptionError(PlanError):
    """An argument of ``plan()``, or the config of a stage, names what does not exist or has a value that is none.

    Another call would mend it; the graph may be well. Attributes name what is wrong: ``option`` of a backend (with
    ``stage`` where it is from that stage's config), or the ``stage``, ``dim``, ``edge`` or ``device`` of an argument.
    """


class CompileError(OrchestratorError):
    """A stage cannot be compiled for its device or loaded onto it."""


class InputError(OrchestratorError):
    """A request does not fit the plan, or the session is closed."""


class StageError(OrchestratorError):
    """A stage raised while it ran, or returned something else than it declared."""


class CancelledError(OrchestratorError):
    """A request was cancelled between two iterations of a loop; what it held is freed."""


class PluginError(OrchestratorError):
    """A plugin, or a name a plugin should have registered, is unknown or broken."""


def _rebuild(kind: type[OrchestratorError], message: str, objects: dict[str, object]) -> OrchestratorError:
    return kind(message, **objects)


def _travels(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Returns the sentence that offers the nearest known name, or lists what is known.

    Args:
        name: The name that was not found.
        candidates: The names that exist.

    Returns:
        A sentence with a leading space, to append to a message.
    """
    names = sorted({str(item) for item in candidates})
    if not names:
        return " None is known."
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    listing = ", ".join(repr(item) for item in names[:12])
    return f" Known: {listing}{', ...' if len(names) > 12 else ''}."

"""What authors of stages, backends and pipelines test with.

- :class:`NullBackend`: a device that allocates nothing, checks every handle, and records every call
  (:func:`recording`); devices ``null``, ``null:0`` and so on.
- toy stages, registered as ``toy.*`` (:mod:`orchestrator.testing.stages`);
- :class:`StageContract` and :class:`BackendContract`: suites to subclass (:mod:`orchestrator.testing.contracts`);
- :func:`run_by_hand`: a pipeline's results without planner and runner, and :func:`assert_same` to compare;
- fixtures of the pytest plugin, which is installed with the core (:mod:`orchestrator.testing.pytest_plugin`).

Importing this package loads no torch; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.promises.reference import run_by_hand
    from orchestrator.testing.compare import assert_same
    from orchestrator.testing.contracts import BackendCase, BackendContract, StageCase, StageContract
    from orchestrator.testing.null import NullBackend
    from orchestrator.testing.record import Event, HandleError, NullHandle, Record, recording

__all__ = [
    "BackendCase",
    "BackendContract",
    "Event",
    "HandleError",
    "NullBackend",
    "NullHandle",
    "Record",
    "StageCase",
    "StageContract",
    "assert_same",
    "recording",
    "run_by_hand",
]

_HOMES = {
    "BackendCase": "contracts",
    "BackendContract": "contracts",
    "NullBackend": "null",
    "StageCase": "contracts",
    "StageContract": "contracts",
    "assert_same": "compare",
    "run_by_hand": "orchestrator.promises.reference",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'orchestrator.testing' has no attribute {name!r}")
    home = _HOMES.get(name, "record")
    value = getattr(importlib.import_module(home if "." in home else f"orchestrator.testing.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""What authors of stages, backends and pipelines test with.

- :class:`NullBackend`: a device that allocates nothing, checks every handle, and records every call
  (:func:`recording`); devices ``null``, ``null:0`` and so on.
- toy stages, registered as ``toy.*`` (:mod:`orchestrator.testing.stages`);
- :class:`StageContract` and :class:`BackendContract`: suites to subclass (:mod:`orchestrator.testing.contracts`);
- :func:`run_reference`: a pipeline's results without planner and runner, and :func:`assert_same` to compare;
- fixtures of the pytest plugin, which is installed with the core (:mod:`orchestrator.testing.pytest_plugin`).

Importing this package loads no torch; a name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import lazy_names

if TYPE_CHECKING:
    from orchestrator.promises.reference import run_reference
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
    "run_reference",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BackendCase": ".contracts",
        "BackendContract": ".contracts",
        "Event": ".record",
        "HandleError": ".record",
        "NullBackend": ".null",
        "NullHandle": ".record",
        "Record": ".record",
        "StageCase": ".contracts",
        "StageContract": ".contracts",
        "assert_same": ".compare",
        "recording": ".record",
        "run_reference": "orchestrator.promises.reference",
    },
)

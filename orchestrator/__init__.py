"""Stage Orchestrator: chains of models as graphs of stages, planned, explained, compiled and run.

Importing this package loads neither torch nor networkx; a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.backend import Backend
    from orchestrator.errors import (
        CancelledError,
        CompileError,
        GraphError,
        InputError,
        OrchestratorError,
        PlanError,
        PluginError,
        StageError,
    )
    from orchestrator.graph import Graph
    from orchestrator.pipeline import Pipeline
    from orchestrator.plan import Plan, Residency
    from orchestrator.plugin import hookimpl
    from orchestrator.promises.report import CheckReport
    from orchestrator.registry import Registry
    from orchestrator.runner import Session
    from orchestrator.specs import Dim, TensorSpec
    from orchestrator.stage import ModelWrapper

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "CancelledError",
    "CheckReport",
    "CompileError",
    "Dim",
    "Graph",
    "GraphError",
    "InputError",
    "ModelWrapper",
    "OrchestratorError",
    "Pipeline",
    "Plan",
    "PlanError",
    "PluginError",
    "Registry",
    "Residency",
    "Session",
    "StageError",
    "TensorSpec",
    "hookimpl",
]

_HOMES = {
    "Backend": "backend",
    "CheckReport": "promises.report",
    "Dim": "specs",
    "Graph": "graph",
    "ModelWrapper": "stage",
    "Pipeline": "pipeline",
    "Plan": "plan",
    "Registry": "registry",
    "Residency": "plan",
    "Session": "runner",
    "TensorSpec": "specs",
    "hookimpl": "plugin",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"orchestrator.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

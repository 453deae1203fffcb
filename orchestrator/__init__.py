"""Stage Orchestrator: chains of models as graphs of stages, planned, explained, compiled and run.

Importing this package loads neither torch nor networkx; a name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import lazy_names

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
    from orchestrator.host_stage import HostStage
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
    "HostStage",
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Backend": ".backend",
        "CancelledError": ".errors",
        "CheckReport": ".promises.report",
        "CompileError": ".errors",
        "Dim": ".specs",
        "Graph": ".graph",
        "GraphError": ".errors",
        "HostStage": ".host_stage",
        "InputError": ".errors",
        "ModelWrapper": ".stage",
        "OrchestratorError": ".errors",
        "Pipeline": ".pipeline",
        "Plan": ".plan",
        "PlanError": ".errors",
        "PluginError": ".errors",
        "Registry": ".registry",
        "Residency": ".plan",
        "Session": ".runner",
        "StageError": ".errors",
        "TensorSpec": ".specs",
        "hookimpl": ".plugin",
    },
)

"""The plan as data: what runs where and why, what it costs, how it is printed, stored and compared."""

from orchestrator.plan.model import Plan
from orchestrator.plan.records import (
    DimPlan,
    PlannedApplication,
    PlannedCall,
    PlannedEdge,
    PlannedGroup,
    PlannedLock,
    PlannedProgram,
    PlannedState,
    PlannedValue,
    Residency,
    StateUpdate,
)
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BranchStep,
    CallStep,
    Carry,
    LoopStep,
    MapStep,
    RegionStep,
    Slice,
    Step,
)

__all__ = [
    "HOST",
    "AdaptStep",
    "BranchStep",
    "CallStep",
    "Carry",
    "DimPlan",
    "LoopStep",
    "MapStep",
    "Plan",
    "PlannedApplication",
    "PlannedCall",
    "PlannedEdge",
    "PlannedGroup",
    "PlannedLock",
    "PlannedProgram",
    "PlannedState",
    "PlannedValue",
    "RegionStep",
    "Residency",
    "Slice",
    "StateUpdate",
    "Step",
]

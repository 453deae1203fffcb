"""The plan as data: what runs where and why, what it costs, how it is printed, stored and compared."""

from orchestrator.plan.model import Plan
from orchestrator.plan.records import (
    DimPlan,
    PlannedCall,
    PlannedEdge,
    PlannedGroup,
    PlannedProgram,
    PlannedValue,
    Residency,
)
from orchestrator.plan.steps import HOST, Step

__all__ = [
    "HOST",
    "DimPlan",
    "Plan",
    "PlannedCall",
    "PlannedEdge",
    "PlannedGroup",
    "PlannedProgram",
    "PlannedValue",
    "Residency",
    "Step",
]

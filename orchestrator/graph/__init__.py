"""The frozen graph: calls of stages, and which output feeds which input."""

from orchestrator.graph.graph import Call, Edge, Graph, NodeKey
from orchestrator.graph.loop import CONDITION, BranchLoop, Loop, MapLoop, next_port, stacked_port, until_port

__all__ = [
    "CONDITION",
    "BranchLoop",
    "Call",
    "Edge",
    "Graph",
    "Loop",
    "MapLoop",
    "NodeKey",
    "next_port",
    "stacked_port",
    "until_port",
]

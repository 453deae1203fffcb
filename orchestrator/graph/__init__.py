"""The frozen graph: calls of stages, and which output feeds which input."""

from orchestrator.graph.graph import Call, Edge, Graph, NodeKey
from orchestrator.graph.loop import CONDITION, Loop, next_port, stacked_port, until_port

__all__ = ["CONDITION", "Call", "Edge", "Graph", "Loop", "NodeKey", "next_port", "stacked_port", "until_port"]

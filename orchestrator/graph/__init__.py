"""The frozen graph: calls of stages, and which output feeds which input."""

from orchestrator.graph.graph import Call, Edge, Graph, NodeKey

__all__ = ["Call", "Edge", "Graph", "NodeKey"]

"""Running a plan: it becomes straight-line Python once, at load, and is called for every request.

The runner sees plans and backends, never the planner, and knows no backend by name.
"""

from orchestrator.runner.session import Session

__all__ = ["Session"]

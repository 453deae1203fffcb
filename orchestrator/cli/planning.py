"""Plan as the command line asks.

Names are checked against graph and registry before planning, so that a name that was mistyped is wrong usage,
and whatever the planner refuses is a job that failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.cli.options import parse_pairs, parse_sizes
from orchestrator.cli.report import UsageError
from orchestrator.errors import PlanError, nearest

if TYPE_CHECKING:
    from orchestrator.cli.resolve import Built
    from orchestrator.graph import Graph
    from orchestrator.plan import Plan

__all__ = ["Wishes"]


class Wishes:
    """What a plan is asked to be.

    Args:
        device: Where stages run.
        placement: The pairs of ``--placement``.
        sizes: The pairs of ``--sizes``.

    Raises:
        UsageError: A malformed pair, or a device that no backend serves.
    """

    def __init__(
        self, device: str, placement: list[str] | None = None, sizes: list[str] | None = None
    ) -> None:
        self.device = device
        self.placement = parse_pairs("--placement", placement, "STAGE=DEVICE")
        self.sizes = parse_sizes(sizes)
        for name in dict.fromkeys((device, *self.placement.values())):
            _check_device(name)

    def plan(self, built: Built) -> Plan:
        """Returns the plan.

        Raises:
            UsageError: A stage, dim or option that the pipeline lacks.
            PlanError: It cannot be planned so.
        """
        graph = built.pipeline.graph
        stages = set(graph.stages)
        stages |= {name[:cut] for name in stages for cut, mark in enumerate(name) if mark == "/"}
        _check_names("--placement", "stage", self.placement, stages, graph.name)
        _check_names("--sizes", "named dim", self.sizes, _dims(graph), graph.name)
        try:
            return built.pipeline.plan(self.device, self.placement or None, self.sizes or None)
        except PlanError as error:
            stage, option = (str(error.objects.get(name)) for name in ("stage", "option"))
            if option in built.overrides.get(stage, {}):
                raise UsageError(str(error)) from error
            raise


def _check_device(device: str) -> None:
    from orchestrator.loader import resolve_backend
    from orchestrator.plugin import default_manager

    if device == "host":
        return
    try:
        resolve_backend(default_manager(), device)
    except PlanError as error:
        raise UsageError(str(error)) from error


def _check_names(option: str, what: str, given: Mapping[str, object], known: set[str], pipeline: str) -> None:
    for name in given:
        if name not in known:
            which = nearest(name, known) if known else " It has none."
            raise UsageError(f"{option} names {name!r}, but pipeline {pipeline!r} has no such {what}.{which}")


def _dims(graph: Graph) -> set[str]:
    """Names of dims of all ports whose author says what they take or give."""
    from orchestrator.specs import TensorSpec

    specs = list(graph.inputs.values())
    for stage in graph.stages.values():
        specs += [port.spec for port in (*stage.inputs, *stage.outputs) if port.spec is not None]
    specs += [spec for edge in graph.edges for spec in edge.via]
    return {name for spec in specs if isinstance(spec, TensorSpec) for name in spec.names}

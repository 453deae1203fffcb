"""Plan as the command line asks.

Names are checked against graph and registry before planning, so that a name that was mistyped is wrong usage,
and whatever the planner refuses is a job that failed. Only what names of options and devices mean is known to the
planner alone: where it refuses one that was given here, the command line is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.cli.options import (
    parse_memory,
    parse_options,
    parse_pairs,
    parse_residencies,
    parse_sizes,
)
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
        residency: The pairs of ``--residency``.
        memory: The budgets of ``--memory``.
        options: The pairs of ``--option``.

    Raises:
        UsageError: A malformed pair or size, or a device that no backend serves.
    """

    def __init__(
        self,
        device: str,
        placement: list[str] | None = None,
        sizes: list[str] | None = None,
        residency: list[str] | None = None,
        memory: list[str] | None = None,
        options: list[str] | None = None,
    ) -> None:
        self.device = device
        self.placement = parse_pairs("--placement", placement, "STAGE=DEVICE")
        self.sizes = parse_sizes(sizes)
        self.residency = parse_residencies(residency)
        self.memory = parse_memory(memory)
        self.options = parse_options(options)
        budgets = {"": self.memory} if isinstance(self.memory, str) else self.memory
        for name in dict.fromkeys((device, *self.placement.values(), *filter(None, budgets))):
            _check_device(name)
        for size in budgets.values():
            _check_bytes(size)

    def plan(self, built: Built) -> Plan:
        """Returns the plan.

        Raises:
            UsageError: A stage, dim or edge that the pipeline lacks, or an option or device that its plan lacks.
            PlanError: It cannot be planned so.
        """
        graph = built.pipeline.graph
        stages = set(graph.stages)
        stages |= {name[:cut] for name in stages for cut, mark in enumerate(name) if mark == "/"}
        _check_names("--placement", "stage", self.placement, stages, graph.name)
        _check_names("--sizes", "named dim", self.sizes, _dims(graph), graph.name)
        _check_names("--residency", "edge", self.residency, set(map(str, graph.edges)), graph.name)
        try:
            return built.pipeline.plan(
                self.device, self.placement, self.sizes, self.residency, self.memory or None, self.options
            )
        except PlanError as error:
            if self._is_cause(error, built):
                raise UsageError(str(error)) from error
            raise

    def _is_cause(self, error: PlanError, built: Built) -> bool:
        """Tells whether the planner refuses a name or value that was given on the command line."""
        stage, option = (str(error.objects.get(name) or "") for name in ("stage", "option"))
        if option:
            last = stage.rpartition("/")[2]
            own = {**built.overrides.get(last, {}), **built.overrides.get(stage, {})}
            return option in (own if stage else self.options)
        unused = set(error.objects) == {"device"} and isinstance(self.memory, dict)
        return unused and error.objects["device"] in self.memory


def _check_device(device: str) -> None:
    from orchestrator.loader import resolve_backend
    from orchestrator.plugin import default_manager

    if device == "host":
        return
    try:
        resolve_backend(default_manager(), device)
    except PlanError as error:
        raise UsageError(str(error)) from error


def _check_bytes(size: str) -> None:
    from orchestrator.planner.memory import parse_bytes

    try:
        parse_bytes(size)
    except PlanError as error:
        raise UsageError(f"--memory {size!r}: {error}") from error


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
    specs += [spec for edge in graph.edges for spec in edge.constraints]
    specs += [spec for loop in graph.loops.values() for _, spec in loop.over]
    return {name for spec in specs if isinstance(spec, TensorSpec) for name in spec.names}

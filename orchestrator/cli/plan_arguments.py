"""Plan as the command line asks: the options of ``plan``, parsed, and whose fault it is where the planner refuses one.

Devices and forms are checked at once, so that nothing is built for a command line that cannot be right. Names of
stages, dims, edges and options are the planner's to check, who says of which argument they are; other refusals are a
job that failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.cli.options import (
    parse_memory,
    parse_options,
    parse_pairs,
    parse_residencies,
    parse_sizes,
)
from orchestrator.cli.report import UsageError
from orchestrator.errors import PlanError, PlanOptionError

if TYPE_CHECKING:
    from orchestrator.cli.targets import BuiltPipeline
    from orchestrator.plan import Plan

__all__ = ["PlanArguments"]


class PlanArguments:
    """The arguments of ``plan`` as the command line has them.

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
        # A stage's author may name a device too: only here is it known that the command line did.
        memory_devices = () if isinstance(self.memory, str) else self.memory
        for name in dict.fromkeys((device, *self.placement.values(), *memory_devices)):
            _check_device(name)

    def plan(self, build_result: BuiltPipeline) -> Plan:
        """Returns the plan.

        Raises:
            UsageError: A stage, dim, edge, option, device or size of memory that the pipeline or its plan lacks.
            PlanError: It cannot be planned so.
        """
        memory = None if self.memory == {} else self.memory
        try:
            return build_result.pipeline.plan(
                self.device,
                placement=self.placement,
                sizes=self.sizes,
                residency=self.residency,
                memory=memory,
                options=self.options,
            )
        except PlanOptionError as error:
            stage, option = error.objects.get("stage"), error.objects.get("option")
            # The config of a stage is its author's, and so is what is wrong with it, unless --set wrote it.
            if stage and option and not build_result.is_overridden(str(stage), str(option)):
                raise
            raise UsageError(str(error)) from error


def _check_device(device: str) -> None:
    from orchestrator.loader import resolve_backend
    from orchestrator.plugin import default_manager

    if device == "host":
        return
    try:
        resolve_backend(default_manager(), device)
    except PlanError as error:
        raise UsageError(str(error)) from error

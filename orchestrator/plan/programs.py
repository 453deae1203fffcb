"""What steps say of programs: which adapters are fused into a call, and what its program gives.

A step with a place of ``consumer`` gives its input another name: the program that reads it does the work. A step with a
place of ``producer`` reads nothing either: the program that made its input gives the adapted value as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.adapter import Adapter
from orchestrator.plan.records import PlanData
from orchestrator.plan.steps import AdaptStep, CallStep, LoopLikeStep, Step, adapter_of, iter_steps

__all__ = ["FusedAdapters", "Port", "place_of", "port_order"]

Port = tuple[int, tuple[Adapter, ...]]


def place_of(step: Step) -> str:
    """Returns where an adapter step happens; empty for all other steps."""
    adapter = adapter_of(step)
    return "" if adapter is None else adapter.place


@dataclass(frozen=True)
class FusedAdapters:
    """Adapters that a plan fuses into the programs of calls.

    Attributes:
        prologue: Value to the value that is really read for it, and the adapters on the way.
        epilogue: Value to the output (call, position) it comes from, and the adapters on the way.
        ports: Call to its outputs and the values they are, fused ones included.
        read_values: Values somebody reads by themselves: steps that are not fused into a producer, the next iteration
            or the end of a loop, and the outputs.
    """

    prologue: Mapping[int, tuple[int, tuple[Adapter, ...]]]
    epilogue: Mapping[int, tuple[str, Port]]
    ports: Mapping[str, Mapping[Port, int]]
    read_values: frozenset[int]

    @staticmethod
    def of(steps: Iterable[Step], outputs: Iterable[int]) -> FusedAdapters:
        """Finds the adapters that steps fuse; ``outputs`` are the values that are results."""
        prologue: dict[int, tuple[int, tuple[Adapter, ...]]] = {}
        epilogue: dict[int, tuple[str, Port]] = {}
        read = set(outputs)
        # A step comes after what made its inputs: what was fused before it is known when it is come to.
        for step in iter_steps(steps):
            match step:
                case CallStep():
                    epilogue.update({index: (step.name, (at, ())) for at, index in enumerate(step.outputs)})
                case LoopLikeStep():
                    read.update(step.yields)
                case AdaptStep(inputs=(source,), outputs=(target,), adapter=adapter):
                    if adapter.place == "consumer":
                        root, adapters = prologue.get(source, (source, ()))
                        prologue[target] = (root, (*adapters, adapter))
                    elif adapter.place == "producer":
                        call, (at, adapters) = epilogue[source]
                        epilogue[target] = (call, (at, (*adapters, adapter)))
            if place_of(step) != "producer":
                read.update(step.inputs)
        ports: dict[str, dict[Port, int]] = {}
        for index, (call, port) in epilogue.items():
            ports.setdefault(call, {})[port] = index
        return FusedAdapters(prologue, epilogue, ports, frozenset(read))

    @staticmethod
    def of_plan(plan: PlanData) -> FusedAdapters:
        """Finds the adapters that a plan fuses."""
        return FusedAdapters.of(plan.steps, (index for _, index in plan.outputs))

    def read(self, index: int) -> tuple[int, tuple[Adapter, ...]]:
        """Returns the value that is really read for a value, and the adapters its reader does."""
        return self.prologue.get(index, (index, ()))

    def outputs_of(self, call: str) -> dict[Port, int]:
        """Returns what a call's program must give: output position and adapters to value, in a fixed order.

        What nobody reads is left out, but a program gives something.
        """
        ports = self.ports[call]
        order = sorted(ports, key=port_order)
        read = {port: ports[port] for port in order if ports[port] in self.read_values}
        return read or {port: ports[port] for port in order[:1]}


def port_order(port: Port) -> tuple[int, int, str]:
    """Sorts the outputs of a program: by position, the plain one first."""
    return port[0], len(port[1]), str(port[1])

"""Programs: what a backend that compiles takes, and what it hands out.

A *program* is compiled code with fixed inputs, one version for each combination of buckets. It runs a stage, with
adapters *folded* into it before and after, or adapters alone (then it is weightless). Stages that have weights in
common, such as the bound methods of one module, are its *entry points*: their programs share those weights, and
together they are an *application*. Programs of an application that take inputs of the same shapes are told apart by
their *route*. Two of them may be equal otherwise: a second one exists where the first, which owns a single output
buffer, must not run again yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.adapter import Adapter
from orchestrator.specs import TensorSpec

if TYPE_CHECKING:
    from orchestrator.stage import Stage

__all__ = ["Application", "Program", "ProgramInput", "ProgramOutput", "ProgramState", "outputs_of"]


@dataclass(frozen=True)
class ProgramInput:
    """One input of a program.

    Attributes:
        port: The stage's input port; ``value`` in a weightless program.
        spec: What arrives on the device; ``None``: a Python constant, compiled in.
        adapters: What is done to it before the stage sees it, in order.
        dtype: What the stage was written for; integers are converted to it inside the program.
        constant: The Python constant; in a plan its name.
        state: The state of its application that the port gets; empty: a tensor is handed over.
    """

    port: str
    spec: TensorSpec | None
    adapters: tuple[Adapter, ...] = ()
    dtype: torch.dtype | None = None
    constant: Any = None
    state: str = ""


@dataclass(frozen=True)
class ProgramOutput:
    """One output of a program.

    Attributes:
        port: The stage's output port; ``value`` in a weightless program.
        spec: What leaves, adapters done.
        adapters: What is done to the output of the stage, in order.
        state: The state of its application that is written; empty: it is handed over.
    """

    port: str
    spec: TensorSpec
    adapters: tuple[Adapter, ...] = ()
    state: str = ""


@dataclass(frozen=True)
class ProgramState:
    """Memory of an application, which its programs read and write in place; one for all of them.

    It has no content until a program writes it.

    Attributes:
        name: Unique in its plan.
        spec: Its form, without named dims.
    """

    name: str
    spec: TensorSpec


@dataclass(frozen=True)
class Program:
    """One program.

    Its loaded callable takes the handles of :attr:`tensors` in order and returns a tuple of handles, one for each of
    :attr:`results`.

    Attributes:
        name: Unique in its plan.
        inputs: Ports that take something, in the order of the stage's.
        outputs: What it gives, in order; a port may appear raw and adapted.
        sizes: The combinations of buckets it is compiled for, the largest last.
        returns: How the stage hands its outputs over: ``single``, ``tuple`` or ``dict``.
        ports: All output ports of the stage, in order.
        keywords: Ports that the stage takes by name.
        route: Tells apart programs of an application that take inputs of the same shapes.
        to_host: Its one output is read on the host only.
        stage: Name of the stage that it runs; empty: the only one of its application, or adapters alone.
        updates: Input ports that the stage writes into; the program hands it copies.
    """

    name: str
    inputs: tuple[ProgramInput, ...]
    outputs: tuple[ProgramOutput, ...]
    sizes: tuple[Mapping[str, int], ...] = ({},)
    returns: str = "single"
    ports: tuple[str, ...] = ("output",)
    keywords: tuple[str, ...] = ()
    route: int = 0
    to_host: bool = False
    stage: str = ""
    updates: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[ProgramInput, ...]:
        """Inputs that are tensors which are handed over, in order."""
        return tuple(item for item in self.inputs if item.spec is not None and not item.state)

    @property
    def results(self) -> tuple[ProgramOutput, ...]:
        """Outputs that are handed over, in order."""
        return tuple(item for item in self.outputs if not item.state)


@dataclass(frozen=True)
class Application:
    """The programs of stages that share weights, compiled and loaded as one; or one weightless program.

    Attributes:
        name: The names of its stages, joined by plus signs; the program's where there is no stage.
        stages: Its stages, in the order of the graph; none: adapters alone.
        programs: Its programs.
        states: Its states: there are some only where :attr:`CompilingBackend.keeps_states
            <orchestrator.backend.CompilingBackend.keeps_states>` is true.
    """

    name: str
    stages: tuple[Stage, ...]
    programs: tuple[Program, ...]
    states: tuple[ProgramState, ...] = ()

    def stage_of(self, program: Program) -> Stage | None:
        """Returns the stage that one of its programs runs; ``None``: adapters alone."""
        if not program.stage:
            return self.stages[0] if self.stages else None
        return next(stage for stage in self.stages if stage.name == program.stage)


def outputs_of(returns: str, ports: Sequence[str], result: Any) -> tuple[Any, ...]:
    """Returns what a stage handed over, in the order of its ports.

    Args:
        returns: How it hands them over, as :class:`~orchestrator.plan.model.PlannedCall` says.
        ports: The ports.
        result: What it handed over.
    """
    if returns == "single":
        return (result,)
    if returns == "tuple":
        return tuple(result)
    if returns == "dict":
        return tuple(result[port] for port in ports)
    if returns == "keys":
        by_key = {str(key): value for key, value in result.items()}
        return tuple(by_key[port] for port in ports)
    return tuple(result[int(position)] for position in returns.split()[1:])

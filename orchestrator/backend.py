"""All that an author of a backend needs: the classes to subclass, and the records that the planner hands them.

Backend, EagerBackend, CompilingBackend    what a device family must offer; subclass one of the last two
TensorBackend                              an EagerBackend whose device torch knows
Capabilities, Link                         what the planner must know of a device
Stage, Port, TensorSpec, ModelWrapper      what a device is asked to run
Application, Program, ProgramInput,
ProgramOutput, ProgramState                what a device that compiles is asked to compile
Operation                                  what a stage does, one by one
Adapter, apply, part_of                    what is done to a value on its way, and how torch does it
"""

from orchestrator.adapter import Adapter, apply, part_of
from orchestrator.devices.base import Backend, Capabilities, EagerBackend, Handle, Link, Operation
from orchestrator.devices.compiling import CompilingBackend
from orchestrator.devices.tensors import TensorBackend
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput, ProgramState
from orchestrator.specs import PortSpec, TensorSpec
from orchestrator.stage import ModelWrapper, Port, Stage

__all__ = [
    "Adapter",
    "Application",
    "Backend",
    "Capabilities",
    "CompilingBackend",
    "EagerBackend",
    "Handle",
    "Link",
    "ModelWrapper",
    "Operation",
    "Port",
    "PortSpec",
    "Program",
    "ProgramInput",
    "ProgramOutput",
    "ProgramState",
    "Stage",
    "TensorBackend",
    "TensorSpec",
    "apply",
    "part_of",
]

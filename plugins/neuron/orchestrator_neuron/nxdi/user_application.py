"""A user's whole NxD Inference application as a stage: it compiles and loads itself, and the plan sets its flags.

What its wrapper lacks to work at all, in the form of the guide to pipeline execution, is filled in on the object.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import CompileError
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.specs import TensorSpec, show_spec
from orchestrator_neuron.nxdi.adopt import AdoptedStage
from orchestrator_neuron.nxdi.application import as_compile_error, work_folder
from orchestrator_neuron.nxdi.calls import ProgramCall
from orchestrator_neuron.nxdi.checks import Row
from orchestrator_neuron.nxdi.read import held_row

__all__ = ["build_own", "load_own"]


def build_own(application: Application, stage: AdoptedStage, folder: Path) -> None:
    """Compiles a user's application into a folder.

    Raises:
        CompileError: It cannot be compiled, or is compiled for other shapes than the plan feeds.
    """
    program = _only_program(application)
    _check_rows(program, stage)
    stage.complete()
    theirs = stage.application
    with as_compile_error(application, "compiled"), work_folder(folder):
        theirs._builder = None
        theirs.compile(str(folder))
        theirs._builder = None


def load_own(application: Application, stage: AdoptedStage, folder: Path) -> dict[str, ProgramCall]:
    """Loads a user's application with its own weights; returns the callable of its program.

    Raises:
        CompileError: It cannot be loaded.
    """
    program = _only_program(application)
    stage.complete()
    theirs, wrapper = stage.application, stage.nxdi_wrapper
    with as_compile_error(application, "loaded"):
        theirs._builder = None
        theirs.load(str(folder), skip_warmup=True)
        theirs._builder = None
    wrapper.pipeline_execution, wrapper.return_ranked_to_cpu = True, program.to_host
    return {program.name: ProgramCall(program, wrapper, theirs.forward)}


def _only_program(application: Application) -> Program:
    """The one program of an application that is used as it is."""
    program = application.programs[0]
    ends: tuple[ProgramInput | ProgramOutput, ...] = (*program.inputs, *program.outputs)
    if len(application.programs) != 1 or program.route or any(end.adapters for end in ends):
        raise CompileError(
            f"The stage {application.name!r} is an application of NxD Inference, which compiles itself, so nothing "
            f"can be folded into it and it cannot be compiled twice. Give its wrapper to from_nxdi instead.",
            stage=application.name,
        )
    return program


def _check_rows(program: Program, stage: AdoptedStage) -> None:
    """Makes sure that the application's own example inputs are all that the plan feeds it."""
    for sizes in program.sizes:
        row = tuple(
            TensorSpec(item.spec.shape(sizes), item.spec.dtype) for item in program.tensors if item.spec
        )
        if row not in map(held_row, stage.rows):
            raise CompileError(
                f"The program {program.name!r} is fed {_show_row(row)}, but the input_generator of its application "
                f"compiles it for {'; '.join(map(_show_row, stage.rows))}, and only these run. Give a row for each "
                f"size, or give the wrapper to from_nxdi.",
                program=program.name,
            )


def _show_row(row: Row) -> str:
    return ", ".join(map(show_spec, row))

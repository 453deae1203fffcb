"""A user's whole NxD Inference application as a stage, or its submodels as several: it compiles and loads itself.

The plan sets the flags of its wrappers. What the wrapper of an application with one submodel lacks to work at all, in
the form of the guide to pipeline execution, is filled in on the object.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import CompileError
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.specs import TensorSpec, show_spec
from orchestrator_neuron.nxdi.adopt import AdoptedStage
from orchestrator_neuron.nxdi.application import as_compile_error, work_folder
from orchestrator_neuron.nxdi.calls import ProgramCall
from orchestrator_neuron.nxdi.checks import Row
from orchestrator_neuron.nxdi.read import held_row
from orchestrator_neuron.nxdi.submodels import Submodel

__all__ = ["build_own", "load_own"]


def build_own(application: Application, stage: AdoptedStage, folder: Path) -> None:
    """Compiles a user's application into a folder.

    Raises:
        CompileError: It cannot be compiled, or is compiled for other shapes than the plan feeds.
    """
    for program, user_stage in _programs(application):
        _check_rows(program, user_stage)
        user_stage.complete()
    theirs = stage.application
    with as_compile_error(application, "compiled"), work_folder(folder):
        _forget_builders(theirs)
        theirs.compile(str(folder))
        _forget_builders(theirs)


def load_own(application: Application, stage: AdoptedStage, folder: Path) -> dict[str, ProgramCall]:
    """Loads a user's application with its own weights; returns the callable of each of its programs.

    Raises:
        CompileError: It cannot be loaded.
    """
    programs = _programs(application)
    for _, user_stage in programs:
        user_stage.complete()
    theirs = stage.application
    with as_compile_error(application, "loaded"):
        _forget_builders(theirs)
        theirs.load(str(folder), skip_warmup=True)
        _forget_builders(theirs)
    calls: dict[str, ProgramCall] = {}
    for program, user_stage in programs:
        wrapper = user_stage.nxdi_wrapper
        wrapper.pipeline_execution, wrapper.return_ranked_to_cpu = True, program.to_host
        run = _row_call(program, user_stage) if isinstance(user_stage, Submodel) else theirs.forward
        calls[program.name] = ProgramCall(program, wrapper, run)
    return calls


def _forget_builders(application: Any) -> None:
    """Drops the builders, which hold models and a work folder."""
    for name in ("_builder", "text_builder", "vision_builder"):
        if hasattr(application, name):
            setattr(application, name, None)


def _row_call(program: Program, submodel: Submodel) -> Callable[..., Any]:
    """Returns the function of a program of a submodel, whose row holds more than the plan feeds.

    The rest goes up now, once for each rank. The wrapper's own ``forward`` is left out: it looks at contents and pads,
    which the plan has done.
    """
    names = [item.port for item in program.tensors]
    ranks = submodel.config.neuron_config.local_ranks_size
    row: list[Any] = [None] * len(submodel.row_names)
    for place, value in submodel.row_fillings(names).items():
        row[place] = [[value.to(f"privateuseone:{rank}")] for rank in range(ranks)]
    places = [submodel.row_names.index(name) for name in names]
    wrapper = submodel.nxdi_wrapper

    def call(*handles: Any) -> Any:
        values = list(row)
        for place, handle in zip(places, handles, strict=True):
            values[place] = handle
        return wrapper._forward(*values)

    return call


def _programs(application: Application) -> list[tuple[Program, AdoptedStage]]:
    """The programs of an application that is used as it is, with the stage of each.

    Raises:
        CompileError: Something is folded into one, or a stage has two.
    """
    programs: list[tuple[Program, AdoptedStage]] = []
    for program in application.programs:
        stage = application.stage_of(program)
        ends: tuple[ProgramInput | ProgramOutput, ...] = (*program.inputs, *program.outputs)
        is_second = stage is not None and any(other is stage.wrapper for _, other in programs)
        if stage is None or is_second or program.route or any(end.adapters for end in ends):
            raise CompileError(
                f"The stage {application.name!r} is an application of NxD Inference, which compiles itself, so nothing "
                f"can be folded into it and it cannot be compiled twice. Give its wrapper to from_nxdi instead.",
                stage=application.name,
            )
        assert isinstance(stage.wrapper, AdoptedStage)
        programs.append((program, stage.wrapper))
    return programs


def _check_rows(program: Program, stage: AdoptedStage) -> None:
    """Makes sure that the application's own example inputs are all that the plan feeds it."""
    rows = stage.rows
    if isinstance(stage, Submodel):
        rows = stage.rows_of([item.port for item in program.tensors])
    for sizes in program.sizes:
        row = tuple(
            TensorSpec(item.spec.shape(sizes), item.spec.dtype) for item in program.tensors if item.spec
        )
        if row not in map(held_row, rows):
            raise CompileError(
                f"The program {program.name!r} is fed {_show_row(row)}, but the input_generator of its application "
                f"compiles it for {'; '.join(map(_show_row, rows))}, and only these run. Give a row for each "
                f"size, or give the wrapper to from_nxdi.",
                program=program.name,
            )


def _show_row(row: Row) -> str:
    return ", ".join(map(show_spec, row))

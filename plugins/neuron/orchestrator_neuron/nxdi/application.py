"""Compiling and loading the programs of one stage as one NxD Inference application.

What is compiled lands in the artifact's folder as ``model.pt`` (programs for every combination of sizes) and
``neuron_config.json``; both may be moved. NxD's work folder, which it empties before each compile, is one for each
application and is deleted afterwards: nothing in it is read again.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.stage import Stage
from orchestrator_neuron.checkpoint import load_weights
from orchestrator_neuron.module import example_inputs, stage_module
from orchestrator_neuron.nxdi.adopt import AdoptedStage
from orchestrator_neuron.nxdi.calls import ProgramCall
from orchestrator_neuron.options import Settings
from orchestrator_neuron.versions import distinct_versions, versions_of

if TYPE_CHECKING:
    from orchestrator_neuron.nxdi.classes import Bucketed, Source

__all__ = ["as_compile_error", "build_programs", "load_programs", "work_folder"]

WORK_DIR = "BASE_COMPILE_WORK_DIR"


def build_programs(application: Application, folder: Path, settings: Settings) -> None:
    """Compiles all programs of a stage into a folder.

    Raises:
        CompileError: They cannot be compiled.
    """
    check_routes(application)
    with as_compile_error(application, "compiled"), work_folder(folder):
        made = _made(application, folder, settings, _fresh(application.stage, settings))
        made.compile(str(folder))


def check_routes(application: Application) -> None:
    """Makes sure that NxD's router can tell apart all that is compiled into an application.

    Raises:
        CompileError: It cannot, or a program takes no tensor at all.
    """
    for program in application.programs:
        if not program.tensors and not program.route:
            raise CompileError(
                f"The program {program.name!r} takes no tensor, and NxD Inference routes by the shapes of inputs; make "
                f"its stage a host stage (device='host').",
                program=program.name,
            )
    distinct_versions(application)


def tag_of(program: Program, position: int) -> str:
    """Returns a tag that is unique in the application, and may name a folder and a module."""
    return f"p{position}_{re.sub('[^0-9a-z]+', '_', program.name.lower()).strip('_')}"


def examples(program: Program) -> list[tuple[torch.Tensor, ...]]:
    """Returns inputs for each version of a program."""
    return [example_inputs(program, sizes) for sizes in versions_of(program)]


def load_programs(
    application: Application, folder: Path, settings: Settings
) -> dict[str, Callable[..., Any]]:
    """Puts the weights of a stage on the device; returns the callable of each program.

    There is no warm-up: NxD Inference's runs ``forward``, which is not the ranked way, and writes into aliased state.

    Raises:
        CompileError: Weights do not fit, or the device refuses.
    """
    stage = application.stage
    copied = [stage_module(stage, settings.torch_dtype, settings.checkpoint is not None)]
    # Nothing is traced, so NxD throws no weights away, and one copy serves all. A user's model is built anew even so:
    # in NxD's parallel state it may have other layers than here, and they say how weights are cut.
    source: Source = lambda: lambda _: copied[0]  # noqa: E731
    if adopted_stage(stage) is not None:
        source = _fresh(stage, settings)
    weights = load_weights(stage.name if stage else application.name, copied[0][1], settings)
    with as_compile_error(application, "loaded"):
        made = _made(application, folder, settings, source, traced=False)
        made.use_weights(weights)
        made.load(str(folder), skip_warmup=True)
        made.forget()
        copied.clear()
        pairs = zip(application.programs, made.models, strict=True)
        ranks = settings.world_size
        return {
            program.name: ProgramCall(program, wrapper, wrapper.forward, routing(program, ranks))
            for program, wrapper in pairs
        }


def routing(program: Program, ranks: int) -> tuple[list[list[torch.Tensor]], ...]:
    """Uploads what tells a program apart, once for each rank; nothing where nothing is needed."""
    if not program.route:
        return ()
    value = torch.zeros(program.route, dtype=torch.int32, device="cpu")
    return ([[value.to(f"privateuseone:{rank}")] for rank in range(ranks)],)


def _made(
    application: Application, folder: Path, settings: Settings, source: Source, traced: bool = True
) -> Any:
    """Makes NxD Inference's objects for a stage; only where they are traced are there example inputs."""
    from orchestrator_neuron.nxdi.classes import StageApplication

    adopted = adopted_stage(application.stage)
    config = _config(adopted, settings)
    made = StageApplication(folder, config, settings)
    for position, program in enumerate(application.programs):
        given = examples(program) if traced else []
        made.models.append(_wrapper(application, program, position, config, settings, source, given))
    return made


def _wrapper(
    application: Application,
    program: Program,
    position: int,
    config: Any,
    settings: Settings,
    source: Source,
    given: list[tuple[torch.Tensor, ...]],
) -> Any:
    from orchestrator_neuron.nxdi.classes import ProgramInstance, ProgramWrapper

    tag = tag_of(program, position)
    instance = ProgramInstance(source, program, versions_of(program))
    adopted = adopted_stage(application.stage)
    arguments = compiler_arguments(settings)
    if adopted is not None and adopted.has_forward and _plain(application):
        return adopted.twin(config, tag, instance, given, arguments, program.to_host)
    wrapper = ProgramWrapper(config, tag, instance, given, arguments, program.to_host)
    if adopted is not None and arguments is None:
        wrapper.compiler_args = adopted.nxdi_wrapper.compiler_args
    return wrapper


def _plain(application: Application) -> bool:
    """Tells whether the one program takes and gives just what the stage does, so that a user's forward fits it."""
    program = application.programs[0]
    ends: tuple[ProgramInput | ProgramOutput, ...] = (*program.inputs, *program.outputs)
    return len(application.programs) == 1 and not program.route and not any(end.adapters for end in ends)


def _config(adopted: AdoptedStage | None, settings: Settings) -> Any:
    """Returns a config of the stage's own; nothing of a user's object is written to."""
    from orchestrator_neuron.nxdi.classes import InferenceConfig, NeuronConfig

    if adopted is None:
        config = InferenceConfig(
            NeuronConfig(
                tp_degree=settings.tp_degree,
                world_size=settings.world_size,
                logical_nc_config=settings.logical_nc_config,
                torch_dtype=torch.float32,
            )
        )
    else:
        config = copy.deepcopy(adopted.nxdi_wrapper.config)
    neuron = config.neuron_config
    neuron.tp_degree, neuron.world_size = settings.tp_degree, settings.world_size
    neuron.local_ranks_size, neuron.start_rank_id = settings.world_size, 0
    # Left to itself, NxD Inference would cast everything to bfloat16.
    neuron.torch_dtype = settings.torch_dtype or torch.float32
    neuron.cast_type = "config" if settings.torch_dtype else "as-declared"
    neuron.save_sharded_checkpoint = False
    return config


def _fresh(stage: Stage | None, settings: Settings) -> Source:
    """Returns what makes the stage anew each time it is traced."""
    adopted = adopted_stage(stage)
    if adopted is not None:
        config = _config(adopted, settings)
        return lambda: adopted.traced(config)

    def make() -> Bucketed:
        copied = stage_module(stage, settings.torch_dtype, settings.checkpoint is not None)
        return lambda _: copied

    return make


def adopted_stage(stage: Stage | None) -> AdoptedStage | None:
    """Returns the wrapper of a stage that a user wrote for NxD Inference, if it is one."""
    wrapper = stage.wrapper if stage is not None else None
    return wrapper if isinstance(wrapper, AdoptedStage) else None


def compiler_arguments(settings: Settings) -> str | None:
    """Returns the compiler's arguments with the core configuration in them; None: NxD Inference's defaults."""
    if not settings.compiler_args:
        return None
    given = settings.compiler_args
    return given if "--lnc" in given else f"{given} --lnc={settings.logical_nc_config}"


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """Gives NxD a work folder of its own while something is compiled.

    The variable is read in the constructor of every wrapper and once more by the builder.
    """
    before = os.environ.get(WORK_DIR)
    work = folder / "work"
    os.environ[WORK_DIR] = f"{work}{os.sep}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[WORK_DIR]
        else:
            os.environ[WORK_DIR] = before
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def as_compile_error(application: Application, action: str) -> Iterator[None]:
    """Turns whatever NxD Inference raises into a :class:`CompileError`; its warnings are to its own developers."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"neuronx_distributed\b")
            yield
    except OrchestratorError:
        raise
    except Exception as error:
        raise CompileError(
            f"The stage {application.name!r} cannot be {action} by NxD Inference: {type(error).__name__}: {error}",
            stage=application.name,
        ) from error

"""Compiling and loading the programs of stages that share weights as one NxD Inference application.

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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator_neuron.checkpoint import load_weights
from orchestrator_neuron.isolation import environment_variable
from orchestrator_neuron.module import ApplicationModule, application_module, entry_points, example_inputs
from orchestrator_neuron.nxdi.adopt import AdoptedStage
from orchestrator_neuron.nxdi.calls import ProgramCall
from orchestrator_neuron.nxdi.rank_files import rank_files
from orchestrator_neuron.options import NeuronSettings
from orchestrator_neuron.state import check_handover
from orchestrator_neuron.versions import distinct_versions, versions_of

if TYPE_CHECKING:
    from orchestrator_neuron.nxdi.classes import ModuleForBucket, ModuleSource

__all__ = ["as_compile_error", "build_programs", "load_programs", "work_folder"]

WORK_DIR = "BASE_COMPILE_WORK_DIR"


def build_programs(application: Application, folder: Path, settings: NeuronSettings) -> None:
    """Compiles all programs of an application into a folder.

    Raises:
        CompileError: They cannot be compiled.
    """
    check_routes(application)
    if len(application.stages) > 1 and adopted_stage(application) is None:
        module = application_module(application, settings.torch_dtype, settings.checkpoint is not None)
        check_handover(application.name, entry_points(application, module))
    with as_compile_error(application, "compiled"), work_folder(folder):
        nxdi_application = _stage_application(
            application, folder, settings, _fresh_source(application, settings)
        )
        nxdi_application.compile(str(folder))


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


def version_examples(program: Program) -> list[tuple[torch.Tensor, ...]]:
    """Returns inputs for each version of a program."""
    return [example_inputs(program, sizes) for sizes in versions_of(program)]


def load_programs(application: Application, folder: Path, settings: NeuronSettings) -> dict[str, ProgramCall]:
    """Puts the weights of an application on the device, once; returns the callable of each program.

    NxD Inference's own warm-up is left out: it runs ``forward``, which is not the ranked way, and writes into aliased
    state. The loader runs each program as requests do.

    Raises:
        CompileError: Weights do not fit, or the device refuses.
    """
    # In a list, so that it can be let go of once its weights are on the device, while `source` still refers to it.
    modules: list[ApplicationModule] = []
    user_stage = adopted_stage(application)
    if user_stage is None or settings.checkpoint is None:
        modules.append(application_module(application, settings.torch_dtype, settings.checkpoint is not None))
    # Nothing is traced, so NxD throws no weights away, and one copy serves all. A user's model is built anew even so:
    # in NxD's parallel state it may have other layers than here, and they say how weights are cut.
    source: ModuleSource = lambda: lambda _: modules[0]  # noqa: E731
    if user_stage is not None:
        source = _fresh_source(application, settings)
    whole, ranks = _weights(application, settings, modules[0].owner if modules else None)
    with as_compile_error(application, "loaded"):
        nxdi_application = _stage_application(application, folder, settings, source, is_traced=False)
        nxdi_application.use_weights(whole, ranks)
        whole, ranks = {}, []
        nxdi_application.load(str(folder), skip_warmup=True)
        nxdi_application.forget()
        modules.clear()
        pairs = zip(application.programs, nxdi_application.models, strict=True)
        return {
            program.name: ProgramCall(program, wrapper, wrapper.forward, routing(program, settings.ranks))
            for program, wrapper in pairs
        }


def _weights(
    application: Application, settings: NeuronSettings, owner: torch.nn.Module | None
) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The whole weights; or, where a checkpoint is cut already, those of each rank.

    They lie in the pages of their files, which are read when they are copied to the device: a model is not held whole.
    """
    user_stage = adopted_stage(application)
    if user_stage is None or settings.checkpoint is None:
        return load_weights(application.name, owner, settings), []
    first = settings.start_rank_id
    local = range(first, first + settings.ranks)
    files = rank_files(application.name, settings.checkpoint, settings.world_size, local)
    if files is None:
        return load_weights(application.name, user_stage.weightless(1), settings), []
    model = user_stage.weightless(settings.tp_degree)
    each = [replace(settings, checkpoint=str(file)) for file in files]
    return {}, [load_weights(application.name, model, of_rank) for of_rank in each]


def routing(program: Program, ranks: int) -> tuple[list[list[torch.Tensor]], ...]:
    """Uploads the routing input of a program, once for each rank; nothing where it has none."""
    if not program.route:
        return ()
    value = torch.zeros(program.route, dtype=torch.int32, device="cpu")
    return ([[value.to(f"privateuseone:{rank}")] for rank in range(ranks)],)


def _stage_application(
    application: Application,
    folder: Path,
    settings: NeuronSettings,
    source: ModuleSource,
    is_traced: bool = True,
) -> Any:
    """Makes NxD Inference's application; without example inputs where nothing is traced."""
    from orchestrator_neuron.nxdi.classes import StageApplication

    # Wrappers in the order of programs: whoever loads them pairs both by place.
    user_stage = adopted_stage(application)
    config = _config(user_stage, settings)
    nxdi_application = StageApplication(folder, config, settings)
    for position, program in enumerate(application.programs):
        example_rows = version_examples(program) if is_traced else []
        nxdi_application.models.append(
            _wrapper(application, program, position, config, settings, source, example_rows)
        )
    return nxdi_application


def _wrapper(
    application: Application,
    program: Program,
    position: int,
    config: Any,
    settings: NeuronSettings,
    source: ModuleSource,
    example_rows: list[tuple[torch.Tensor, ...]],
) -> Any:
    from orchestrator_neuron.nxdi.classes import ProgramInstance, ProgramWrapper

    # A user's own forward is kept where it fits the program, which then has the stage's own inputs and outputs; else
    # the program is called directly, with the user's compiler arguments if the plan has none.
    tag = tag_of(program, position)
    instance = ProgramInstance(source, application, program, versions_of(program))
    user_stage = adopted_stage(application)
    arguments = compiler_arguments(settings)
    if user_stage is not None and user_stage.has_forward and _plain(application):
        return user_stage.program_wrapper(config, tag, instance, example_rows, arguments, program.to_host)
    wrapper = ProgramWrapper(config, tag, instance, example_rows, arguments, program.to_host)
    if user_stage is not None and arguments is None:
        wrapper.compiler_args = user_stage.nxdi_wrapper.compiler_args
    return wrapper


def _plain(application: Application) -> bool:
    """Tells whether the one program has the stage's own inputs and outputs, so that a user's forward fits it."""
    program = application.programs[0]
    ends: tuple[ProgramInput | ProgramOutput, ...] = (*program.inputs, *program.outputs)
    return len(application.programs) == 1 and not program.route and not any(end.adapters for end in ends)


def _config(user_stage: AdoptedStage | None, settings: NeuronSettings) -> Any:
    """Returns a config of the application's own; a user's object is copied, never written to."""
    from orchestrator_neuron.nxdi.classes import InferenceConfig, NeuronConfig

    if user_stage is None:
        config = InferenceConfig(
            NeuronConfig(
                tp_degree=settings.tp_degree,
                world_size=settings.world_size,
                logical_nc_config=settings.logical_nc_config,
                torch_dtype=torch.float32,
            )
        )
    else:
        config = copy.deepcopy(user_stage.nxdi_wrapper.config)
    # Ranks and dtypes follow the plan, which `differences` has compared with the user's config.
    neuron = config.neuron_config
    neuron.tp_degree, neuron.world_size = settings.tp_degree, settings.world_size
    neuron.local_ranks_size, neuron.start_rank_id = settings.ranks, settings.start_rank_id
    # Left to itself, NxD Inference would cast everything to bfloat16.
    neuron.torch_dtype = settings.torch_dtype or torch.float32
    neuron.cast_type = "config" if settings.torch_dtype else "as-declared"
    neuron.save_sharded_checkpoint = False
    return config


def _fresh_source(application: Application, settings: NeuronSettings) -> ModuleSource:
    """Returns the function that makes what an application runs anew each time it is traced."""
    user_stage = adopted_stage(application)
    if user_stage is not None:
        config = _config(user_stage, settings)
        return lambda: _of_user(application, user_stage.model_for_bucket(config))

    def make() -> ModuleForBucket:
        module = application_module(application, settings.torch_dtype, settings.checkpoint is not None)
        return lambda _: module

    return make


def _of_user(application: Application, module_at: Callable[[int], torch.nn.Module]) -> ModuleForBucket:
    """The model of a user's wrapper, which every stage of its application runs."""

    def at(bucket: int) -> ApplicationModule:
        module = module_at(bucket)
        return ApplicationModule({stage.name: module for stage in application.stages}, module)

    return at


def adopted_stage(application: Application) -> AdoptedStage | None:
    """Returns the wrapper that a user wrote for NxD Inference, if the stages of an application are of one."""
    wrappers = [stage.wrapper for stage in application.stages]
    return next((wrapper for wrapper in wrappers if isinstance(wrapper, AdoptedStage)), None)


def compiler_arguments(settings: NeuronSettings) -> str | None:
    """Returns the compiler's arguments with the core configuration in them; None: NxD Inference's defaults."""
    if not settings.compiler_args:
        return None
    arguments = settings.compiler_args
    return arguments if "--lnc" in arguments else f"{arguments} --lnc={settings.logical_nc_config}"


@contextlib.contextmanager
def work_folder(folder: Path) -> Iterator[None]:
    """Gives NxD a work folder of its own while something is compiled.

    The variable is read in the constructor of every wrapper and once more by the builder.
    """
    work = folder / "work"
    try:
        with environment_variable(WORK_DIR, f"{work}{os.sep}"):
            yield
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def as_compile_error(application: Application, action: str) -> Iterator[None]:
    """Turns whatever NxD Inference raises into a :class:`CompileError`; its warnings are to its own developers.

    Its block finds no parallel state in the process, as NxD Inference assumes.
    """
    from orchestrator_neuron.nxdi.ranks import no_ranks

    try:
        with warnings.catch_warnings(), no_ranks():
            warnings.filterwarnings("ignore", module=r"neuronx_distributed\b")
            yield
    except OrchestratorError:
        raise
    except Exception as error:
        raise CompileError(
            f"The stage {application.name!r} cannot be {action} by NxD Inference: {type(error).__name__}: {error}",
            stage=application.name,
        ) from error

"""The backend of the device ``nxdi``: programs compiled and run by NxD Inference.

A handle is a ranked value, ``[rank][output]`` lists with one output. Uploads are explicit, once for each rank, so that
a value which two programs read crosses the link once; downloads read rank 0.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

import orchestrator_neuron
from orchestrator.backend import Handle
from orchestrator.errors import CompileError, OrchestratorError, PlanError
from orchestrator.program import Application
from orchestrator.stage import Stage
from orchestrator_neuron.content import application_key
from orchestrator_neuron.family import RankedBackend
from orchestrator_neuron.nxdi import packages
from orchestrator_neuron.nxdi.adopt import CACHE, AdoptedStage
from orchestrator_neuron.nxdi.application import (
    adopted_stage,
    as_compile_error,
    build_programs,
    load_programs,
)
from orchestrator_neuron.nxdi.parts import RankParts
from orchestrator_neuron.nxdi.renamed import accept_renamed_device
from orchestrator_neuron.rank_check import check_ranks
from orchestrator_neuron.ranked import RankedValue

__all__ = ["NxdiBackend"]


class NxdiBackend(RankedBackend):
    """NxD Inference; see the module."""

    family = "nxdi"

    slow_first_run = True

    #: World size of what this process has loaded, and its own ranks; NxD Inference crashes when another follows.
    _loaded_world: ClassVar[tuple[int, int] | None] = None

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(device, options)
        self._forms: dict[str, Stage] = {}

    @classmethod
    def accepts(cls, device: str) -> bool:
        """Tells whether it is ``nxdi``, or ``neuron``, which was its name while there was no TorchNeuron."""
        return super().accepts(device) or device in ("neuron", "neuron:0")

    @classmethod
    def canonical(cls, device: str) -> str:
        """Returns ``nxdi``: there is one device group in a process."""
        return cls.family

    @classmethod
    def remark(cls, device: str) -> str:
        """Returns what ``neuron`` means here."""
        if not device.startswith("neuron"):
            return ""
        return (
            f"The device {device!r} is NxD Inference here ('nxdi'), since TorchNeuron is not installed; where it is, "
            f"the same name means TorchNeuron. Write 'nxdi' for NxD Inference."
        )

    @classmethod
    def platform(cls) -> str:
        """Returns the platform of this machine, as NxD Inference sees it; trn2 where it is not installed."""
        return packages.platform()

    def open(self, budget: int = 0, reserved: int = 0) -> None:
        """Imports NxD Inference and takes the device into use; it warns of versions outside the known range.

        Raises:
            CompileError: The packages or the device are not there, or NxD Inference's CPU mode is on.
        """
        # Cheapest first, and the device last: a missing package is not to be told as a missing device.
        packages.require()
        for note in packages.notes():
            warnings.warn(note, stacklevel=2)
        self._check_mode()
        try:
            torch.zeros(1, device="cpu").to("privateuseone:0")
        except Exception as error:
            raise CompileError(
                f"There is no Neuron device here ({type(error).__name__}: {str(error).splitlines()[0]}); "
                f"'neuron-emulated' runs the same plan without one.",
                device=self.device,
            ) from error

    def foldable(self, stage: Stage) -> bool:
        """Tells whether it is not a user's whole application, which compiles itself."""
        wrapper = stage.wrapper
        return not isinstance(wrapper, AdoptedStage) or wrapper.application is None

    def own_states(self, stage: Stage) -> frozenset[str]:
        """Returns the port of what submodels of a user's application keep on the device; empty: it keeps nothing."""
        wrapper = stage.wrapper
        keeps = isinstance(wrapper, AdoptedStage) and wrapper.keeps_memory
        return frozenset({CACHE}) if keeps else frozenset()

    def needs_model(self, stage: Stage) -> bool:
        """Tells whether weights are drawn, or are in a module: those of a checkpoint go from its files to the ranks."""
        wrapper = stage.wrapper
        if not isinstance(wrapper, AdoptedStage):
            return True
        return wrapper.application is None and self.settings(stage).checkpoint is None

    def can_join(self, one: Stage, other: Stage) -> bool:
        """Tells whether two stages can be of one application; of a user's only those of the same one."""
        users = [
            stage.wrapper.application for stage in (one, other) if isinstance(stage.wrapper, AdoptedStage)
        ]
        if len(users) == 2 and users[0] is not None and users[0] is users[1]:
            return self.settings(one) == self.settings(other)
        wrappers = [stage.wrapper for stage in (one, other) if isinstance(stage.wrapper, AdoptedStage)]
        nxdi_wrappers = {id(wrapper.nxdi_wrapper) for wrapper in wrappers}
        return len(wrappers) in (0, 2) and len(nxdi_wrappers) < 2 and super().can_join(one, other)

    def rank_form(self, stage: Stage) -> Stage:
        """Returns the stage with the model of one rank, where NxD's layers hold parts of weights.

        Raises:
            PlanError: The model cannot be built for the degree of the plan.
        """
        wrapper, settings = stage.wrapper, self.settings(stage)
        if not isinstance(wrapper, AdoptedStage) or not self._parts(stage).is_cut:
            return stage
        form = wrapper.rank_form(settings.tp_degree, settings.world_size)
        if stage.name not in self._forms or self._forms[stage.name].target is not form:
            self._forms[stage.name] = replace(stage, target=form)
        return self._forms[stage.name]

    def sharded(self, stage: Stage) -> Mapping[str, int]:
        """Returns outputs that the model's own layers leave in parts, and those of the option ``sharded``."""
        names = [port.name for port in stage.outputs]
        ports: dict[str, int] = {}
        for key, dim in self._parts(stage).outputs.items():
            place = int(key) if key.isdecimal() else None
            ports[key if place is None else names[place] if place < len(names) else "output"] = dim
        return ports | dict(super().sharded(stage))

    def sharded_inputs(self, stage: Stage) -> Mapping[str, int]:
        """Returns inputs of which the model takes a part on each rank."""
        return {stage.inputs[place].name: dim for place, dim in self._parts(stage).inputs.items()}

    def _parts(self, stage: Stage) -> RankParts:
        """What each rank has a part of, where a stage is a user's wrapper."""
        wrapper, settings = stage.wrapper, self.settings(stage)
        degree, world = settings.tp_degree, settings.world_size
        if not isinstance(wrapper, AdoptedStage) or degree == 1:
            return RankParts()
        try:
            parts = wrapper.parts(degree)
        except OrchestratorError:
            raise
        except Exception as error:
            raise PlanError(
                f"The model of stage {stage.name!r} cannot be built for {degree} ranks ({type(error).__name__}: "
                f"{error}). NxD's layers cut their weights evenly: plan with a tp_degree that divides their sizes, "
                f"options={{'tp_degree': ...}}, or give the layers pad=True.",
                stage=stage.name,
                tp_degree=degree,
            ) from error
        if (parts.inputs or parts.outputs) and not degree == world == settings.ranks:
            raise PlanError(
                f"Stage {stage.name!r} takes or gives parts with tp_degree={degree} in a world of {world} ranks, of "
                f"which {settings.ranks} run in this process: a part would be there twice, or elsewhere. Give it "
                f"tp_degree={world} and all ranks, or gather inside it.",
                stage=stage.name,
            )
        return parts

    def key(self, application: Application) -> str:
        """Returns the content key of an application; see :meth:`CompilingBackend.key`."""
        versions = ("neuron", torch.__version__, orchestrator_neuron.__version__, packages.versions())
        return application_key(application, self.application_settings(application), versions)

    def build(self, application: Application, folder: Path) -> None:
        """Compiles an application into a folder; see :meth:`CompilingBackend.build`."""
        packages.require()
        self._check_mode()
        # Here, not above: applications of several submodels are of NxD's classes.
        from orchestrator_neuron.nxdi.user_application import build_own

        user_stage = adopted_stage(application)
        if user_stage is not None and user_stage.application is not None:
            build_own(application, user_stage, folder)
        else:
            build_programs(application, folder, self.application_settings(application))

    def load_application(self, application: Application, folder: Path) -> Mapping[str, Callable[..., Any]]:
        """Loads an application with its weights; see :meth:`CompilingBackend.load_application`."""
        packages.require()
        accept_renamed_device()
        from orchestrator_neuron.nxdi.user_application import load_own

        self._check_world()
        user_stage = adopted_stage(application)
        if user_stage is not None and user_stage.application is not None:
            programs = load_own(application, user_stage, folder)
        else:
            programs = load_programs(application, folder, self.application_settings(application))
        if self.capabilities.ranks > 1:
            # A user's own forward runs here for the first time.
            with as_compile_error(application, "run"):
                check_ranks(self, application, {name: call.on_all_ranks for name, call in programs.items()})
        return programs

    def _check_mode(self) -> None:
        """Makes sure that NxD Inference compiles for a device, and runs there.

        Raises:
            CompileError: Its CPU mode is on.
        """
        if os.environ.get("NXD_CPU_MODE", "0") == "1":
            raise CompileError(
                "NXD_CPU_MODE=1 is set, NxD Inference's own CPU mode, in which no value stays on a device; unset "
                "it, and plan for 'cpu' or 'neuron-emulated' instead.",
                device=self.device,
            )

    def _check_world(self) -> None:
        settings = self.settings(None)
        world = (settings.world_size, settings.ranks)
        loaded_world = NxdiBackend._loaded_world
        if loaded_world is not None and loaded_world != world:
            raise CompileError(
                f"This process has loaded stages for {_show_world(loaded_world)}, and NxD Inference crashes "
                f"when it loads weights for {_show_world(world)} as well. Plan both with the same world_size, or use a "
                f"process for each.",
                device=self.device,
                world_size=settings.world_size,
            )
        NxdiBackend._loaded_world = world

    def upload(self, value: torch.Tensor) -> RankedValue:
        """Puts a host tensor on every rank, one copy for each."""
        whole = value.contiguous()
        return RankedValue([whole.to(f"privateuseone:{rank}")] for rank in range(self.capabilities.ranks))

    def download(self, handle: Handle) -> torch.Tensor:
        """Brings a value of rank 0 to the host; one that its program brought there is returned as it is."""
        return handle if isinstance(handle, torch.Tensor) else handle[0][0].to("cpu")

    def part(self, handle: Handle, dim: int, start: int, size: int) -> Handle:
        """Takes a chunk: a view along the outermost dim, where it is one block of memory, else over the host."""
        if dim == 0:
            return RankedValue([row[0].narrow(0, start, size)] for row in handle)
        return super().part(handle, dim, start, size)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> RankedValue:
        """Makes a value of zeros."""
        return self.upload(torch.zeros(shape, dtype=dtype, device="cpu"))


def _show_world(world: tuple[int, int]) -> str:
    size, count = world
    return f"{size} ranks" if size == count else f"{count} of {size} ranks"

"""The base of both Neuron device families: their names, capabilities and refusals, and moves over the host.

A value on the device is a *ranked value*: ``[rank][output]`` lists of tensors of device type ``privateuseone``, with
one output. Integers of 64 bits are held in 32, as NxD Inference does; with ``torch_dtype`` floating-point values are
held in that. All stages of a process share one world size, so a family has one device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from orchestrator.backend import Application, Capabilities, CompilingBackend, Handle, Link
from orchestrator.duplicate import owner_of
from orchestrator.errors import PlanError
from orchestrator.specs import PortSpec, TensorSpec, show_spec
from orchestrator.stage import Stage
from orchestrator_neuron.modes import check_scripts, training_notes
from orchestrator_neuron.options import (
    OPTION_TYPES,
    SINGLE_CORE_PLATFORMS,
    NeuronSettings,
    normalize,
    settings_for,
    with_platform,
)
from orchestrator_neuron.wrapper import NeuronWrapper

__all__ = ["LINK", "RankedBackend"]

#: Link and dispatch: github.com/ai-decentralized/Difflet, benchmark/flux_cache/h1b, h1c (commit 035933c4), on
#: trn2.3xlarge with four logical cores. Two weightless programs took 0.46 ms as seen from the host, so 0.23 ms each.
#: The same step on the host, 512 KiB down from one rank and up to four, took 0.27 ms: 2.62 MB / 0.27 ms = 9.7 GB/s.
#: Memory: AWS gives 46 TB/s for the 16 chips of trn2.48xlarge: 2.9 TB/s a chip, for four logical cores.
LINK = Link(
    bytes_per_second=9.7e9,
    dispatch_seconds=0.23e-3,
    memory_bytes_per_second=0.72e12,
    source="Difflet flux_cache h1b, h1c on trn2.3xlarge: 0.46 ms for two small programs, 0.27 ms for 5 x 512 KiB over "
    "the link; AWS: 46 TB/s of memory for 16 chips of 4 logical cores",
)

#: Memory of one logical core of trn2: a chip has 96 GB for eight physical cores (AWS), one or two in a logical one.
CORE_MEMORY = {1: 12_000_000_000, 2: 24_000_000_000}

#: Memory of a core of trn1 and inf2, which has no logical ones: a chip has 32 GB for two (AWS).
SINGLE_CORE_MEMORY = 16_000_000_000

#: Dtypes that a Neuron program computes with.
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


class RankedBackend(CompilingBackend):
    """Base of both families; a subclass names its family.

    Args:
        device: The family's name, alone or with ``:0``.
        options: See :mod:`orchestrator_neuron.options`.
    """

    family: ClassVar[str]
    option_types: ClassVar[Mapping[str, type | tuple[type, ...]]] = OPTION_TYPES
    keeps_states: ClassVar[bool] = True
    code_options: ClassVar[Mapping[str, Any]] = {"hazards": "solve", "compiler_args": ""}

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(device, with_platform(normalize(options or {}), self.platform()))
        whole = settings_for(self.options, "", {})
        self._capabilities = Capabilities(
            ranks=whole.ranks,
            eager=False,
            static_shapes=True,
            output_buffers=1,
            peer_copy=False,
            memory=SINGLE_CORE_MEMORY
            if self.options.get("platform") in SINGLE_CORE_PLATFORMS
            else CORE_MEMORY[whole.logical_nc_config],
            link=LINK,
        )

    @classmethod
    def platform(cls) -> str:
        """Returns the platform that a plan is for where the user names none."""
        return "trn2"

    @classmethod
    def accepts(cls, device: str) -> bool:
        """Tells whether it is the family's name, alone or with ``:0``."""
        return device in (cls.family, f"{cls.family}:0")

    @classmethod
    def canonical(cls, device: str) -> str:
        """Returns the family's name: there is one device group in a process."""
        return device.partition(":")[0]

    @property
    def capabilities(self) -> Capabilities:
        """Ranks by world size; programs with static shapes and one output buffer; no eager compute."""
        return self._capabilities

    def settings(self, stage: Stage | None) -> NeuronSettings:
        """Returns the options in force for a stage; ``None``: for a weightless program.

        A :class:`~orchestrator_neuron.wrapper.NeuronWrapper` has options of its own; those in ``add(config=...)`` go
        first.
        """
        if stage is None:
            return settings_for(self.options, "", {})
        return settings_for(self.options, stage.name, _own_options(stage))

    def application_settings(self, application: Application) -> NeuronSettings:
        """Returns the options in force for all stages of an application, which :meth:`can_join` has found equal."""
        return self.settings(next(iter(application.stages), None))

    def can_join(self, one: Stage, other: Stage) -> bool:
        """Tells whether two stages that share weights have equal options, and get their weights from one place.

        A checkpoint is of one module: stages of several modules have one each, whatever the modules share.
        """
        if not (self.foldable(one) and self.foldable(other)):
            return False
        first, second = self.settings(one), self.settings(other)
        if replace(first, checkpoint=None) != replace(second, checkpoint=None):
            return False
        if first.checkpoint is None and second.checkpoint is None:
            return True
        paths = isinstance(first.checkpoint, str) and first.checkpoint == second.checkpoint
        same_checkpoint = paths or first.checkpoint is second.checkpoint
        return same_checkpoint and owner_of(one.target) is owner_of(other.target)

    def held_dtype(self, stage: Stage, dtype: torch.dtype) -> torch.dtype:
        """Returns int32 for int64, and the stage's ``torch_dtype`` for a floating-point dtype where it has one."""
        stage_dtype = self.settings(stage).torch_dtype
        if dtype is torch.int64:
            return torch.int32
        return stage_dtype if stage_dtype is not None and dtype.is_floating_point else dtype

    def sharded(self, stage: Stage) -> Mapping[str, int]:
        """Returns the stage's option ``sharded``."""
        return dict(self.settings(stage).sharded)

    def review(
        self, stage: Stage, inputs: Mapping[str, PortSpec], outputs: Mapping[str, PortSpec]
    ) -> Iterable[str]:
        """Refuses a stage that cannot run; see the page of failure modes for the whole list.

        Raises:
            PlanError: A port has a dtype that Neuron does not compute with, an option is wrong, or the stage is a
                script.
        """
        settings = self.settings(stage)
        check_scripts(stage, self.device)
        _check_parts(stage, settings)
        # By the dtype in which the device holds a value: int64 is no offence, since it is held in 32 bits.
        for side, ports in (("input", inputs), ("output", outputs)):
            for port, spec in ports.items():
                if isinstance(spec, TensorSpec) and self.held_dtype(stage, spec.dtype) not in DTYPES:
                    raise PlanError(
                        f"The {side} port {port!r} of stage {stage.name!r} is {show_spec(spec)}, but a Neuron program "
                        f"does not compute with {spec.dtype}. Declare it as float32 (a port with allow_cast=True "
                        f"converts), or run the stage on the host or on 'cpu'.",
                        stage=stage.name,
                        port=port,
                    )
        wrapper = stage.wrapper
        notes = wrapper.neuron_review(stage, settings, inputs) if isinstance(wrapper, NeuronWrapper) else ()
        return (*notes, *self._notes(stage))

    def _notes(self, stage: Stage) -> Iterator[str]:
        """Yields warnings about a stage."""
        yield from training_notes(stage, self.device)
        settings = self.settings(stage)
        if settings.ranks < settings.world_size:
            yield (
                f"{settings.ranks} of {settings.world_size} ranks run in this process. Each process of the group gets "
                f"the same requests in the same order, one at a time: their programs wait for one another."
            )

    def host_rows(self, handle: Handle) -> list[torch.Tensor]:
        """Brings the tensor of each rank to the host."""
        return [row[0].to("cpu") for row in handle]

    def gather(self, handle: Handle, dim: int) -> torch.Tensor:
        """Joins the parts that the ranks hold along a dim, on the host."""
        return torch.cat(self.host_rows(handle), dim)


def _own_options(stage: Stage) -> Mapping[str, Any]:
    """Options of one stage: its wrapper's, and over them those that it was added with."""
    own = stage.wrapper.neuron_options if isinstance(stage.wrapper, NeuronWrapper) else {}
    return {**own, **stage.config}


def _check_parts(stage: Stage, settings: NeuronSettings) -> None:
    """Makes sure that a stage whose weights are cut says what of its outputs each rank has a part of.

    Raises:
        PlanError: It does not: the part of rank 0 would pass for the whole.
    """
    if settings.world_size > 1 and settings.shard_weights and "sharded" not in _own_options(stage):
        raise PlanError(
            f"Stage {stage.name!r} cuts {', '.join(repr(name) for name, _ in settings.shard_weights)} over "
            f"{settings.world_size} ranks (shard_weights), and does not say whether its outputs are parts: rank 0's "
            f"part would pass for the whole. Name the dim along which the parts of an output join, "
            f"config={{'sharded': {{'output': dim}}}}; or, where the stage gathers all of them itself, say "
            f"config={{'sharded': {{}}}}.",
            stage=stage.name,
            option="sharded",
        )

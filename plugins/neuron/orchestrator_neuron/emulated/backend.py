"""The device family ``neuron-emulated``: ordinary host memory with the rules of a Neuron device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

import orchestrator_neuron
from orchestrator.adapter import Adapter
from orchestrator.backend import Handle
from orchestrator.program import Application
from orchestrator.stage import Stage
from orchestrator_neuron.content import application_key
from orchestrator_neuron.emulated.compile import Compiler, compile_application
from orchestrator_neuron.emulated.device import Device, DeviceError
from orchestrator_neuron.emulated.load import load_application
from orchestrator_neuron.emulated.manifest import FORMAT
from orchestrator_neuron.emulated.register import register, unregister
from orchestrator_neuron.emulated.tensor import EmulatedTensor, allocate, copy_tensor, download, upload
from orchestrator_neuron.emulated.trace import warm_up
from orchestrator_neuron.family import RankedBackend
from orchestrator_neuron.options import NeuronSettings
from orchestrator_neuron.rank_check import check_ranks
from orchestrator_neuron.ranked import RankedValue, is_ranked
from orchestrator_neuron.wrapper import NeuronWrapper

__all__ = ["EmulatedBackend"]


def _no_compiler(data: bytes) -> bytes:
    return data


class EmulatedBackend(RankedBackend):
    """An emulated Neuron device; see :mod:`orchestrator_neuron.emulated`.

    Attributes:
        COMPILER: What each exported program goes through; tests and benchmarks put a slow one here.
        compares_ranks: A download makes sure that all ranks hold the same.
    """

    family = "neuron-emulated"
    COMPILER: ClassVar[Compiler] = staticmethod(_no_compiler)
    copies_values: ClassVar[bool] = True
    compares_ranks: bool = True

    _open_device: Device | None = None

    @property
    def open_device(self) -> Device:
        """The device.

        Raises:
            DeviceError: It is not open.
        """
        if self._open_device is None:
            raise DeviceError("The emulated Neuron device is not open.")
        return self._open_device

    def open(self, budget: int = 0, reserved: int = 0) -> None:
        """Takes a fresh device into use."""
        self.close()
        can = self.capabilities
        self._open_device = Device(can.ranks, budget or can.memory, can.link, reserved)
        register(self._open_device)

    def close(self) -> None:
        """Ends the device; its values cannot be read any more."""
        if self._open_device is not None:
            unregister(self._open_device)
            self._open_device.close()
            self._open_device = None

    def begin_counting(self) -> None:
        """Starts counting from zero: weights, warm-up and staged constants are part of no request."""
        self.open_device.begin_counting()

    def measured(self) -> Mapping[str, Any] | None:
        """Returns the counts of the device; see :meth:`~orchestrator_neuron.emulated.device.Device.measured`."""
        return None if self._open_device is None else self._open_device.measured()

    def settings(self, stage: Stage | None) -> NeuronSettings:
        """Returns the options in force; the checkpoint of a wrapper is in its whole model, which runs here."""
        settings = super().settings(stage)
        wrapper = None if stage is None else stage.wrapper
        if stage is None or not isinstance(wrapper, NeuronWrapper) or not wrapper.is_whole:
            return settings
        return settings if "checkpoint" in stage.config else replace(settings, checkpoint=None)

    def sharded(self, stage: Stage) -> Mapping[str, int]:
        """Returns the stage's option ``sharded``, unless each rank runs the whole model here."""
        wrapper = stage.wrapper
        is_whole = isinstance(wrapper, NeuronWrapper) and wrapper.is_whole
        return {} if is_whole and not self.settings(stage).shard_weights else super().sharded(stage)

    def key(self, application: Application) -> str:
        """Returns the content key of an application."""
        versions = ("emulated", FORMAT, torch.__version__, orchestrator_neuron.__version__)
        return application_key(application, self.application_settings(application), versions)

    def warm_up(self) -> None:
        """Imports the modules that compiling needs, once for all the processes that do it."""
        warm_up()

    def build(self, application: Application, folder: Path) -> None:
        """Exports an application into an empty folder.

        Raises:
            CompileError: It cannot be compiled.
        """
        compile_application(application, self.application_settings(application), folder, type(self).COMPILER)

    def load_application(self, application: Application, folder: Path) -> Mapping[str, Callable[..., Any]]:
        """Loads an application with its weights; returns the callable of each program by name.

        Raises:
            CompileError: It does not fit the device, or its weights do not fit.
        """
        settings = self.application_settings(application)
        programs = load_application(self.open_device, application, settings, folder)
        # Ranks run the same code here, so nothing but their weights can make them differ for the same values.
        if settings.shard_weights:
            check_ranks(self, application, programs)
        return programs

    def upload(self, value: torch.Tensor) -> Handle:
        """Copies a host tensor to every rank; each counts."""
        device = self.open_device
        return RankedValue([upload(device, rank, value)] for rank in range(device.ranks))

    def download(self, handle: Handle) -> torch.Tensor:
        """Copies a value of rank 0 to the host; counts once.

        Raises:
            DeviceError: The ranks hold different values, so that one of them is not the whole.
        """
        rows = self._rows(handle)
        value = download(rows[0])
        if self.compares_ranks:
            for rank, other in enumerate(rows[1:], 1):
                if not _same_bits(value, other.payload):
                    raise DeviceError(
                        f"A value of {list(value.shape)} differs between rank 0 and rank {rank}, and reading "
                        f"rank 0 alone would lose the rest. If each holds a part, declare the dim along which they "
                        f"join, config={{'sharded': {{'output': dim}}}}, or gather it inside the stage. If the stage "
                        f"draws random numbers, each rank draws its own: draw on the host, and hand them in."
                    )
        return value

    def host_rows(self, handle: Handle) -> list[torch.Tensor]:
        """Copies the tensor of each rank to the host; each counts."""
        return [download(tensor) for tensor in self._rows(handle)]

    def copy(self, handle: Handle, device: str) -> Handle:
        """Makes a copy with memory of its own, over the host; each rank's moves count."""
        return RankedValue(
            [upload(self.open_device, rank, value)] for rank, value in enumerate(self.host_rows(handle))
        )

    def adapt(self, adapter: Adapter) -> Callable[[Handle, Mapping[str, int]], Handle]:
        """Returns the function of an adapter that no program does: a copy on the device, all else over the host."""
        if adapter.kind != "clone":
            return super().adapt(adapter)
        return lambda handle, _sizes: RankedValue([copy_tensor(tensor)] for tensor in self._rows(handle))

    def part(self, handle: Handle, dim: int, start: int, size: int) -> Handle:
        """Returns a view."""
        return RankedValue([tensor.narrow(dim, start, size)] for tensor in self._rows(handle))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Handle:
        """Takes memory; nothing crosses the link."""
        device = self.open_device
        return RankedValue([allocate(device, rank, shape, dtype, "A value")] for rank in range(device.ranks))

    def _rows(self, handle: Handle) -> list[EmulatedTensor]:
        """The tensor of each rank."""
        device = self.open_device
        if not is_ranked(handle):
            raise DeviceError(f"A {type(handle).__name__} is no ranked value of this device.")
        rows = [row[0] for row in handle]
        if len(rows) != device.ranks:
            raise DeviceError(
                f"A value of {len(rows)} ranks is not of this device, which has {device.ranks}."
            )
        for tensor in rows:
            if not isinstance(tensor, EmulatedTensor) or tensor.block.device is not device:
                raise DeviceError("A value is on another device, or of a session that was closed.")
        return rows


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compares bit by bit, so that NaN equals NaN."""
    if torch.equal(first, second):
        return True
    one, other = (value.contiguous().reshape(-1).view(torch.uint8) for value in (first, second))
    return torch.equal(one, other)

"""A loaded application: weights on every rank, a router by exact shapes, one output buffer for each entry.

A program runs once on each rank, on that rank's tensors and weights. What it gives is copied into its output buffer,
and the handles it returns are that buffer: when it runs again at the same shapes, what earlier handles show has
changed. Handles that a program was given from its own buffer have no defined content while it runs; here the result is
poisoned, so that nobody takes it for right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from orchestrator.errors import CompileError
from orchestrator.program import Program
from orchestrator_neuron.emulated.device import Block, Device, DeviceError, poison
from orchestrator_neuron.emulated.graph_file import StoredGraph, load
from orchestrator_neuron.emulated.manifest import Entry, Form, show_shapes
from orchestrator_neuron.emulated.tensor import EmulatedTensor, upload
from orchestrator_neuron.isolation import default_torch_state
from orchestrator_neuron.module import PREFIX
from orchestrator_neuron.ranked import RankedValue, is_ranked, split_outputs

__all__ = ["LoadedEntry", "LoadedProgram"]

Weights = Sequence[dict[str, EmulatedTensor]]


class LoadedEntry:
    """One program at one shape, on all ranks.

    Args:
        device: The device.
        application: Name of its application, for messages.
        entry: What it takes and gives.
        file: The exported program.
        weights: For each rank, weights by name.

    Raises:
        CompileError: The file is damaged, or keeps state.
    """

    def __init__(self, device: Device, application: str, entry: Entry, file: Path, weights: Weights) -> None:
        self.entry = entry
        self._what = f"program {entry.program!r} of {application!r}"
        stored = self._read(file, weights[0])
        self._run: Callable[..., Any] = stored.run
        self._fixed = [self._given(stored, weights[rank]) for rank in range(device.ranks)]
        # The graph is handed payloads; these keep the memory that they are in taken.
        self._held = (weights, [self._constants(device, rank) for rank in range(device.ranks)])
        self._dtypes = tuple(form.dtype for form in entry.inputs)
        self._buffers = [
            _buffer(device, rank, entry.outputs, f"The {self._what}") for rank in range(device.ranks)
        ]
        self._blocks = [row[0].block if row else None for row in self._buffers]
        self._warm_up(file)

    def _read(self, file: Path, weights: Mapping[str, EmulatedTensor]) -> StoredGraph:
        try:
            stored = load(file.read_bytes())
        except Exception as error:
            raise self._damaged(file, f"{type(error).__name__}: {error}") from error
        inputs = sum(kind == "input" for kind, _ in stored.takes)
        held = sum(constant.nbytes for constant in stored.constants.values())
        if (inputs, stored.outputs, held) != (
            len(self.entry.inputs),
            len(self.entry.outputs),
            self.entry.constant_bytes,
        ):
            raise self._damaged(file, "it is not what the manifest says")
        strange = [
            name
            for kind, name in stored.takes
            if kind == "weight" and name.removeprefix(PREFIX) not in weights
        ]
        if strange:
            raise self._damaged(file, f"the stage has no weight {strange[0]!r}")
        return stored

    def _damaged(self, file: Path, why: str) -> CompileError:
        return CompileError(f"The {self._what} cannot be read from {str(file)!r} ({why}); compile it again.")

    def _given(self, stored: StoredGraph, weights: dict[str, EmulatedTensor]) -> list[torch.Tensor]:
        """What the program's graph takes before its inputs, on one rank: weights and constants."""
        given: list[torch.Tensor] = []
        for kind, name in stored.takes:
            if kind == "weight":
                given.append(weights[name.removeprefix(PREFIX)].payload)
            elif kind == "constant":
                given.append(stored.constants[name])
        return given

    def _constants(self, device: Device, rank: int) -> Block:
        return device.allocate(rank, self.entry.constant_bytes, f"Constants of the {self._what}", held=True)

    def run(self, rank: int, tensors: Sequence[EmulatedTensor]) -> None:
        """Runs on one rank; what it gives is in :meth:`outputs` then."""
        payloads = [tensor.payload.contiguous() for tensor in tensors]
        results = self._run(*self._fixed[rank], *payloads)
        block = self._blocks[rank]
        own = block is not None and any(tensor.block is block for tensor in tensors)
        for buffer, result in zip(self._buffers[rank], results, strict=True):
            if own:
                _spoil(buffer.payload, result)
            else:
                buffer.payload.copy_(result)

    def outputs(self) -> tuple[RankedValue, ...]:
        """Returns a handle for each output; the content is the buffer's."""
        return split_outputs(self._buffers)

    def check(self, device: Device, handles: Sequence[RankedValue]) -> None:
        """Makes sure that a program gets what it was compiled for; shapes have been looked at.

        Raises:
            DeviceError: A dtype differs, or a tensor is on another device or rank.
        """
        for index, (handle, dtype) in enumerate(zip(handles, self._dtypes, strict=False)):
            for rank, row in enumerate(handle):
                tensor = row[0]
                if tensor.dtype != dtype:
                    raise DeviceError(
                        f"The {self._what} takes {self.entry.inputs[index]} as its input {index}, but got {tensor!r}; "
                        f"convert it inside a stage, or on the host."
                    )
                if not isinstance(tensor, EmulatedTensor) or tensor.block.rank != rank:
                    raise DeviceError(
                        f"Row {rank} of input {index} of the {self._what} is {tensor!r}, of another rank."
                    )
                if tensor.block.device is not device:
                    raise DeviceError(
                        f"Input {index} of the {self._what} is on another device, or of a closed session."
                    )

    def _warm_up(self, file: Path) -> None:
        """Runs once on zeros, as loading on the device does; leaves poisoned buffers, and finds out about state.

        Raises:
            CompileError: It keeps state, or is not what was compiled.
        """
        inputs = [torch.zeros(form.shape, dtype=form.dtype, device="cpu") for form in self.entry.inputs]
        given = [*self._fixed[0], *inputs]
        before = [tensor._version for tensor in given]
        try:
            with default_torch_state():
                results = self._run(*given)
        except (RuntimeError, IndexError):
            return  # zeros may be no legal input, as NxD Inference takes into account too
        except Exception as error:
            raise self._damaged(file, f"{type(error).__name__} when it runs: {error}") from error
        if [Form.of(result) for result in results] != list(self.entry.outputs):
            raise self._damaged(file, "it gives other shapes or dtypes than the manifest says")
        if before != [tensor._version for tensor in given]:
            raise CompileError(
                f"The {self._what} writes into a weight, a buffer or an input. A program keeps no state: what it "
                f"writes is lost. Hand state over as an output, e.g. as the carry of a loop."
            )


class LoadedProgram:
    """The callable of one program: ranked values in, a tuple of ranked values out.

    Args:
        device: The device.
        application: Name of its application, for messages.
        program: The program.
        entries: Its entries.
        route: The staged input that tells it from an equal program, if it has one.
    """

    def __init__(
        self,
        device: Device,
        application: str,
        program: Program,
        entries: Sequence[LoadedEntry],
        route: RankedValue | None,
    ) -> None:
        self._device = device
        self._what = f"program {program.name!r} of {application!r}"
        self._ports = tuple(item.port for item in program.tensors)
        self._entries = {entry.entry.key: entry for entry in entries}
        self._route = () if route is None else (route,)
        self._default = torch.get_default_dtype()

    def __call__(self, *handles: RankedValue) -> tuple[RankedValue, ...]:
        """Runs the program on all ranks.

        Raises:
            DeviceError: It was not compiled for these inputs, or they are not on this device.
        """
        device = self._device
        device.check()
        if torch.get_default_dtype() is not self._default:
            self._refuse_default()
        for index, handle in enumerate(handles):
            if type(handle) is not RankedValue or len(handle) != device.ranks:
                self._refuse(index, handle)
        given = (*handles, *self._route)
        entry = self._entries.get(tuple(handle.shape for handle in given))
        if entry is None:
            self._missed(given)
        entry.check(device, given)
        if (
            torch.is_autocast_enabled("cpu")
            or torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
            or torch._C._len_torch_function_stack()
        ):
            with default_torch_state():
                self._on_all_ranks(entry, given)
        else:
            self._on_all_ranks(entry, given)
        device.count_dispatch()
        return entry.outputs()

    def _on_all_ranks(self, entry: LoadedEntry, given: Sequence[RankedValue]) -> None:
        for rank in range(self._device.ranks):
            entry.run(rank, [handle[rank][0] for handle in given])  # type: ignore[misc]

    def _refuse_default(self) -> NoReturn:
        """A graph names no dtype where an operation takes the default one, such as ``torch.ones(3)``."""
        raise DeviceError(
            f"The {self._what} was loaded while torch's default dtype was {self._default}, and now it is "
            f"{torch.get_default_dtype()}. Set it back, with torch.set_default_dtype({self._default}), or plan "
            f"and load again."
        )

    def _refuse(self, index: int, handle: object) -> NoReturn:
        port = repr(self._ports[index]) if index < len(self._ports) else str(index)
        if isinstance(handle, torch.Tensor):
            where = "the host" if handle.is_cpu else str(handle.device)
            what = f"a tensor on {where}; a program takes ranked values: upload it first"
        elif is_ranked(handle) and isinstance(handle, (list, tuple)) and len(handle) != self._device.ranks:
            what = f"a value of {len(handle)} ranks; this device has {self._device.ranks}: one world size"
        else:
            what = f"a {type(handle).__name__}; a program takes ranked values, one tensor for each rank"
        raise DeviceError(f"Input {port} of the {self._what} is {what}.")

    def _missed(self, given: Sequence[RankedValue]) -> NoReturn:
        compiled = "; ".join(show_shapes(key) for key in self._entries)
        asked = show_shapes(value.shape for value in given)
        raise DeviceError(
            f"The {self._what} was not compiled for inputs of the shapes {asked}, but for {compiled}. "
            f"Its shapes are fixed: pad or cut to one of them, or plan with another bucket."
        )


def _buffer(device: Device, rank: int, forms: Sequence[Form], what: str) -> list[EmulatedTensor]:
    """The output buffer of an entry on one rank: a tensor for each output, in one block."""
    if not forms:
        return []
    block = device.allocate(rank, sum(form.nbytes for form in forms), what, held=True)
    row = []
    for form in forms:
        with torch.inference_mode(False):
            payload = torch.empty(form.shape, dtype=form.dtype, device="cpu")
            poison(payload)
            row.append(EmulatedTensor(payload, block))
    return row


def _spoil(buffer: torch.Tensor, result: torch.Tensor) -> None:
    """Fills a buffer with what is surely not the result."""
    if buffer.dtype is torch.bool:
        buffer.copy_(~result)
    else:
        poison(buffer)


def stage_route(device: Device, program: Program) -> RankedValue | None:
    """Puts the routing input of a program on the device; it is part of no request."""
    if not program.route:
        return None
    zeros = torch.zeros(program.route, dtype=torch.int32, device="cpu")
    return RankedValue(
        [upload(device, rank, zeros, "A routing input", held=True)] for rank in range(device.ranks)
    )

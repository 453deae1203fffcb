"""A loaded application: weights on every rank, a router by exact shapes, one output buffer for each version.

A program runs once on each rank, on that rank's tensors and weights. Its result is copied into its output buffer, and
the handles it returns are that buffer: when it runs again at the same shapes, earlier handles show the new result. A
handle out of a program's own buffer has no defined content while that program runs; here the result is poisoned, so
that nobody takes it for right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from orchestrator.errors import CompileError
from orchestrator.program import Program, ProgramState
from orchestrator_neuron.emulated.device import Device, DeviceError, MemoryBlock, poison
from orchestrator_neuron.emulated.graph_file import StoredGraph, load
from orchestrator_neuron.emulated.in_place import write_states
from orchestrator_neuron.emulated.manifest import CompiledVersion, TensorMeta, show_shapes
from orchestrator_neuron.emulated.tensor import EmulatedTensor, upload
from orchestrator_neuron.isolation import default_torch_state
from orchestrator_neuron.module import PREFIX
from orchestrator_neuron.ranked import RankedValue, is_ranked, split_outputs

__all__ = ["LoadedProgram", "LoadedState", "LoadedVersion"]

Weights = Sequence[dict[str, EmulatedTensor]]


class LoadedVersion:
    """One program at one shape, on all ranks.

    Args:
        device: The device.
        application: Name of its application, for messages.
        version: Its inputs and outputs.
        file: The exported program.
        weights: For each rank, weights by name.
        states: The states of the application, in its order.

    Raises:
        CompileError: The file is damaged, or keeps state of its own.
    """

    def __init__(
        self,
        device: Device,
        application: str,
        version: CompiledVersion,
        file: Path,
        weights: Weights,
        states: Sequence[LoadedState] = (),
    ) -> None:
        self._states = tuple(states)
        self.signature = version
        self._what = f"program {version.program!r} of {application!r}"
        # Everything that may be refused comes first: no memory is taken for a file that is damaged.
        graph = self._read(file, weights[0])
        write_states(graph.module, self._state_results(graph))
        self._run: Callable[..., Any] = graph.module.forward
        self._leading = [self._leading_arguments(graph, weights[rank], rank) for rank in range(device.ranks)]
        # The graph runs on payloads, which do not own their memory: the blocks live as long as this object.
        self._memory = (weights, [self._constants(device, rank) for rank in range(device.ranks)])
        self._dtypes = tuple(meta.dtype for meta in version.inputs)
        self._buffers = [
            _buffer(device, rank, version.outputs, f"The {self._what}") for rank in range(device.ranks)
        ]
        self._blocks = [row[0].block if row else None for row in self._buffers]
        # Last: with weights and constants in place, a graph that does something else is refused before any request.
        self._warm_up(file)

    def _read(self, file: Path, weights: Mapping[str, EmulatedTensor]) -> StoredGraph:
        """Reads the graph of a file, which is somebody's word.

        Raises:
            CompileError: It cannot be read, or is not the one that the manifest describes.
        """
        try:
            graph = load(file.read_bytes())
        except Exception as error:
            raise self._damage_error(file, f"{type(error).__name__}: {error}") from error
        # Memory was weighed by the manifest, so the file must take no more than that.
        inputs = sum(kind == "input" for kind, _ in graph.takes)
        constant_bytes = sum(constant.nbytes for constant in graph.constants.values())
        if (inputs, graph.outputs, constant_bytes) != (
            len(self.signature.inputs),
            len(self.signature.outputs) + len(self._states),
            self.signature.constant_bytes,
        ):
            raise self._damage_error(file, "it is not what the manifest says")
        # A name that the stage lacks would fail at the first request only.
        strange = [
            name
            for kind, name in graph.takes
            if kind == "weight"
            and name.removeprefix(PREFIX) not in weights
            and name not in self._state_names()
        ]
        if strange:
            raise self._damage_error(file, f"the stage has no weight {strange[0]!r}")
        return graph

    def _damage_error(self, file: Path, why: str) -> CompileError:
        return CompileError(f"The {self._what} cannot be read from {str(file)!r} ({why}); compile it again.")

    def _state_names(self) -> dict[str, LoadedState]:
        """States by the name that a graph takes them by."""
        return {f"states.{number}": state for number, state in enumerate(self._states)}

    def _state_results(self, graph: StoredGraph) -> dict[int, int]:
        """Of each argument of a graph that is a state, which of its results it is afterwards."""
        numbers = {name: number for number, name in enumerate(self._state_names())}
        first = len(self.signature.outputs)
        return {
            place: first + numbers[name]
            for place, (kind, name) in enumerate(graph.takes)
            if kind == "weight" and name in numbers
        }

    def _leading_arguments(
        self, graph: StoredGraph, weights: dict[str, EmulatedTensor], rank: int
    ) -> list[torch.Tensor]:
        """Returns the weights, states and constants that the graph takes before its inputs, on one rank."""
        arguments: list[torch.Tensor] = []
        states = self._state_names()
        for kind, name in graph.takes:
            if kind == "weight" and name in states:
                arguments.append(states[name].tensors[rank].payload)
            elif kind == "weight":
                arguments.append(weights[name.removeprefix(PREFIX)].payload)
            elif kind == "constant":
                arguments.append(graph.constants[name])
        return arguments

    def _constants(self, device: Device, rank: int) -> MemoryBlock:
        what = f"Constants of the {self._what}"
        return device.allocate(rank, self.signature.constant_bytes, what, persistent=True)

    def run(self, rank: int, tensors: Sequence[EmulatedTensor]) -> None:
        """Runs on one rank; afterwards the result is in :meth:`outputs`."""
        payloads = [tensor.payload.contiguous() for tensor in tensors]
        results = self._run(*self._leading[rank], *payloads)
        # A program that reads its own output buffer reads what it is writing: on the device the result is undefined.
        block = self._blocks[rank]
        own = block is not None and any(tensor.block is block for tensor in tensors)
        handed_over = results[: len(self._buffers[rank])]
        for buffer, result in zip(self._buffers[rank], handed_over, strict=True):
            if own:
                _spoil(buffer.payload, result)
            else:
                buffer.payload.copy_(result)
        # Last, since what is handed over may be part of one. What the program has written itself is there already.
        for state, result in zip(self._states, results[len(handed_over) :], strict=True):
            state.tensors[rank].payload.copy_(result)

    def outputs(self) -> tuple[RankedValue, ...]:
        """Returns a handle for each output; the content is the buffer's."""
        return split_outputs(self._buffers)

    def check(self, device: Device, handles: Sequence[RankedValue]) -> None:
        """Makes sure that the arguments of a program have the dtypes, ranks and device that it was compiled for.

        The router has compared their shapes.

        Raises:
            DeviceError: A dtype differs, or a tensor is on another device or rank.
        """
        # On every rank: a value may have been put together by hand, of rows of several.
        for index, (handle, dtype) in enumerate(zip(handles, self._dtypes, strict=False)):
            for rank, row in enumerate(handle):
                tensor = row[0]
                if tensor.dtype != dtype:
                    raise DeviceError(
                        f"The {self._what} takes {self.signature.inputs[index]} as its input {index}, but got "
                        f"{tensor!r}; convert it inside a stage, or on the host."
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
        """Runs once on zeros, as loading on the device does; a write into its arguments is state.

        Raises:
            CompileError: It keeps state, or differs from the manifest.
        """
        inputs = [torch.zeros(meta.shape, dtype=meta.dtype, device="cpu") for meta in self.signature.inputs]
        arguments = [*self._leading[0], *inputs]
        # Torch counts writes into a tensor: a count that has moved is a weight, a constant or an input written to.
        payloads = [state.tensors[0].payload for state in self._states]
        others = [tensor for tensor in arguments if not any(tensor is payload for payload in payloads)]
        before = [tensor._version for tensor in others]
        try:
            with default_torch_state():
                results = self._run(*arguments)
        except (RuntimeError, IndexError):
            return  # zeros may be no legal input, as NxD Inference takes into account too
        except Exception as error:
            raise self._damage_error(file, f"{type(error).__name__} when it runs: {error}") from error
        finally:
            for payload in payloads:
                poison(payload)
        states = [TensorMeta.of(payload) for payload in payloads]
        if [TensorMeta.of(result) for result in results] != [*self.signature.outputs, *states]:
            raise self._damage_error(file, "it gives other shapes or dtypes than the manifest says")
        if before != [tensor._version for tensor in others]:
            raise CompileError(
                f"The {self._what} writes into a weight, a buffer or an input. A program keeps no state: what it "
                f"writes is lost. Hand state over as an output, e.g. as the carry of a loop."
            )


class LoadedState:
    """Memory of an application on every rank, without content until a program writes it.

    Attributes:
        name: Its name in the plan.
        tensors: Of each rank.
        is_written: A program has written it since it was loaded.
    """

    def __init__(self, device: Device, application: str, state: ProgramState) -> None:
        self.name = state.name
        meta, what = (
            TensorMeta(state.spec.shape({}), state.spec.dtype),
            f"The state {state.name!r} of {application!r}",
        )
        self.tensors = [_buffer(device, rank, [meta], what)[0] for rank in range(device.ranks)]
        self.is_written = False


class LoadedProgram:
    """The callable of one program: ranked values in, a tuple of ranked values out.

    Args:
        device: The device.
        application: Name of its application, for messages.
        program: The program.
        versions: Its versions.
        route: The staged input that tells it from an equal program, if it has one.
        states: The states of its application.
    """

    def __init__(
        self,
        device: Device,
        application: str,
        program: Program,
        versions: Sequence[LoadedVersion],
        route: RankedValue | None,
        states: Sequence[LoadedState] = (),
    ) -> None:
        self._reads = [state for state in states if state.name in {item.state for item in program.inputs}]
        self._writes = [state for state in states if state.name in {item.state for item in program.outputs}]
        self._device = device
        self._what = f"program {program.name!r} of {application!r}"
        self._ports = tuple(item.port for item in program.tensors)
        self._versions = {version.signature.key: version for version in versions}
        self._route = () if route is None else (route,)
        self._default = torch.get_default_dtype()

    def __call__(self, *handles: RankedValue) -> tuple[RankedValue, ...]:
        """Runs the program on all ranks, in torch's default state; a request pays for it only where it differs.

        Raises:
            DeviceError: It was not compiled for these inputs, or they are not on this device.
        """
        device = self._device
        device.check()
        if torch.get_default_dtype() is not self._default:
            self._refuse_default()
        # 1. What is handed over is of this device ...
        for index, handle in enumerate(handles):
            if type(handle) is not RankedValue or len(handle) != device.ranks:
                self._refuse(index, handle)
        arguments = (*handles, *self._route)
        # 2. ... and has the shapes of a version, by which alone the router goes, the route last.
        version = self._versions.get(tuple(handle.shape for handle in arguments))
        if version is None:
            self._refuse_shapes(arguments)
        version.check(device, arguments)
        for state in self._reads:
            if not state.is_written:
                self._refuse_state(state)
        # 3. Sessions run under no_grad and outside of any mode, so the guard is entered for strangers only.
        if (
            torch.is_autocast_enabled("cpu")
            or torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
            or torch._C._len_torch_function_stack()
        ):
            with default_torch_state():
                self._on_all_ranks(version, arguments)
        else:
            self._on_all_ranks(version, arguments)
        for state in self._writes:
            state.is_written = True
        # 4. One program start for all ranks, counted once its results are there.
        device.count_dispatch()
        return version.outputs()

    def _on_all_ranks(self, version: LoadedVersion, arguments: Sequence[RankedValue]) -> None:
        with self._device.core:
            for rank in range(self._device.ranks):
                version.run(rank, [handle[rank][0] for handle in arguments])  # type: ignore[misc]

    def _refuse_state(self, state: LoadedState) -> NoReturn:
        raise DeviceError(
            f"The {self._what} reads the state {state.name!r}, which no program has written since it was loaded: its "
            f"content is undefined. Run the program first that begins it."
        )

    def _refuse_default(self) -> NoReturn:
        """Refuses: a graph names no dtype where an operation takes the default one, such as ``torch.ones(3)``."""
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

    def _refuse_shapes(self, arguments: Sequence[RankedValue]) -> NoReturn:
        choices = "; ".join(show_shapes(key) for key in self._versions)
        shapes = show_shapes(value.shape for value in arguments)
        raise DeviceError(
            f"The {self._what} was not compiled for inputs of the shapes {shapes}, but for {choices}. "
            f"Its shapes are fixed: pad or cut to one of them, or plan with another bucket."
        )


def _buffer(device: Device, rank: int, metas: Sequence[TensorMeta], what: str) -> list[EmulatedTensor]:
    """Returns the output buffer of a version on one rank: a tensor for each output, in one block."""
    if not metas:
        return []
    block = device.allocate(rank, sum(meta.nbytes for meta in metas), what, persistent=True)
    row = []
    for meta in metas:
        with torch.inference_mode(False):
            payload = torch.empty(meta.shape, dtype=meta.dtype, device="cpu")
            poison(payload)
            row.append(EmulatedTensor(payload, block))
    return row


def _spoil(buffer: torch.Tensor, result: torch.Tensor) -> None:
    """Fills a buffer with values that are surely not the result."""
    if buffer.dtype is torch.bool:
        buffer.copy_(~result)
    else:
        poison(buffer)


def stage_route(device: Device, program: Program) -> RankedValue | None:
    """Puts the routing input of a program on the device; it belongs to no request."""
    if not program.route:
        return None
    zeros = torch.zeros(program.route, dtype=torch.int32, device="cpu")
    return RankedValue(
        [upload(device, rank, zeros, "A routing input", persistent=True)] for rank in range(device.ranks)
    )

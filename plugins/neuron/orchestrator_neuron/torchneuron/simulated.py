"""A simulated TorchNeuron device: torch's device type ``neuron`` in host memory, in this process.

:func:`install` sets up torch's spare device type under that name, with kernels that compute on the processor, and the
backend ``neuron`` of ``torch.compile``. Both obey what AWS documents of the real one: a graph is compiled for one shape
and refuses a second, dynamic sizes are refused, an operation without a kernel runs on the host with its tensors copied
both ways, and each core is a device of its own. All of it is counted.

A process has one device of that type, for good: torch cannot rename it back. So install it where nothing else of
Neuron runs, such as a test's own process.

A tensor is an ordinary one of torch whose memory is host memory. It changes sides by DLPack, which has a device type
for extensions: the record of the memory is the same, only the device in it is another.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from orchestrator_neuron.torchneuron.installation import DEVICE

__all__ = ["Board", "install"]

#: The variable that names the folder of TorchNeuron's own cache of compiled programs (AWS, Neuron 2.33).
CACHE = "TORCH_NEURONX_NEFF_CACHE_DIR"

#: Device types of DLPack.
_DL_CPU, _DL_EXTENSION = 1, 12

aten = torch.ops.aten

#: Copies between the two sides: each is a crossing by itself.
_COPIES = ("aten::_copy_from", "aten::_copy_from_and_resize")


class _DLTensor(ctypes.Structure):
    """The head of DLPack's record of a tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
    )


class Board:
    """The simulated cores, and what was counted of them.

    Args:
        cores: Logical cores.
        missing: Operations without a kernel, e.g. ``aten::cumsum``, all overloads of each.
        memory: Bytes of each core.

    Attributes:
        cache: Folder of compiled graphs, as :data:`CACHE` names it; None: they are forgotten with the process.
        compiles: Graphs that were compiled, each with the shapes of its inputs.
        cached: How many graphs were in the folder already.
        signatures: Operations that ran one by one, with the shapes and dtypes they ran at: each is compiled once.
        uploads, upload_bytes, downloads, download_bytes: Tensors over the link, those of fallbacks included.
        fallbacks: How often each operation without a kernel ran, by name.
    """

    def __init__(self, cores: int, missing: Iterable[str], memory: int) -> None:
        self.cores = cores
        self.missing = frozenset(missing)
        self.memory = memory
        self.cache = Path(folder) if (folder := os.environ.get(CACHE)) else None
        self.cached = 0
        self.compiles: list[tuple[tuple[int, ...], ...]] = []
        self.signatures: set[tuple[Any, ...]] = set()
        self.fallbacks: Counter[str] = Counter()
        self.reset()

    def reset(self) -> None:
        """Sets the counts of the link, and of fallbacks, to zero; what was compiled stays."""
        self.uploads = self.upload_bytes = self.downloads = self.download_bytes = 0
        self.fallbacks.clear()

    # The module ``torch.neuron``, which torch asks for these by name.

    def is_initialized(self) -> bool:
        """Tells torch that there is nothing to be done first."""
        return True

    is_available = is_initialized

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Does nothing: random numbers come from the host."""

    def current_device(self) -> int:
        """Returns the core that ``neuron`` means."""
        return 0

    def device_count(self) -> int:
        """Returns how many cores there are."""
        return self.cores

    def synchronize(self, device: Any = None) -> None:
        """Does nothing: all is done when it is asked for."""

    def get_device_properties(self, device: Any) -> types.SimpleNamespace:
        """Returns name and memory of a core."""
        return types.SimpleNamespace(name="simulated", total_memory=self.memory)

    # The package ``torch_neuronx``.

    def get_fallback_ops(self) -> list[str]:
        """Returns the operations that ran on the host since :meth:`clear_op_tracking`."""
        return list(self.fallbacks.elements())

    def clear_op_tracking(self) -> None:
        """Forgets which operations ran where."""
        self.fallbacks.clear()

    # Kernels.

    def run(self, operation: Any, *args: Any, **keywords: Any) -> Any:
        """Runs an operation that has a kernel."""
        if operation._schema.name in _COPIES:
            return self._copy(*args)
        self._note(operation, args, keywords)
        return _compute(operation, args, keywords)

    def fall_back(self, operation: Any, *args: Any, **keywords: Any) -> Any:
        """Runs an operation that has none: on the host, its tensors down before and its results up after."""
        self.fallbacks[operation._schema.name] += 1
        # A tensor that is handed in for the result has nothing to bring down.
        read_keywords = {name: value for name, value in keywords.items() if not _is_out(operation, name)}
        reads = [value for value in pytree.tree_leaves((args, read_keywords)) if _is_here(value)]
        self.downloads += len(reads)
        self.download_bytes += sum(value.nbytes for value in reads)
        result = _compute(operation, args, keywords)
        gives = [value for value in pytree.tree_leaves(result) if _is_here(value)]
        self.uploads += len(gives)
        self.upload_bytes += sum(value.nbytes for value in gives)
        return result

    def _note(self, operation: Any, args: Any, keywords: Any) -> None:
        leaves = pytree.tree_leaves((args, keywords))
        shapes = tuple((tuple(value.shape), value.dtype) for value in leaves if _is_here(value))
        self.signatures.add((str(operation), shapes))

    def _copy(self, source: torch.Tensor, target: torch.Tensor, *_: Any) -> torch.Tensor:
        if _is_here(target) and not _is_here(source):
            self.uploads += 1
            self.upload_bytes += source.nbytes
        elif _is_here(source) and not _is_here(target):
            self.downloads += 1
            self.download_bytes += source.nbytes
        _to_host(target).copy_(_to_host(source))
        return target

    def compile(self, graph: torch.fx.GraphModule, examples: list[Any], **_: Any) -> Callable[..., Any]:
        """Compiles a graph, as the backend ``neuron`` of ``torch.compile``: for the shapes of its examples alone."""
        leaves = [value for value in examples if isinstance(value, torch.Tensor)]
        shapes = tuple(tuple(value.shape) for value in leaves)
        if not all(isinstance(size, int) for shape in shapes for size in shape):
            raise RuntimeError(f"Dynamic shapes are not supported: {shapes}")
        lacking = sorted({name for name in map(_name_of, graph.graph.nodes) if name in self.missing})
        if lacking:
            raise RuntimeError(f"No lowering for {lacking}")
        self._compile_once(graph, shapes)

        def program(*args: Any) -> Any:
            call_shapes = tuple(tuple(value.shape) for value in args if isinstance(value, torch.Tensor))
            if call_shapes != shapes:
                raise RuntimeError(f"This graph was compiled for {shapes}, and is called with {call_shapes}")
            # One program: what it is made of is compiled with it.
            signatures = set(self.signatures)
            try:
                return graph(*args)
            finally:
                self.signatures = signatures

        return program

    def _compile_once(self, graph: torch.fx.GraphModule, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Counts a graph as compiled, unless the cache has it: by its code and shapes, weights left out."""
        key = hashlib.sha256(f"{graph.code}{shapes}".encode()).hexdigest()
        entry = None if self.cache is None else self.cache / f"{key}.neff"
        if entry is not None and entry.exists():
            self.cached += 1
            return
        self.compiles.append(shapes)
        if entry is not None:
            entry.parent.mkdir(parents=True, exist_ok=True)
            entry.touch()


_boards: list[Board] = []
_libraries: list[torch.library.Library] = []


def install(cores: int = 2, missing: Iterable[str] = (), memory: int = 24_000_000_000) -> Board:
    """Sets the simulated device up in this process, for good.

    Args:
        cores: Logical cores.
        missing: Operations without a kernel, e.g. ``aten::cumsum``: they run on the host.
        memory: Bytes of each core.

    Raises:
        RuntimeError: Torch's spare device type is in use in this process already.
    """
    if _boards or hasattr(torch, torch._C._get_privateuse1_backend_name()):
        raise RuntimeError("The device type is set up in this process already; install it in a new one.")
    board = Board(cores, missing, memory)
    _boards.append(board)
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(
        rename=DEVICE, backend_module=board
    )
    # Whatever has no kernel of its own falls back; torch builds composite operations of others.
    fallback = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    fallback.fallback(board.fall_back, "PrivateUse1")  # type: ignore[no-untyped-call]
    kernels = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name in _kernel_names(board.missing):
        kernels.impl(name.removeprefix("aten::"), _kernel(board, name), "PrivateUse1")  # type: ignore[no-untyped-call]
    # What torch's composite convolution asks of a device that is no other's.
    kernels.impl(
        "convolution_overrideable",
        lambda *args, **keywords: board.run(aten.convolution.default, *args, **keywords),
        "PrivateUse1",
    )  # type: ignore[no-untyped-call]
    _libraries.extend((fallback, kernels))
    package = types.ModuleType("torch_neuronx")
    package.__dict__.update(
        get_fallback_ops=board.get_fallback_ops, clear_op_tracking=board.clear_op_tracking
    )
    sys.modules.setdefault("torch_neuronx", package)
    torch._dynamo.register_backend(functools.partial(board.compile), name=DEVICE)
    return board


def _kernel_names(missing: frozenset[str]) -> list[str]:
    """All operations of torch that a device implements, but for those that are missing."""
    composite = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
    return [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and name.partition(".")[0] not in missing
        and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
        and not any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in composite)
    ] + list(_COPIES)


def _kernel(board: Board, name: str) -> Callable[..., Any]:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")
    return lambda *args, **keywords: board.run(operation, *args, **keywords)


def _compute(operation: Any, args: Any, keywords: Any) -> Any:
    """Runs an operation on the host side of its tensors; what it gives has the device of what it read."""
    sides: list[tuple[torch.Tensor, torch.Tensor]] = []
    index = 0

    def lower(value: Any) -> Any:
        nonlocal index
        if _is_here(value):
            index = value.device.index
            sides.append((_to_host(value), value))
            return sides[-1][0]
        if isinstance(value, torch.device) and value.type == DEVICE:
            index = value.index or 0
            return torch.device("cpu")
        return value

    def raise_(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        same = next((device for host, device in sides if host is value), None)
        return _to_device(value, index) if same is None else same

    lowered_args, lowered_keywords = pytree.tree_map(lower, (args, keywords))
    # A tensor for the result that torch hands in empty is grown here: the host side cannot grow memory of the other.
    empty_results = [
        (name, value)
        for name, value in keywords.items()
        if _is_here(value) and not value.numel() and _is_out(operation, name)
    ]
    for name, value in empty_results:
        lowered_keywords[name] = torch.empty(0, dtype=value.dtype)
    result = operation(*lowered_args, **lowered_keywords)
    for name, value in empty_results:
        value.data = _to_device(lowered_keywords[name], index)
        sides.append((lowered_keywords[name], value))
    return pytree.tree_map(raise_, result)


def _is_out(operation: Any, name: str) -> bool:
    return any(item.name == name and item.is_out for item in operation._schema.arguments)


def _is_here(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == DEVICE


def _to_host(value: torch.Tensor) -> torch.Tensor:
    return _with_device(value, _DL_CPU, 0) if _is_here(value) else value


def _to_device(value: torch.Tensor, index: int) -> torch.Tensor:
    return _with_device(value, _DL_EXTENSION, index)


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def _with_device(value: torch.Tensor, device_type: int, index: int) -> torch.Tensor:
    """The same memory as a tensor of another device."""
    capsule = torch._C._to_dlpack(value.detach())
    record = _DLTensor.from_address(_pointer(capsule, b"dltensor"))
    record.device_type, record.device_id = device_type, index
    tensor: torch.Tensor = torch._C._from_dlpack(capsule)
    return tensor


def _name_of(node: torch.fx.Node) -> str:
    """The name of the operation that a node of a graph calls."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name)
    return f"aten::{getattr(target, '__name__', target)}"

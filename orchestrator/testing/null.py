"""The null device: it allocates nothing, checks every handle, and records every call.

Planner and runner are tested on it anywhere, and it shows an author all that a backend has to do. Stages are not
computed: what they give has the shapes that fake tensors give, and a download is a tensor of zeros without memory of
its own. With the option ``compute`` a handle hides a CPU tensor and stages really run, so that results can be compared
with other devices' while the runner still cannot look inside.

Handles are not reference-counted: the runner frees each one by ``free``. Using one after that, freeing it twice, or
giving it to another device is a :class:`~orchestrator.testing.HandleError`;
:meth:`~orchestrator.testing.Record.assert_no_leaks` finds those that nobody freed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from orchestrator.adapter import Adapter, apply
from orchestrator.backend import Capabilities, EagerBackend, Handle, Link
from orchestrator.errors import CompileError
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage
from orchestrator.testing.record import Event, HandleError, Kind, NullHandle, forget, note
from orchestrator.testing.shapes import Shapes

__all__ = ["DEVICES", "NullBackend"]

#: ``null:0`` to ``null:7`` are there; opening another one is a ``CompileError``.
DEVICES = 8

#: Round numbers, so that a person can check a cost in the head: one microsecond for each 1,000 bytes.
_ROUND_LINK = Link(1e9, 1e-5, "invented for tests: 1 GB/s, 10 microseconds to start a program")


class NullBackend(EagerBackend):
    """A device family for tests: ``null`` (means ``null:0``) to ``null:7``.

    Options, all but the first to vary the capabilities that the planner sees:

    - ``compute``: handles hide CPU tensors and stages really run;
    - ``ranks``, ``static_shapes``, ``output_buffers``, ``eager``, ``peer_copy``: as in
      :class:`~orchestrator.backend.Capabilities`. With ``static_shapes`` a stage refuses a shape that it was not
      compiled for. The outputs of a program stay valid whatever ``output_buffers`` says;
    - ``deferred``: a download holds rubbish until ``synchronize`` (with ``compute``).
    """

    option_types: ClassVar[Mapping[str, type]] = {
        "compute": bool,
        "ranks": int,
        "static_shapes": bool,
        "output_buffers": int,
        "eager": bool,
        "peer_copy": bool,
        "deferred": bool,
    }

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(device, options)
        capability_options = {name: value for name, value in self.options.items() if name != "compute"}
        self._compute = bool(self.options.get("compute", False))
        self._capabilities = Capabilities(**{"refcounted": False, "link": _ROUND_LINK, **capability_options})
        self._live: dict[int, NullHandle] = {}
        self._pending = threading.local()

    @classmethod
    def accepts(cls, device: str) -> bool:
        """Tells whether it is ``null``, or ``null:`` and a number."""
        family, mark, index = device.partition(":")
        return family == "null" and (not mark or (index.isdecimal() and index.isascii()))

    @classmethod
    def canonical(cls, device: str) -> str:
        """Returns ``null:0`` for ``null``."""
        return f"null:{int(device.partition(':')[2] or 0)}"

    @property
    def capabilities(self) -> Capabilities:
        """What the options say; the figures of the link are invented."""
        return self._capabilities

    @property
    def live(self) -> tuple[NullHandle, ...]:
        """Handles of this device that nobody has freed, constants included."""
        return tuple(self._live.values())

    def open(self, budget: int = 0, reserved: int = 0) -> None:
        """Takes the device into use.

        Raises:
            CompileError: It is none of those that are there.
        """
        if int(self.device.partition(":")[2]) >= DEVICES:
            raise CompileError(
                f"The device {self.device!r} is not there: null devices are null:0 to null:{DEVICES - 1}.",
                device=self.device,
            )
        self._note("open")

    def close(self) -> None:
        """Frees all that is alive."""
        for handle in self.live:
            forget(self._live.pop(handle.serial))
        self._note("close")

    def load(self, stage: Stage, sizes: Sequence[Mapping[str, int]] = ()) -> Callable[..., Any]:
        """Returns the callable on handles; with ``static_shapes`` it is compiled for each of the sizes.

        Raises:
            CompileError: The stage cannot be built.
        """
        for _ in sizes:
            self._note("compile", stage.name)
        shapes = Shapes(stage, sizes, self._capabilities.static_shapes)
        try:
            target = stage.module() if self._compute else None
        except Exception as error:
            raise CompileError(
                f"Stage {stage.name!r} cannot be built: {type(error).__name__}: {error}", stage=stage.name
            ) from error
        self._note("load", stage.name)
        ports = {port.name for port in stage.outputs}

        def run(*args: Any, **keyword_arguments: Any) -> Any:
            # 1. Whatever is on a device is alive, and on this one; with static shapes it has a size of the plan.
            reads = [value for value in (*args, *keyword_arguments.values()) if isinstance(value, NullHandle)]
            for handle in reads:
                self._check(handle, f"stage {stage.name!r}")
            shapes.check(args, keyword_arguments)
            # 2. What comes out has the shapes of fake tensors, or is what the stage really gives.
            if target is None:
                result = shapes.outputs(args, keyword_arguments)
            else:
                result = target(
                    *map(_reveal, args), **{name: _reveal(value) for name, value in keyword_arguments.items()}
                )
            # 3. Its tensors become handles in the same form, and the call is noted with what it read and made.
            outputs = _wrap(self._hide, result, ports)
            makes = [outputs] if isinstance(outputs, NullHandle) else list(_parts(outputs))
            self._note("run", stage.name, reads, makes)
            return outputs

        return run

    def upload(self, value: torch.Tensor) -> Handle:
        """Makes a handle; with ``compute`` it hides a copy."""
        handle = self._allocate(value.shape, value.dtype, value.clone() if self._compute else None)
        self._note("upload", makes=[handle], ranks=self._capabilities.ranks)
        return handle

    def download(self, handle: Handle) -> torch.Tensor:
        """Returns zeros that share one element; with ``compute`` a copy of what the handle hides."""
        self._check(handle, "a download")
        self._note("download", reads=[handle])
        if handle._content is None:
            return torch.zeros((), dtype=handle.dtype).expand(handle.shape)
        content: torch.Tensor = handle._content.clone()
        if not self._capabilities.deferred:
            return content
        late = rubbish(handle.shape, handle.dtype)
        self._pending.__dict__.setdefault("downloads", []).append((late, content))
        return late

    def synchronize(self) -> None:
        """Completes the downloads of the calling thread."""
        downloads = self._pending.__dict__.pop("downloads", [])
        with torch.no_grad():
            for late, content in downloads:
                late.copy_(content)
        self._note("synchronize")

    def copy(self, handle: Handle, device: str) -> Handle:
        """Makes a handle here of one that is on another null device."""
        _check_alive(handle, "a copy")
        content = None if handle._content is None else handle._content.clone()
        return self._new_handle("copy", "", [handle], handle.shape, handle.dtype, content)

    def adapt(self, adapter: Adapter) -> Callable[[Handle, Mapping[str, int]], Handle]:
        """Returns a function that makes a new handle each time; what needs no bytes of its own shares them."""

        def run(handle: Handle, sizes: Mapping[str, int]) -> Handle:
            self._check(handle, f"the adapter {adapter}")
            dtype = adapter.dtype or handle.dtype
            shape = handle.shape if adapter.kind == "cast" else TensorSpec(adapter.dims).shape(sizes)
            # A pad only grows and a cut only shrinks, so a handle that is smaller already stays as it is.
            if adapter.kind == "pad":
                _check_pad(adapter, handle, shape)
            else:
                shape = tuple(map(min, shape, handle.shape))
            # Where nothing changes, a real device makes no copy: the new handle shares the bytes, and peaks count once.
            same = (shape, dtype) == (handle.shape, handle.dtype)
            content = None if handle._content is None else apply(adapter, handle._content, sizes)
            return self._new_handle(
                "adapt", adapter.kind, [handle], shape, dtype, content, handle if same else None
            )

        return run

    def join(self, handles: list[Handle], dim: int) -> Handle:
        """Makes a handle as large as all of them."""
        for handle in handles:
            self._check(handle, "a join")
        first = handles[0]
        whole = sum(handle.shape[dim] for handle in handles)
        shape = (*first.shape[:dim], whole, *first.shape[dim + 1 :])
        contents = [handle._content for handle in handles]
        content = torch.cat([item for item in contents if item is not None], dim) if self._compute else None
        return self._new_handle("join", "", handles, shape, first.dtype, content)

    def part(self, handle: Handle, dim: int, start: int, size: int) -> Handle:
        """Makes a handle of a chunk, which shares the bytes of the whole."""
        self._check(handle, "a part")
        if start + size > handle.shape[dim]:
            raise HandleError(f"{handle!r} has no elements {start} to {start + size} in dim {dim}.")
        shape = (*handle.shape[:dim], size, *handle.shape[dim + 1 :])
        content = None if handle._content is None else handle._content.narrow(dim, start, size)
        return self._new_handle("part", "", [handle], shape, handle.dtype, content, handle)

    def select(self, handle: Handle, index: int) -> Handle:
        """Makes a handle of a slice, which shares the bytes of the whole."""
        self._check(handle, "a slice")
        if index >= handle.shape[0]:
            raise HandleError(f"{handle!r} has no slice {index}.")
        content = None if handle._content is None else handle._content[index]
        return self._new_handle("select", "", [handle], handle.shape[1:], handle.dtype, content, handle)

    def stack(self, handles: list[Handle]) -> Handle:
        """Makes a handle of values of one shape along a new dim 0."""
        for handle in handles:
            self._check(handle, "a stack")
        first = handles[0]
        content = torch.stack([handle._content for handle in handles]) if self._compute else None
        return self._new_handle("stack", "", handles, (len(handles), *first.shape), first.dtype, content)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Handle:
        """Makes a handle; with ``compute`` it hides rubbish."""
        return self._new_handle(
            "empty", "", [], shape, dtype, rubbish(shape, dtype) if self._compute else None
        )

    def free(self, handle: Handle) -> None:
        """Frees a handle.

        Raises:
            HandleError: It was freed before, or is of another device.
        """
        self._check(handle, "free")
        self._note("free", reads=[handle])
        forget(self._live.pop(handle.serial))

    def _hide(self, result: torch.Tensor) -> NullHandle:
        return self._allocate(result.shape, result.dtype, result if self._compute else None)

    def _allocate(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        content: torch.Tensor | None,
        base: NullHandle | None = None,
    ) -> NullHandle:
        handle = NullHandle(shape, dtype, self.device, content, base)
        self._live[handle.serial] = handle
        return handle

    def _new_handle(
        self,
        kind: Kind,
        name: str,
        reads: list[NullHandle],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        content: torch.Tensor | None,
        base: NullHandle | None = None,
    ) -> NullHandle:
        handle = self._allocate(shape, dtype, content, base)
        self._note(kind, name, reads, [handle])
        return handle

    def _note(
        self,
        kind: Kind,
        name: str = "",
        reads: list[NullHandle] | None = None,
        makes: list[NullHandle] | None = None,
        ranks: int = 1,
    ) -> None:
        note(Event(kind, self.device, name, tuple(reads or ()), tuple(makes or ()), ranks))

    def _check(self, handle: object, where: str) -> None:
        """Makes sure that a handle is alive and of this device."""
        _check_alive(handle, where)
        if isinstance(handle, NullHandle) and handle.device != self.device:
            raise HandleError(f"{where} on {self.device} was given {handle!r}, which is on another device.")


def _wrap(make: Callable[[torch.Tensor], NullHandle], result: Any, ports: set[str]) -> Any:
    """Wraps a stage's outputs as handles, in the form they have; undeclared parts of a dict are dropped."""
    if isinstance(result, torch.Tensor):
        return make(result)
    if isinstance(result, Mapping):
        present_parts = {name: part for name, part in result.items() if part is not None}
        return {
            name: _wrap(make, part, ports)
            for name, part in present_parts.items()
            if not ports or str(name) in ports
        }
    return tuple(_wrap(make, part, ports) for part in result)


def rubbish(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Makes a tensor that shows when somebody reads it too early: NaN, or the largest number."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full(shape, float("nan"), dtype=dtype)
    return torch.full(shape, True if dtype is torch.bool else torch.iinfo(dtype).max, dtype=dtype)


def _check_alive(handle: object, where: str) -> None:
    if not isinstance(handle, NullHandle):
        raise HandleError(f"{where} was given {type(handle).__name__}, not a handle.")
    if handle.is_freed:
        raise HandleError(f"{where} was given {handle!r}.")


def _check_pad(adapter: Adapter, handle: NullHandle, shape: tuple[int, ...]) -> None:
    if any(map(int.__gt__, handle.shape, shape)) or (adapter.rule is None and handle.shape != shape):
        raise HandleError(f"{adapter} was given {handle!r}, which it cannot bring to {list(shape)}.")


def _reveal(value: Any) -> Any:
    return value._content if isinstance(value, NullHandle) else value


def _parts(outputs: Any) -> Any:
    return outputs.values() if isinstance(outputs, dict) else outputs

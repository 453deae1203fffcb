"""Driving a region: its steps run once, in chunks, or for zero items not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.errors import StageError
from orchestrator.plan.chunks import SizeAssignment, run_chunks
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import HOST, RegionStep
from orchestrator.runner.load.load import Executable
from orchestrator.runner.regions.pending import PendingHandles, chunk_of
from orchestrator.specs import Derived, TensorSpec, dim_names, plain_dims

__all__ = ["make_region"]

Body = Callable[..., "tuple[Any, ...]"]


def make_region(executable: Executable, step: RegionStep, body: Body) -> Callable[..., Any]:
    """Returns the function ``(R, B, *values) -> values`` that runs a region's body.

    Args:
        executable: The loaded plan.
        step: The region.
        body: The generated function of its steps: ``(R, B, *values) -> tuple``.
    """
    return _RegionDriver(executable, step, body)


class _RegionDriver:
    def __init__(self, executable: Executable, step: RegionStep, body: Body) -> None:
        self.executable = executable
        self.step = step
        self.body = body
        by_name = {dim.name: dim for dim in executable.plan.dims}
        self.dims = [by_name[name] for name in step.dims]
        self.reads = [executable.plan.values[index] for index in step.inputs]
        self.gives = [executable.plan.values[index] for index in step.outputs]

    def __call__(self, record: RunRecord, bucket: Mapping[str, int], *values: Any) -> Any:
        real = record.sizes
        whole = SizeAssignment(dict(real), bucket)
        chunks: list[RunRecord] = []
        # No items: the body does not run, since none of its devices takes a chunk of nothing.
        if any(not real[dim.name] for dim in self.dims):
            outputs = tuple(self._empty(value, whole) for value in self.gives)
        else:
            with PendingHandles(self.executable) as pending:
                outputs = run_chunks(
                    self.dims,
                    whole.actual,
                    whole,
                    lambda run: pending.keep(self.gives, self._once(run, record, chunks, values)),
                    lambda pieces, name: self._join(pieces, name, pending),
                )
        # Chunks that decided nothing cost what their sizes foretell: counting finds them without a record.
        if any(chunk.is_decided() for chunk in chunks):
            record.chunks[self.step.outputs] = tuple(chunks)
        return outputs

    def _once(
        self, run: SizeAssignment, record: RunRecord, chunks: list[RunRecord], values: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        pairs = zip(self.reads, values, strict=True)
        handles = [chunk_of(self.executable, value, handle, run) for value, handle in pairs]
        inner = record.inner(run.actual)
        try:
            return self.body(inner, run.bucket, *handles)
        finally:
            # The body only borrows what it reads: chunks are freed here, whole values by the code around the region.
            chunks.append(inner)
            self._update_sizes(inner.sizes, record.sizes)
            for value, chunk, handle in zip(self.reads, handles, values, strict=True):
                if chunk is not handle:
                    self.executable.free(value, chunk)

    def _update_sizes(self, inner: Mapping[str, int], sizes: dict[str, int]) -> None:
        """Hands on the sizes that loops in the body decided."""
        for name, size in inner.items():
            if name not in self.step.dims:
                sizes[name] = size

    def _join(self, pieces: list[tuple[Any, ...]], name: str, pending: PendingHandles) -> tuple[Any, ...]:
        by_value = zip(self.gives, zip(*pieces, strict=True), strict=True)
        return tuple(
            pending.join(value, list(handles), self._axis(value, name)) for value, handles in by_value
        )

    def _axis(self, value: PlannedValue, name: str) -> int:
        dims = plain_dims(value.spec.dims) if isinstance(value.spec, TensorSpec) else ()
        if name not in dims:
            raise self._missing_dim(value, name, "runs in chunks")
        return dims.index(name)

    def _empty(self, value: PlannedValue, whole: SizeAssignment) -> Any:
        zeros = [dim.name for dim in self.dims if not whole.actual[dim.name]]
        if not isinstance(value.spec, TensorSpec) or not set(zeros) & set(value.spec.names):
            raise self._missing_dim(value, zeros[0], "has no items")
        # At its bucket it is read by a region alone, which has the same dims and does not run either.
        if not value.unpadded:
            backend = self.executable.backend_of(value.memory)
            return None if backend.capabilities.refcounted else backend.empty((0,), value.spec.dtype)
        # Sizes that only the body would have decided are not there.
        sizes = whole.actual
        for dim in plain_dims(value.spec.dims):
            if not set(dim_names(dim)) <= set(sizes) or (
                isinstance(dim, Derived) and not dim.is_proven(sizes)
            ):
                raise self._unknown_size(value, dim.text if isinstance(dim, Derived) else str(dim))
        shape = value.spec.shape(sizes)
        if value.memory == HOST:
            return torch.empty(shape, dtype=value.spec.dtype, device="cpu")
        return self.executable.backend_of(value.memory).empty(shape, value.spec.dtype)

    def _unknown_size(self, value: PlannedValue, name: str) -> StageError:
        names = " and ".join(repr(dim.name) for dim in self.dims)
        return StageError(
            f"Dim {names} has no items in this request, so nothing decides the size of {name!r} in {value.origin!r}: "
            f"the stage or loop that would do it does not run. Decide it before {names} is born, or have a host stage "
            f"give at least one item.",
            port=value.origin,
            dim=name,
        )

    def _missing_dim(self, value: PlannedValue, name: str, problem: str) -> StageError:
        return StageError(
            f"Dim {name!r} {problem} in this request, but {value.origin!r} leaves its stages without that dim, so "
            f"there is nothing to give. Let every value that leaves them carry {name!r}.",
            port=value.origin,
            dim=name,
        )

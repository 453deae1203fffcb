"""Driving a region: its steps run once, in chunks, or for zero items not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.adapter import part_of
from orchestrator.errors import StageError
from orchestrator.plan.chunks import Run, run_chunks
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import HOST, Step
from orchestrator.runner.load.load import Executable
from orchestrator.runner.regions.pending import PendingHandles
from orchestrator.specs import Derived, TensorSpec, dim_names, plain_dims

__all__ = ["make_region"]

Body = Callable[..., "tuple[Any, ...]"]


def make_region(programs: Executable, step: Step, body: Body) -> Callable[..., Any]:
    """Returns the function ``(R, B, *values) -> values`` that runs a region's body.

    Args:
        programs: The loaded plan.
        step: The region.
        body: The generated function of its steps: ``(R, B, *values) -> tuple``.
    """
    return _Region(programs, step, body)


class _Region:
    def __init__(self, programs: Executable, step: Step, body: Body) -> None:
        self.programs = programs
        self.step = step
        self.body = body
        by_name = {dim.name: dim for dim in programs.plan.dims}
        self.dims = [by_name[name] for name in step.dims]
        self.reads = [programs.plan.values[index] for index in step.inputs]
        self.gives = [programs.plan.values[index] for index in step.outputs]

    def __call__(self, record: RunRecord, bucket: Mapping[str, int], *values: Any) -> Any:
        real = record.sizes
        whole = Run(dict(real), bucket)
        chunks: list[RunRecord] = []
        held = PendingHandles(self.programs.free)
        if any(not real[dim.name] for dim in self.dims):
            outputs = tuple(self._empty(value, whole) for value in self.gives)
        else:
            with held:
                outputs = run_chunks(
                    self.dims,
                    whole.real,
                    whole,
                    lambda run: held.keep(self.gives, self._once(run, record, chunks, values)),
                    lambda pieces, name: self._join(pieces, name, held),
                )
        if any(chunk.is_decided() for chunk in chunks):
            record.chunks[self.step.outputs] = tuple(chunks)
        return outputs

    def _once(
        self, run: Run, record: RunRecord, chunks: list[RunRecord], values: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        parts = [self._part(value, given, run) for value, given in zip(self.reads, values, strict=True)]
        inner = record.inner(run.real)
        try:
            return self.body(inner, run.bucket, *parts)
        finally:
            chunks.append(inner)
            self._tell(inner.sizes, record.sizes)
            for value, part, given in zip(self.reads, parts, values, strict=True):
                if part is not given:
                    self.programs.free(value, part)

    def _tell(self, inner: Mapping[str, int], sizes: dict[str, int]) -> None:
        """Hands on what loops in the body decided."""
        for name, size in inner.items():
            if name not in self.step.dims:
                sizes[name] = size

    def _part(self, value: PlannedValue, given: Any, run: Run) -> Any:
        """The chunk of a value; the value itself where this run has all of it."""
        if not isinstance(value.spec, TensorSpec):
            return given
        for axis, name in enumerate(plain_dims(value.spec.dims)):
            if name in self.step.dims and given.shape[axis] != run.real[str(name)]:
                given = self._take(value, given, axis, run.start[str(name)], run.real[str(name)])
        return given

    def _take(self, value: PlannedValue, given: Any, axis: int, start: int, size: int) -> Any:
        if value.memory == HOST:
            return part_of(given, axis, start, size)
        return self.programs.backend_of(value.memory).part(given, axis, start, size)

    def _join(self, pieces: list[tuple[Any, ...]], name: str, held: PendingHandles) -> tuple[Any, ...]:
        joined = []
        for value, handles in zip(self.gives, zip(*pieces, strict=True), strict=True):
            axis = self._axis(value, name)
            if value.memory == HOST:
                joined.append(torch.cat(list(handles), axis))
                continue
            whole = self.programs.backend_of(value.memory).join(list(handles), axis)
            joined += held.keep((value,), (whole,))
            for handle in handles:
                held.spend(value, handle)
        return tuple(joined)

    def _axis(self, value: PlannedValue, name: str) -> int:
        dims = plain_dims(value.spec.dims) if isinstance(value.spec, TensorSpec) else ()
        if name not in dims:
            raise self._lacks(value, name, "runs in chunks")
        return dims.index(name)

    def _empty(self, value: PlannedValue, whole: Run) -> Any:
        if not isinstance(value.spec, TensorSpec) or not set(self.step.dims) & set(value.spec.names):
            zero = next(dim.name for dim in self.dims if not whole.real[dim.name])
            raise self._lacks(value, zero, "has no items")
        sizes = whole.sizes(value)
        for dim in plain_dims(value.spec.dims):
            if not set(dim_names(dim)) <= set(sizes) or (
                isinstance(dim, Derived) and not dim.is_proven(sizes)
            ):
                raise self._undecided(value, dim.text if isinstance(dim, Derived) else str(dim))
        shape = value.spec.shape(sizes)
        if value.memory == HOST:
            return torch.empty(shape, dtype=value.spec.dtype, device="cpu")
        return self.programs.backend_of(value.memory).empty(shape, value.spec.dtype)

    def _undecided(self, value: PlannedValue, name: str) -> StageError:
        names = " and ".join(repr(dim.name) for dim in self.dims)
        return StageError(
            f"Dim {names} has no items in this request, so nothing decides the size of {name!r} in {value.origin!r}: "
            f"the stage or loop that would do it does not run. Decide it before {names} is born, or have a host stage "
            f"give at least one item.",
            port=value.origin,
            dim=name,
        )

    def _lacks(self, value: PlannedValue, name: str, what: str) -> StageError:
        return StageError(
            f"Dim {name!r} {what} in this request, but {value.origin!r} leaves its stages without that dim, so there "
            f"is nothing to give. Let every value that leaves them carry {name!r}.",
            port=value.origin,
            dim=name,
        )

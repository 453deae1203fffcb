"""One request in chunks: every chunk runs the same steps, and inputs that are not cut are prepared once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from orchestrator.adapter import part_of
from orchestrator.plan.chunks import Run
from orchestrator.plan.model import HOST
from orchestrator.plan.record import RunRecord
from orchestrator.specs import TensorSpec, plain_dims

if TYPE_CHECKING:
    from orchestrator.runner.lane import Lane

__all__ = ["Chunks"]


class Chunks:
    """The state of one request in chunks; leaving its block frees what the chunks shared.

    Args:
        lane: Where the functions are.
        cut: Dims that need more than one chunk.
        record: Sizes of the whole request.
        values: The request's inputs, in order.
    """

    def __init__(self, lane: Lane, cut: frozenset[str], record: RunRecord, values: tuple[Any, ...]) -> None:
        self._lane = lane
        self._record = record
        self._values = values
        self._prepare, self._main = lane.shared(cut)
        self._forms: dict[tuple[str, tuple[int, ...]], tuple[Any, ...]] = {}
        self._runs: list[Run] = []

    def once(self, run: Run) -> dict[str, Any]:
        """Runs one combination of chunks."""
        given: list[Any] = []
        for (name, spec), value in zip(self._lane.plan.inputs, self._values, strict=True):
            if name in self._prepare:
                given += self._shared(name, spec, value, run)
            else:
                given.append(_part(value, spec, run))
        record, main = self._record.inner(run.real), self._main
        result: dict[str, Any] = (
            main.function(record, dict(run.bucket), *given) if main.sized else main.function(*given)
        )
        self._runs.append(Run(record.sizes, run.bucket, run.start, record))
        return result

    def _shared(self, name: str, spec: Any, value: Any, run: Run) -> tuple[Any, ...]:
        key = (name, run.key(spec.names if isinstance(spec, TensorSpec) else ()))
        if key not in self._forms:
            code = self._prepare[name].code
            part = _part(value, spec, run)
            self._forms[key] = (
                code.function(self._record.inner(run.real), run.bucket, part)
                if code.sized
                else code.function(part)
            )
        return self._forms[key]

    def count(self) -> None:
        """Counts the request, with the sizes its stages decided."""
        key = tuple((run.record.key(), tuple(run.start.items())) for run in self._runs if run.record)
        self._lane.count(key, lambda: self._lane.counter.runs(self._runs))

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, *_: object) -> None:
        programs = self._lane.programs
        freed: set[int] = set()
        for (name, _), handles in self._forms.items():
            for index, handle in zip(self._prepare[name].forms, handles, strict=True):
                memory = programs.plan.values[index].memory
                if (
                    memory == HOST
                    or programs.backend_of(memory).capabilities.refcounted
                    or id(handle) in freed
                ):
                    continue
                freed.add(id(handle))
                programs.backend_of(memory).free(handle)
        self._forms.clear()


def _part(value: Any, spec: Any, run: Run) -> Any:
    """The chunk of an input; the input itself where this run has all of it."""
    if not isinstance(spec, TensorSpec) or not isinstance(value, torch.Tensor):
        return value
    for axis, name in enumerate(plain_dims(spec.dims)):
        if isinstance(name, str) and value.shape[axis] != run.real[name]:
            value = part_of(value, axis, run.start[name], run.real[name])
    return value

"""Driving a map: items are put into batches, bucket by bucket, and what comes out is handed back item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from orchestrator.adapter import pad_to
from orchestrator.errors import StageError
from orchestrator.plan.chunks import SizeAssignment, bucket_for, chunk_sizes
from orchestrator.plan.iterations import batch_run, item_dims
from orchestrator.plan.records import DimPlan
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import MapStep, iter_steps
from orchestrator.runner.load.load import Executable
from orchestrator.specs import TensorSpec, is_dense, plain_dims, show_spec, show_tensor

__all__ = ["body_ends", "make_map"]

Body = Callable[..., "tuple[Any, ...]"]


def body_ends(step: MapStep) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the arguments of the body of a map, and its results."""
    return (*step.arguments, *_common_inputs(step)), step.collects


def _common_inputs(step: MapStep) -> tuple[int, ...]:
    """What all items read: one value may be that and be cut into items as well."""
    lists = {entry.whole for entry in step.slices}
    read = {index for inner in iter_steps(step.body) for index in inner.inputs} | set(step.yields)
    return tuple(index for index in step.inputs if index not in lists or index in read)


def make_map(executable: Executable, step: MapStep, body: Body) -> Callable[..., Any]:
    """Returns the function ``(R, B, *values) -> values`` that runs a map's body for all items.

    Args:
        executable: The loaded plan.
        step: The map.
        body: The generated function of its steps: ``(R, B, *values) -> tuple``.
    """
    return _MapDriver(executable, step, body)


class _MapDriver:
    def __init__(self, executable: Executable, step: MapStep, body: Body) -> None:
        plan = executable.plan
        by_name = {dim.name: dim for dim in plan.dims}
        self.step = step
        self.body = body
        self.dims: list[DimPlan] = [by_name[name] for name in item_dims(plan, step)]
        self.ports = [plan.values[entry.part] for entry in step.slices]
        self.gives = [plan.values[index] for index in step.collects]
        self.results = [plan.values[index] for index in step.outputs]
        self.places = [step.inputs.index(index) for index in _common_inputs(step)]
        self.lists = [step.inputs.index(entry.whole) for entry in step.slices]

    def __call__(self, record: RunRecord, bucket: Mapping[str, int], *values: Any) -> Any:
        outer = [values[at] for at in self.places]
        # All items are checked before the first batch runs.
        lists = [self._items(values[at], port) for at, port in zip(self.lists, self.ports, strict=True)]
        sizes = self._item_sizes(lists)
        results: list[list[Any]] = [[None] * len(lists[0]) for _ in self.gives]
        around, batches = dict(record.sizes), []
        # Each batch has a record of its own: what its stages decide holds for its items alone.
        for key, places in self._batches(sizes):
            batch = (len(places), *key)
            run = batch_run(self.dims, batch, SizeAssignment(around, bucket))
            heads = [
                self._batch(items, port.spec, places, run)
                for items, port in zip(lists, self.ports, strict=True)
            ]
            inner = record.inner(run.actual)
            tensors = self.body(inner, run.bucket, *heads, *outer)
            for result, value, tensor in zip(results, self.gives, tensors, strict=True):
                self._part(result, value.spec, tensor, places, sizes)
            batches.append(inner)
        # Around the map a dim of the items is as large as the largest of them, and the items are counted.
        record.sizes.update(
            {
                dim.name: max((size[at] for size in sizes), default=dim.buckets[-1])
                for at, dim in enumerate(self.dims[1:])
            }
        )
        record.sizes[self.step.items_dim] = len(sizes)
        name = self.step.name
        record.batches[name] = (*record.batches.get(name, ()), *batches)
        return tuple(
            self._result(result, value.spec, record.sizes)
            for result, value in zip(results, self.results, strict=True)
        )

    def _items(self, values: Any, port: Any) -> list[torch.Tensor]:
        items = list(values.unbind()) if isinstance(values, torch.Tensor) else values
        # Items come from a request or a host stage, so nobody looked at them before; sizes of named dims come later.
        for at, item in enumerate(items):
            spec = port.spec
            fits = (
                isinstance(item, torch.Tensor)
                and item.is_cpu
                and item.dtype == spec.dtype
                and item.dim() == len(spec.dims) - 1
                and all(
                    dim == size
                    for dim, size in zip(spec.dims[1:], item.shape, strict=True)
                    if isinstance(dim, int)
                )
            )
            if not fits:
                raise self._item_error(port, at, item, "")
            if not is_dense(item):
                raise self._item_error(
                    port, at, item, " It is sparse or without content; give a dense tensor."
                )
        return items

    def _item_sizes(self, lists: Sequence[list[torch.Tensor]]) -> list[tuple[int, ...]]:
        """Sizes of every item along its own dims, the same in all lists."""
        if len({len(items) for items in lists}) > 1:
            counts = {port.origin: len(items) for port, items in zip(self.ports, lists, strict=True)}
            raise StageError(
                f"Items of one map are equally many, but {counts} were given.", map=self.step.name
            )
        all_sizes = []
        for at in range(len(lists[0])):
            # An item is one thing in several lists, so a dim has one size in all of them.
            sizes: dict[str, int] = {}
            for items, port in zip(lists, self.ports, strict=True):
                spec = port.spec
                assert isinstance(spec, TensorSpec)
                for name, size in zip(plain_dims(spec.dims[1:]), items[at].shape, strict=True):
                    if isinstance(name, str) and sizes.setdefault(name, size) != size:
                        raise self._item_error(
                            port, at, items[at], f" {name} is {sizes[name]} in another list."
                        )
            for dim in self.dims[1:]:
                self._check_size(dim, sizes[dim.name], at, lists)
            all_sizes.append(tuple(sizes[dim.name] for dim in self.dims[1:]))
        return all_sizes

    def _check_size(self, dim: DimPlan, size: int, at: int, lists: Sequence[list[torch.Tensor]]) -> None:
        # The first port that carries the dim is the one to name; the other lists have the same size.
        port = next(port for port in self.ports if dim.name in getattr(port.spec, "names", ()))
        item = lists[self.ports.index(port)][at]
        if not size:
            raise self._item_error(port, at, item, f" {dim.name} is 0.")
        if not dim.any and bucket_for(size, dim.buckets) is None:
            raise self._item_error(
                port, at, item, f" {dim.name} is {size}, above its largest bucket {dim.buckets[-1]}."
            )
        spec = port.spec
        assert isinstance(spec, TensorSpec)
        if not dim.any and (spec.pad is None or dim.exact) and size not in dim.buckets:
            why = "nothing is padded along it" if dim.exact else "its port has no pad rule"
            raise self._item_error(
                port, at, item, f" {dim.name} is {size}, no bucket {dim.buckets}, and {why}."
            )

    def _batches(self, sizes: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """Items of one bucket, in batches."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for at, own in enumerate(sizes):
            pairs = zip(self.dims[1:], own, strict=True)
            key = tuple(size if dim.any else bucket_for(size, dim.buckets) or size for dim, size in pairs)
            groups.setdefault(key, []).append(at)
        first = self.dims[0]
        for key, places in groups.items():
            start = 0
            for count, _ in [(len(places), 0)] if first.any else chunk_sizes(len(places), first.buckets):
                self._check_count(first, count)
                yield key, places[start : start + count]
                start += count

    def _check_count(self, first: DimPlan, count: int) -> None:
        if not first.any and not first.can_pad and count not in first.buckets:
            raise StageError(
                f"A batch of map {self.step.name!r} has {count} items, which is no bucket {first.buckets} of "
                f"{first.name!r}, and there is no pad rule. Declare the body's input with pad=0 or pad='repeat_first'.",
                map=self.step.name,
                dim=first.name,
            )

    def _batch(
        self, items: list[torch.Tensor], spec: Any, places: list[int], run: SizeAssignment
    ) -> torch.Tensor:
        shape = spec.shape(run.actual)[1:]
        return torch.stack([pad_to(items[at], shape, spec.pad) for at in places])

    def _part(
        self,
        result: list[Any],
        spec: Any,
        batch: torch.Tensor,
        places: list[int],
        sizes: Sequence[tuple[int, ...]],
    ) -> None:
        names = [dim.name for dim in self.dims[1:]]
        for item, at in zip(batch.unbind(), places, strict=True):
            for axis, dim in enumerate(plain_dims(spec.dims[1:])):
                if isinstance(dim, str) and dim in names:
                    item = item.narrow(axis, 0, sizes[at][names.index(dim)])
            result[at] = item

    def _result(self, items: list[torch.Tensor], spec: Any, real: Mapping[str, int]) -> Any:
        if not isinstance(spec, TensorSpec):
            return [_without_batch(item) for item in items]
        if items:
            return torch.stack(items)
        return torch.empty((0, *TensorSpec(spec.dims[1:]).shape(real)), dtype=spec.dtype, device="cpu")

    def _item_error(self, port: Any, at: int, item: Any, more: str) -> StageError:
        spec = TensorSpec(port.spec.dims[1:], port.spec.dtype)
        return StageError(
            f"Item {at} of {port.origin!r} is {show_tensor(item)}, but the body takes {show_spec(spec)}.{more}",
            map=self.step.name,
            port=port.origin,
            item=at,
        )


def _without_batch(item: torch.Tensor) -> torch.Tensor:
    """An item that holds its own bytes alone, not those of its batch."""
    return item if item.untyped_storage().nbytes() == item.nbytes else item.clone()

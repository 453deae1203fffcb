"""Values at a bucket beside the exact ones: the kept elements, and the padding that the stages before made.

The exact values of a request stand in the run by hand. For each padded dim a value may have one *version*: the same
elements, padded along that dim alone. It begins where the plan pads, by the rule, and goes on through the stages, so
that its padding holds what they made of it. What is kept is always put back to the exact elements: a stage is tried on
padding that really comes its way, and never on what another one broke.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from orchestrator.adapter import pad_to
from orchestrator.plan.model import Plan
from orchestrator.plan.records import DimPlan, PlannedEdge
from orchestrator.specs import AnyDim, Derived, TensorSpec, dim_names, plain_dim

__all__ = [
    "Versions",
    "has",
    "in_parts",
    "kept_of",
    "next_bucket",
    "other_values",
    "overlay",
    "pad_along_edge",
    "padded_dims",
    "scramble_padding",
    "smaller_size",
]


class Versions:
    """The padded versions of the exact tensors of a walk; they live as long as these do."""

    def __init__(self) -> None:
        self._of: Any = WeakTensorKeyDictionary()

    def of(self, value: Any) -> dict[str, torch.Tensor]:
        """Returns the versions of an exact value by dim."""
        versions: dict[str, torch.Tensor] = self._of.get(value, {}) if isinstance(value, torch.Tensor) else {}
        return versions

    def keep(self, value: torch.Tensor, versions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns an alias of an exact value that has these versions; without any, the value itself."""
        if not versions:
            return value
        alias = value.detach() if value.numel() else value.clone()
        self._of[alias] = dict(versions)
        return alias


def next_bucket(dim: DimPlan, size: int) -> int | None:
    """Returns the smallest compiled size above a size; None: there is none."""
    return next((bucket for bucket in dim.buckets if bucket > size), None)


def smaller_size(dim: DimPlan) -> int | None:
    """Returns a size that is padded, for a dim whose size is at its largest bucket; None: it has bucket 1 alone."""
    bucket = next((bucket for bucket in dim.buckets if bucket > 1), None)
    return None if bucket is None else max(1, 3 * bucket // 4)


def pad_along_edge(
    value: torch.Tensor, edge: PlannedEdge, name: str, sizes: Mapping[str, int], bucket: int
) -> torch.Tensor | None:
    """Pads an exact value along one dim as an edge of the plan does; None: it does not.

    Args:
        value: The exact value.
        edge: The edge.
        name: The dim.
        sizes: Exact sizes of names.
        bucket: The size to pad to.
    """
    for adapter in edge.adapters:
        if adapter.kind == "pad" and adapter.to_bucket and adapter.rule is not None:
            pairs = zip(adapter.dims, value.shape, strict=True)
            shape = tuple(_size(dim, size, name, {**sizes, name: bucket}) for dim, size in pairs)
            if shape != tuple(value.shape):
                return pad_to(value, shape, adapter.rule)
    return None


def _size(dim: AnyDim, size: int, name: str, sizes: Mapping[str, int]) -> int:
    if name not in dim_names(dim):
        return size
    plain = plain_dim(dim)
    if isinstance(plain, Derived):
        try:
            return max(size, plain.near(sizes))
        except KeyError:
            return size
    return sizes[name]


def _kept_region(shape: torch.Size) -> tuple[slice, ...]:
    return tuple(slice(size) for size in shape)


def overlay(version: torch.Tensor, exact: torch.Tensor) -> torch.Tensor | None:
    """Returns a version with its kept elements put back to the exact ones; None where it has no room for them.

    The kept elements are the first ones along every dim; a dim that is a multiple of what is padded (images, and the
    same images once more) keeps the first ones of each part.
    """
    if version.dim() != exact.dim() or version.dtype != exact.dtype:
        return None
    if any(new < old for new, old in zip(version.shape, exact.shape, strict=True)):
        return None
    overlay = version.clone()
    overlay[_kept_region(exact.shape)] = exact
    return overlay


def kept_of(version: torch.Tensor, exact: torch.Tensor) -> torch.Tensor | None:
    """Returns the kept elements of a version; None where it has no room for the exact ones."""
    if version.dim() != exact.dim():
        return None
    if any(new < old for new, old in zip(version.shape, exact.shape, strict=True)):
        return None
    return version[_kept_region(exact.shape)]


def in_parts(version: torch.Tensor, exact: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the kept elements of a version whose dim is several parts, each of them padded."""
    for axis, (new, old) in enumerate(zip(version.shape, exact.shape, strict=True)):
        for parts in range(2, old + 1) if new != old else ():
            if not new % parts and not old % parts:
                shape = (*version.shape[:axis], parts, new // parts, *version.shape[axis + 1 :])
                yield version.reshape(shape).narrow(axis + 1, 0, old // parts).flatten(axis, axis + 1)


def scramble_padding(version: torch.Tensor, exact: torch.Tensor, seed: int) -> torch.Tensor:
    """Returns a version with other content in its padding: large floats, or integers and booleans that it has."""
    # Noise goes over everything, then the exact elements are put back: what is left of it is the padding.
    generator = torch.Generator().manual_seed(seed)
    host = version.cpu()
    if host.is_floating_point():
        spread = (
            float(host.abs().to(torch.float64).nan_to_num(nan=0.0, posinf=0.0).clamp(max=1e4).max()) or 1.0
        )
        noise = (torch.randn(host.shape, generator=generator, dtype=torch.float32) * 10 * spread).to(
            host.dtype
        )
    else:
        flat = exact.cpu().flatten()
        noise = flat[torch.randint(0, max(1, flat.numel()), host.shape, generator=generator)]
    noise[_kept_region(exact.shape)] = exact.cpu()
    return noise.to(version.device)


def other_values(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields other values of the same range: floats that are all their least, all their largest, and mirrored.

    A value that looks like a mask, with two numbers or some near infinity, stays as it is.
    """
    # Only values of the same range say something: others could break a stage without breaking its promise.
    ranges = {
        port: (value.min(), value.max())
        for port, value in values.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and torch.unique(value).numel() > 2
        and bool(value.abs().max() < 1e4)
    }
    if not ranges:
        return
    for end in (0, 1):
        yield {
            **values,
            **{port: ends[end].expand_as(values[port]).contiguous() for port, ends in ranges.items()},
        }
    yield {**values, **{port: low + high - values[port] for port, (low, high) in ranges.items()}}


def padded_dims(plan: Plan, counters: frozenset[str]) -> list[DimPlan]:
    """Returns the dims along which a smaller size is padded; counts of iterations or items are no sizes to a stage."""
    return [dim for dim in plan.dims if dim.can_pad and not dim.unbounded and dim.name not in counters]


def has(spec: Any, name: str) -> bool:
    """Tells whether a spec depends on a dim."""
    return isinstance(spec, TensorSpec) and name in spec.names

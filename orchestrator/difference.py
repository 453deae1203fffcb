"""How far a result is from another one, and how far it may be.

Elements are floats of some precision that were summed in another order, so that equal promises give nearly equal
numbers. A difference counts relative to the largest magnitude of the result. A number for "minus infinity" in a
mask is larger than any number beside it, and is compared by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["TOLERANCES", "difference", "span"]

#: The largest difference that still counts as equal, relative to the largest magnitude.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
    torch.complex64: 1e-4,
    torch.complex128: 1e-9,
}

#: Magnitudes from here on are no numbers to compare others with: masks hold them.
_MASK = 1e8


def difference(
    actual: Any, reference: Any, tolerance: float | None, floor: float = 0.0
) -> tuple[bool, float]:
    """Compares a result with the one that it should equal.

    Args:
        actual: A tensor, or a Python value that may hold some.
        reference: The value to equal.
        tolerance: Relative; None: by dtype, see :data:`TOLERANCES`.
        floor: The largest magnitude of the inputs: rounding errors of its size are no difference.

    Returns:
        Whether they are equal as far as they need be, and the largest relative difference; infinite where forms,
        integers, booleans or Python values differ.
    """
    # Containers are compared part by part; only floats have a tolerance, all else is equal or infinitely far apart.
    if isinstance(reference, torch.Tensor):
        return _tensors(actual, reference, tolerance, floor)
    if isinstance(reference, Mapping) and isinstance(actual, Mapping):
        if set(actual) != set(reference):
            return False, math.inf
        return _all([difference(actual[key], reference[key], tolerance, floor) for key in reference])
    if isinstance(reference, (list, tuple)) and isinstance(actual, (list, tuple)):
        if len(actual) != len(reference):
            return False, math.inf
        pairs = zip(actual, reference, strict=True)
        return _all([difference(one, other, tolerance, floor) for one, other in pairs])
    if isinstance(reference, float) and isinstance(actual, float):
        one, other = (torch.tensor(value, dtype=torch.float64) for value in (actual, reference))
        return _tensors(one, other, TOLERANCES[torch.float32] if tolerance is None else tolerance, floor)
    equal = bool(actual == reference)
    return equal, 0.0 if equal else math.inf


def _all(parts: list[tuple[bool, float]]) -> tuple[bool, float]:
    return all(equal for equal, _ in parts), max((error for _, error in parts), default=0.0)


def _tensors(
    actual: Any, reference: torch.Tensor, tolerance: float | None, floor: float
) -> tuple[bool, float]:
    if (
        not isinstance(actual, torch.Tensor)
        or actual.shape != reference.shape
        or actual.dtype != reference.dtype
    ):
        return False, math.inf
    if not reference.numel():
        return True, 0.0
    if not (reference.is_floating_point() or reference.is_complex()):
        off = int((actual != reference).sum())
        return not off, math.inf if off else 0.0
    eps = torch.finfo(reference.dtype).eps
    limit = _mask_of(reference.dtype)
    bound = TOLERANCES.get(reference.dtype, 16 * eps) if tolerance is None else tolerance
    one, other = (_wide(value) for value in (actual, reference))
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0.0, (one - other).abs().nan_to_num(nan=math.inf, posinf=math.inf))
    marks = other.abs() >= limit
    scale = max(
        float(other.abs().nan_to_num(nan=0.0).masked_fill(marks, 0.0).max()),
        torch.finfo(reference.dtype).tiny,
    )
    whole = torch.where(marks & other.isfinite(), other.abs(), scale)
    error = float((apart / whole).max())
    # A result that is nothing but the rounding errors of what came in says nothing.
    noise = 16 * eps * floor if scale <= 64 * eps * floor else 0.0
    return bool((apart <= bound * whole + noise).all()), error


def _wide(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu()
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _mask_of(dtype: torch.dtype) -> float:
    return min(_MASK, torch.finfo(dtype).max / 4)


def span(values: Mapping[str, Any]) -> float:
    """Returns the largest magnitude of the floats among values by port, masks left out; 0 where there are none."""
    largest = 0.0
    for value in values.values():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            sizes = value.detach().abs().to(torch.float64).nan_to_num(nan=0.0)
            largest = max(largest, float(sizes.masked_fill(sizes >= _mask_of(value.dtype), 0.0).max()))
    return largest

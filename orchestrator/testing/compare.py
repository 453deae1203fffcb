"""Comparing results: what a session gave against what the same modules gave by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["assert_same"]


def assert_same(
    results: Any, expected: Any, *, exact: bool = True, rtol: float = 1e-5, atol: float = 1e-6, at: str = ""
) -> None:
    """Compares results: tensors in shape, dtype and elements, containers part by part, anything else with ``==``.

    Args:
        results: What came out.
        expected: What should have.
        exact: Elements are equal bit for bit (NaN equals NaN); else they are close.
        rtol: Relative tolerance where ``exact`` is false.
        atol: Absolute tolerance where ``exact`` is false.
        at: Where this is in a larger result, for the message.

    Raises:
        AssertionError: They differ; the message says where.
    """
    where = at or "the result"
    if isinstance(expected, torch.Tensor):
        _same_tensor(results, expected, where, exact, rtol, atol)
    elif isinstance(expected, Mapping):
        assert set(results) == set(expected), f"{where} has {sorted(results)}, expected {sorted(expected)}"
        for name, value in expected.items():
            assert_same(results[name], value, exact=exact, rtol=rtol, atol=atol, at=f"{at}[{name!r}]")
    elif isinstance(expected, (tuple, list)):
        assert len(results) == len(expected), f"{where} has {len(results)} parts, expected {len(expected)}"
        for position, (one, other) in enumerate(zip(results, expected, strict=True)):
            assert_same(one, other, exact=exact, rtol=rtol, atol=atol, at=f"{at}[{position}]")
    else:
        assert results == expected, f"{where} is {results!r}, expected {expected!r}"


def _same_tensor(
    found: Any, expected: torch.Tensor, where: str, exact: bool, rtol: float, atol: float
) -> None:
    assert isinstance(found, torch.Tensor), f"{where} is {type(found).__name__}, expected a tensor"
    forms = [(tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in (found, expected)]
    assert forms[0] == forms[1], f"{where} is {forms[0]}, expected {forms[1]}"
    rtol, atol = (0.0, 0.0) if exact else (rtol, atol)
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{where} differs: {text}"
    )

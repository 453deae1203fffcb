"""Comparing results: those of a session with those of the same modules called by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["assert_same"]


def assert_same(
    results: Any, reference: Any, *, exact: bool = True, rtol: float = 1e-5, atol: float = 1e-6, at: str = ""
) -> None:
    """Compares results: tensors in shape, dtype and elements, containers part by part, anything else with ``==``.

    Args:
        results: What came out.
        reference: What should have.
        exact: Elements are equal bit for bit (NaN equals NaN); else they are close.
        rtol: Relative tolerance where ``exact`` is false.
        atol: Absolute tolerance where ``exact`` is false.
        at: Where this is in a larger result, for the message.

    Raises:
        AssertionError: They differ; the message says where.
    """
    # What is expected decides how to compare: a result of another kind then differs with words that say where.
    where = at or "the result"
    if isinstance(reference, torch.Tensor):
        _same_tensor(results, reference, where, exact, rtol, atol)
    elif isinstance(reference, Mapping):
        assert set(results) == set(reference), f"{where} has {sorted(results)}, expected {sorted(reference)}"
        for name, value in reference.items():
            assert_same(results[name], value, exact=exact, rtol=rtol, atol=atol, at=f"{at}[{name!r}]")
    elif isinstance(reference, (tuple, list)):
        assert len(results) == len(reference), f"{where} has {len(results)} parts, expected {len(reference)}"
        for position, (one, other) in enumerate(zip(results, reference, strict=True)):
            assert_same(one, other, exact=exact, rtol=rtol, atol=atol, at=f"{at}[{position}]")
    else:
        assert results == reference, f"{where} is {results!r}, expected {reference!r}"


def _same_tensor(
    result: Any, reference: torch.Tensor, where: str, exact: bool, rtol: float, atol: float
) -> None:
    assert isinstance(result, torch.Tensor), f"{where} is {type(result).__name__}, expected a tensor"
    forms = [(tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in (result, reference)]
    assert forms[0] == forms[1], f"{where} is {forms[0]}, expected {forms[1]}"
    rtol, atol = (0.0, 0.0) if exact else (rtol, atol)
    torch.testing.assert_close(
        result, reference, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{where} differs: {text}"
    )

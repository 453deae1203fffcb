"""What the mode of trials remembers of an operation is what torch's own mode of fake tensors gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator.isolation import CachedFakeMode, fake_mode

#: Operations on two tensors of shape ``[a, b]``, and of which argument each result has the memory.
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sum of two": lambda x, y: x + y,
    "sum with a whole number": lambda x, _: x + 1,
    "sum with a number": lambda x, _: x + 1.0,
    "quotient": lambda x, y: x / y,
    "comparison": lambda x, y: x > y,
    "product": lambda x, y: x.float() @ y.float().T,
    "linear of three dims": lambda x, y: torch.nn.functional.linear(x[None].float(), y.float()),
    "view": lambda x, _: x.reshape(-1),
    "transposed": lambda x, _: x.T,
    "transposed and whole": lambda x, _: x.T.contiguous(),
    "cut": lambda x, _: x[1:],
    "every second": lambda x, _: x[:, ::2],
    "expanded": lambda x, _: x[None].expand(3, *x.shape),
    "two parts": lambda x, _: torch.chunk(x, 2, dim=0),
    "largest": lambda x, _: x.max(dim=1),
    "joined": lambda x, y: torch.cat([x, y], dim=1),
    "stacked": lambda x, y: torch.stack([x, y]),
    "counted": lambda x, _: torch.arange(x.shape[0]),
    "made": lambda x, _: torch.ones(x.shape[1], dtype=x.dtype),
    "written": lambda x, y: x.clone().add_(y),
    "other dtype": lambda x, _: x.to(torch.float16),
    "same dtype": lambda x, _: x.to(x.dtype),
    "attention": lambda x, y: torch.nn.functional.scaled_dot_product_attention(
        x[None, None].float(), y[None, None].float(), y[None, None].float()
    ),
    "norm": lambda x, _: torch.nn.functional.layer_norm(x.float(), x.shape[-1:]),
    "looked up": lambda x, y: x[y.long()[:, 0]],
}


def described(results: Any, *inputs: Any) -> list[Any]:
    """Metadata of results, and of which input each has the memory, and whether two share theirs."""
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    places = [value.untyped_storage()._cdata for value in (*inputs, *results)]
    return [
        (
            *(tuple(value.shape), value.stride(), value.storage_offset(), value.dtype, value.device),
            *(value.requires_grad, value._base is not None, places.index(value.untyped_storage()._cdata)),
        )
        for value in results
    ]


def run(mode: Any, operation: Callable[[Any, Any], Any], shape: tuple[int, int], dtype: torch.dtype) -> Any:
    with mode, torch.no_grad():
        x, y = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        return described(operation(x, y), x, y)


@given(
    name=st.sampled_from(list(OPERATIONS)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.bool]),
)
def test_a_remembered_result_is_that_of_torch(name: str, shape: tuple[int, int], dtype: torch.dtype):
    try:
        expected = run(FakeTensorMode(), OPERATIONS[name], shape, dtype)
    except Exception as error:
        with pytest.raises(type(error)):
            run(fake_mode(), OPERATIONS[name], shape, dtype)
        return
    for _ in range(2):
        assert run(fake_mode(), OPERATIONS[name], shape, dtype) == expected


def test_a_result_is_made_from_memory_the_second_time(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    original = FakeTensorMode.dispatch
    monkeypatch.setattr(
        FakeTensorMode,
        "dispatch",
        lambda self, func, *rest: calls.append(func) or original(self, func, *rest),
    )
    monkeypatch.setattr(CachedFakeMode, "_results", {})
    mode = fake_mode()
    with mode, torch.no_grad():
        x, weight = torch.empty(2, 3, 4), torch.empty(4, 4)
        torch.nn.functional.linear(x, weight)
        first = len(calls)
        torch.nn.functional.linear(x, weight)
    assert first > 2
    assert {str(func) for func in calls[first:]} <= {"prim.device.default"}


def test_memory_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.isolation.cached_mode.LIMIT", 3)
    monkeypatch.setattr(CachedFakeMode, "_results", {})
    with fake_mode():
        for size in range(1, 9):
            assert (torch.empty(size) + 1).shape == (size,)
    assert len(CachedFakeMode._results) <= 3

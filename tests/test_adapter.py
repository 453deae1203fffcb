"""Adapters on tensors: padding keeps what was there, cutting undoes it, nothing is copied without need."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.adapter import Adapter, apply, pad_to, slice_to
from orchestrator.specs import Derived
from tests.kit import spec

SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=3)
RULES = st.sampled_from([0, 7, -1.5, "repeat_first"])


def tensor_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


@given(SHAPES, RULES)
def test_padding_then_cutting_gives_the_value_back(shape: list[tuple[int, int]], rule: float | str):
    small = tuple(size for size, _ in shape)
    large = tuple(size + more for size, more in shape)
    value = tensor_of(small)
    larger = pad_to(value, large, rule)
    assert larger.shape == large
    assert torch.equal(slice_to(larger, small), value)


@given(SHAPES, st.sampled_from([0, 3, -1]))
def test_all_that_a_number_adds_is_that_number(shape: list[tuple[int, int]], rule: int):
    value = torch.full(tuple(size for size, _ in shape), 100.0)
    larger = pad_to(value, tuple(size + more for size, more in shape), rule)
    assert int((larger == 100).sum()) == value.numel()
    assert int((larger == rule).sum()) == larger.numel() - value.numel()


@given(SHAPES)
def test_repeat_first_adds_the_first_slice_of_each_dim(shape: list[tuple[int, int]]):
    value = tensor_of(tuple(size for size, _ in shape))
    larger = pad_to(value, tuple(size + more for size, more in shape), "repeat_first")
    for dim, (size, _) in enumerate(shape):
        for index in range(size, larger.shape[dim]):
            assert torch.equal(larger.select(dim, index), larger.select(dim, 0))


@pytest.mark.parametrize("rule", [0, "repeat_first", None])
def test_a_value_that_fits_is_handed_through(rule: object):
    value = tensor_of((2, 3))
    assert pad_to(value, (2, 3), rule) is value


def test_padding_never_touches_the_value():
    value = tensor_of((2, 3))
    before, version = value.clone(), value._version
    pad_to(value, (4, 4), 9)
    pad_to(value, (4, 4), "repeat_first")
    assert torch.equal(value, before)
    assert value._version == version


def test_a_cut_does_not_hold_what_was_cut_off():
    value = tensor_of((4, 3))
    cut = slice_to(value, (2, 2))
    assert torch.equal(cut, value[:2, :2])
    assert cut.untyped_storage().nbytes() == cut.nbytes
    assert slice_to(value, (4, 3)) is value


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16])
def test_padding_keeps_the_dtype(dtype: torch.dtype):
    assert pad_to(torch.ones(2, dtype=dtype), (3,), 0).dtype is dtype


def test_apply_takes_the_sizes_of_names():
    value = tensor_of((2, 3))
    assert apply(Adapter("pad", ("n", 4), 0), value, {"n": 5}).shape == (5, 4)
    assert apply(Adapter("cut", ("n", 3)), value, {"n": 1}).shape == (1, 3)
    assert apply(Adapter("cast", dtype=torch.int32), value, {}).dtype is torch.int32


def test_a_size_derived_from_a_dim_of_any_size_stays_as_it_is():
    dims = ("n", Derived("h-2", ("h",), (((64,), 62), ((128,), 126))))
    cut = apply(Adapter("cut", dims), tensor_of((4, 35)), {"n": 2, "h": 37})
    assert cut.shape == (2, 35)


def test_an_adapter_says_what_comes_out():
    spec_ = spec("n", 576)
    assert Adapter("pad", ("n", 768), 0).result(spec_) == spec("n", 768)
    assert Adapter("cast", dtype=torch.float16).result(spec_) == spec("n", 576, dtype=torch.float16)
    assert Adapter("upload", device="cuda:0").result(spec_) == spec_


def test_adapters_read_as_a_person_would_say():
    assert str(Adapter("pad", ("n", 768), 0)) == "pad to [n, 768] (0)"
    assert str(Adapter("pad", ("n",), None)) == "pad to [n] (exact fit only)"
    assert str(Adapter("cut", ("n",))) == "cut to [n]"
    assert str(Adapter("cast", dtype=torch.float16)) == "cast to float16"
    assert str(Adapter("upload", device="cuda:0")) == "upload to cuda:0"

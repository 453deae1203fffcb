"""Specs: what may be written, and what shape, size and bytes follow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import Dim, GraphError, TensorSpec
from orchestrator.specs import Derived, combinations, show_spec, show_tensor
from tests.kit import refuses, spec

DOUBLE = Derived("2*n", ("n",), (((4,), 8), ((8,), 16)))


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        (5, "tuple of dims; write (5,)"),
        ("batch", "tuple of dims; write ('batch',)"),
        ((1.5,), "not 1.5"),
        ((True,), "not True"),
        ((None,), "not None"),
        ((-1,), "cannot be -1"),
        (("",), "non-empty"),
        ((" b",), "outer blanks"),
        (("a.b",), "'.'"),
    ],
)
def test_a_dim_that_is_none_is_refused(dims: object, words: str):
    refuses(GraphError, words, lambda: TensorSpec(dims))


@pytest.mark.parametrize("mark", [".", "/", "#", "[", "->"])
def test_marks_of_edges_and_calls_are_kept_out_of_names(mark: str):
    error = refuses(GraphError, (repr(mark), "leave it out"), lambda: Dim(f"a{mark}b"))
    assert error.name == f"a{mark}b"


@pytest.mark.parametrize("size", [0, -2, 1.5, True, "4"])
def test_a_bucket_is_a_positive_int(size: object):
    error = refuses(GraphError, ("positive int", repr(size)), lambda: Dim("n", buckets=(size,)))
    assert (error.dim, error.size) == ("n", size)


def test_a_dim_of_any_size_has_no_buckets():
    refuses(GraphError, "one of the two", lambda: Dim("n", buckets=(1,), any=True))
    assert Dim.dynamic("n").buckets == ()
    assert Dim.dynamic("n", batch=True, exact=True) == Dim("n", any=True, batch=True, exact=True)
    assert Dim.dynamic("n") == Dim("n", any=True) != Dim("n")


def test_buckets_are_a_sorted_set_of_sizes():
    assert Dim("n", buckets=[8, 2, 8]).buckets == (2, 8)
    assert Dim("n", 4).buckets == (4,)


@pytest.mark.parametrize("pad", ["zeros", True, (0,), b"0"])
def test_a_pad_rule_is_a_number_or_repeat_first(pad: object):
    assert refuses(GraphError, "repeat_first", lambda: TensorSpec((1,), pad=pad)).pad == pad


def test_a_dtype_is_a_torch_dtype():
    refuses(GraphError, "torch.dtype", lambda: TensorSpec((1,), "float32"))


def test_the_shape_follows_from_the_sizes_of_names():
    value = spec("batch", Dim("t", (4, 8)), 3, DOUBLE, dtype=torch.float16)
    sizes = {"batch": 2, "t": 8, "n": 4}
    assert value.names == ("batch", "t", "n")
    assert value.shape(sizes) == (2, 8, 3, 8)
    assert value.numel(sizes) == 2 * 8 * 3 * 8
    assert value.nbytes(sizes) == 2 * value.numel(sizes)
    assert str(value) == "[batch, t, 3, 2*n] float16"


def test_a_scalar_is_one_element():
    assert (spec().shape({}), spec().numel({}), show_spec(spec())) == ((), 1, "[] float32")


def test_a_missing_size_is_an_error():
    with pytest.raises(KeyError):
        spec("batch").shape({})


def test_a_derived_size_is_exact_only_where_it_was_proven():
    assert DOUBLE.is_proven({"n": 4})
    assert not DOUBLE.is_proven({"n": 5})
    with pytest.raises(KeyError, match=r"2\*n at"):
        spec(DOUBLE).shape({"n": 5})


@given(st.integers(1, 500), st.integers(1, 5), st.integers(0, 9))
def test_a_line_is_estimated_exactly_where_it_was_not_proven(size: int, slope: int, offset: int):
    line = Derived("line", ("n",), tuple(((x,), slope * x + offset) for x in (64, 128)))
    assert line.near({"n": size}) == slope * size + offset


def test_a_product_is_estimated_in_proportion():
    area = Derived("h*w", ("h", "w"), (((64, 64), 4096), ((128, 64), 8192)))
    assert area.near({"h": 10, "w": 30}) == 300


def test_a_name_is_of_the_same_form_as_the_dim_of_that_name():
    assert spec("n", 3).same_form(spec(Dim("n", (2, 4)), 3))
    assert not spec("n", 3).same_form(spec("n", 3, dtype=torch.int64))
    assert not spec("n", 3).same_form(spec(3, "n"))


def test_combinations_end_with_the_largest():
    sizes = list(combinations(("a", "b"), {"a": (1, 2), "b": (3, 4)}))
    assert sizes[-1] == {"a": 2, "b": 4}
    assert len(sizes) == 4
    assert list(combinations((), {})) == [{}]


def test_specs_are_values():
    assert spec("n", 3, pad=0) == spec("n", 3, pad=0) != spec("n", 3)
    assert len({spec("n"), spec("n"), spec("m")}) == 2


def test_messages_show_tensors_and_anything_else():
    assert show_tensor(torch.zeros(2, 3)) == "[2, 3] float32 on cpu"
    assert show_tensor("x") == "a str"
    assert show_spec(dict) == "dict"

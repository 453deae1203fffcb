"""A request is let in or refused whatever came before it (kind K15: admission is skipped for a form that is known)."""

from __future__ import annotations

import warnings

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator import InputError, StageError
from tests.bodies import new
from tests.kit import Double, chain, host, refuses, spec

pytestmark = pytest.mark.usefixtures("shared_store")

EYE = torch.eye(4)


class Own(torch.Tensor):
    """A subclass that runs code of its own."""


class Rude(torch.Tensor):
    """A subclass that tells nothing."""

    @property
    def shape(self):
        raise ValueError("not your business")


def odd():
    """Values of the right shape and dtype that no plan was proven for, each with a word of its refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {
            "coo": (EYE.to_sparse(), "sparse"),
            "csr": (EYE.to_sparse_csr(), "sparse"),
            "bsr": (EYE.to_sparse_bsr((2, 2)), "sparse"),
            "mkldnn": (EYE.to_mkldnn(), "dense"),
            "nested": (torch.nested.nested_tensor([EYE[0], EYE[1], EYE[2], EYE[3]]), "nested"),
            "quantized": (torch.quantize_per_tensor(EYE, 1.0, 0, torch.quint8), "dtype"),
            "jagged": (torch.nested.nested_tensor([EYE[0]] * 4, layout=torch.jagged), "NestedTensor"),
        }
    with FakeTensorMode():
        kinds["fake"] = torch.empty(4, 4), "FakeTensor"
    return kinds | {
        "meta": (EYE.to("meta"), "host"),
        "subclass": (EYE.as_subclass(Own), "Own"),
        "rude": (EYE.as_subclass(Rude), "class"),
        "list": ([1.0], "list"),
        "numpy": (EYE.numpy(), "ndarray"),
    }


ODD = odd()

#: Values that are let in: what a view or a parameter holds is what a plain tensor holds.
FINE = {
    "parameter": nn.Parameter(EYE * 3),
    "expanded": torch.ones(1, 4).expand(4, 4),
    "transposed": torch.arange(16.0).view(4, 4).t(),
    "negative": torch.complex(EYE, EYE).conj().imag,
    "gradients": torch.ones(4, 4, requires_grad=True),
}


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
@pytest.mark.parametrize("kind", ODD)
def test_what_is_refused_at_first_is_refused_after_a_plain_one_too(device: str, kind: str):
    value, word = ODD[kind]
    pipeline = new()
    pipeline.output("y", pipeline.add("a", Double())(pipeline.input("x", spec(4, 4))))
    with pipeline.plan(device).load() as session:
        first = refuses(InputError, word, lambda: session(x=value))
        assert torch.equal(session(x=EYE)["y"], EYE * 2)
        for _ in range(2):
            assert str(refuses(InputError, word, lambda: session(x=value))) == str(first)
        assert torch.equal(session(x=EYE)["y"], EYE * 2)


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
@pytest.mark.parametrize("kind", FINE)
def test_what_is_let_in_gives_the_same_at_first_and_after_a_plain_one(device: str, kind: str):
    pipeline = new()
    x = pipeline.input("x", spec(4, 4))
    pipeline.output("y", pipeline.add("a", lambda x: x * 2 + x.t())(x))
    pipeline.output("same", pipeline.add("b", lambda x: x.sum(0))(x))
    with torch.no_grad():
        expected = FINE[kind] * 2 + FINE[kind].t()
    with pipeline.plan(device).load() as session:
        for value in (FINE[kind], EYE, FINE[kind], FINE[kind]):
            result = session(x=value)["y"]
            assert not result.requires_grad
            assert torch.equal(result, expected if value is FINE[kind] else EYE * 2 + EYE.t())


def test_what_stands_in_for_a_missing_input_is_refused_too():
    """A list has no shape, as None has none."""
    body = new("body")
    body.output("y", body.add("a", Double())(body.input("x", spec(2))))
    pipeline = new()
    x = pipeline.input("x", spec(2), optional=True)
    pipeline.output("y", pipeline.when("w", body, inputs={"x": x}, otherwise={"y": torch.ones(2)}))
    with pipeline.plan().load() as session:
        for _ in range(2):
            assert session()["y"].tolist() == [1, 1]
            assert session(x=None)["y"].tolist() == [1, 1]
            refuses(InputError, "list", lambda: session(x=[1.0, 2.0]))
            refuses(InputError, "int", lambda: session(x=3))


def test_types_of_one_name_are_told_apart():
    """Kind K22: numpy's types are called like Python's."""
    pipeline = new()
    x = pipeline.input("x", spec(2))
    answer = host(pipeline, "ask", lambda v: numpy.mean(v.numpy()) > 0, yes=bool)(x)
    pipeline.output("y", host(pipeline, "say", lambda yes: yes, y=bool)(answer))
    with pipeline.plan().load() as session:
        refuses(StageError, ("is bool", "numpy.bool"), lambda: session(x=torch.ones(2)))
    with chain(lambda x: x, takes=bool, device="host", outputs={"y": bool}).plan().load() as session:
        assert session(x=True)["y"] is True
        refuses(InputError, ("takes bool", "numpy.bool"), lambda: session(x=numpy.bool_(1)))

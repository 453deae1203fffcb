"""Nobody sees what somebody else writes: results, inputs, constants and parameters have memory of their own.

Kinds: a result that is the session's own constant, a stage's parameter, the caller's input or another result; a host
stage that writes where no version tells, through NumPy or ``data``; a stage that keeps what it was given, or gave.
"""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import nn

from orchestrator import Dim, PlanError
from tests.bodies import new
from tests.kit import Double, chain, host, linear, refuses, spec
from tests.runner.decoding import load

pytestmark = pytest.mark.usefixtures("shared_store")

X = torch.arange(8.0).view(2, 4)


class Table(nn.Module):
    """Gives its parameter, whole or in part, and what it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))
        self.register_buffer("steps", torch.ones(4))
        self.kept = [torch.ones(2, 4)]

    def forward(self, x):
        return self.weight, self.weight[0], self.steps.view(2, 2), self.kept[0], x + 1


class Cached(nn.Module):
    """Keeps what it made first, and gives it ever after."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {}

    def forward(self, x):
        if "y" not in self.cache:
            self.cache["y"] = torch.ones(2, 4)
        return self.cache["y"]


HANDED = {
    "itself": lambda x: x,
    "view": lambda x: x.view(4, 2),
    "part": lambda x: x[:1],
    "turned": lambda x: x.t(),
    "contiguous": lambda x: x.contiguous(),
    "turned and contiguous": lambda x: x.t().contiguous(),
    "flat": lambda x: x.t().reshape(8),
    "same dtype": lambda x: x.t().to(torch.float32, memory_format=torch.contiguous_format),
    "detached": lambda x: x.detach(),
    "identity": nn.Identity(),
    "dropout": nn.Dropout(0.5).eval(),
}


def spoil(results):
    """What a user may do with results."""
    for value in results.values():
        value.mul_(0).sub_(7)


def twice(session, request):
    """Two equal requests, the results of the first spoilt in between; and that the request itself stayed as it was."""
    before = {name: value.clone() for name, value in request.items()}
    first = session.run(request)
    whole = {name: value.clone() for name, value in first.items()}
    spoil(first)
    second = session.run(request)
    for name, value in whole.items():
        assert torch.equal(second[name], value), name
    for name, value in before.items():
        assert torch.equal(request[name], value), name
    values = list(second)
    for at, name in enumerate(values):
        second[name].fill_(at)
    assert all((second[name] == at).all() for at, name in enumerate(values)), "no two results share memory"


@pytest.mark.parametrize("device", ["cpu", "neuron"])
@pytest.mark.parametrize("kind", HANDED)
def test_an_input_that_is_handed_through_is_a_copy(device, kind):
    pipeline = new()
    x = pipeline.input("x", spec(2, 4))
    pipeline.output("y", pipeline.add("a", HANDED[kind])(x))
    pipeline.output("again", pipeline.add("b", HANDED[kind])(x))
    pipeline.output("x", x)
    with load(pipeline, device, {}) as session:
        twice(session, {"x": X.clone()})
        if kind != "view":  # which strides do not permit, by hand either
            twice(session, {"x": X.t().contiguous().t()})


@pytest.mark.parametrize("device", ["cpu", "neuron"])
def test_what_a_stage_has_is_not_handed_out(device):
    table = Table().eval()
    pipeline = new()
    outputs = ("w", "row", "steps", "kept", "more")
    ends = pipeline.add("table", table, outputs=outputs)(pipeline.input("x", spec(2, 4)))
    for name, value in zip(outputs, ends, strict=True):
        pipeline.output(name, value)
    pipeline.output("w2", ends[0])
    pipeline.output("more2", ends[4])
    with load(pipeline, device, {}) as session:
        twice(session, {"x": X.clone()})
    assert torch.equal(table.weight, torch.ones(2, 4))
    assert torch.equal(table.kept[0], torch.ones(2, 4))


def test_parts_of_one_result_and_what_is_made_once_are_copies():
    pipeline = new()
    x = pipeline.input("x", spec(2, 4))
    parts = pipeline.add("parts", lambda x: (x * 2).chunk(2, 1), outputs=("a", "b"))(x)
    whole, part = pipeline.add("both", lambda x: ((y := x * 3), y[:, :2]), outputs=("w", "p"))(x)
    once = pipeline.add("cached", Cached())(x)
    for name, value in {"a": parts[0], "b": parts[1], "w": whole, "p": part, "once": once}.items():
        pipeline.output(name, value)
    with pipeline.plan().load() as session:
        twice(session, {"x": X.clone()})


@pytest.mark.parametrize("size", [0, 2, 3])
def test_constants_of_branches_and_loops_stay_as_they_are(size):
    step = new("step")
    outputs = step.add("t", lambda x, e: x + e)(step.input("x", spec(2)), step.input("e", spec(1)))
    step.output("x", outputs)
    pipeline = new()
    dim = Dim("k", (4,), batch=True)
    each = host(pipeline, "each", lambda n: torch.ones(int(n.sum()), 1), e=spec(dim, 1))(
        pipeline.input("n", spec(1, dtype=torch.int64))
    )
    start, otherwise = torch.ones(2), torch.ones(2)
    pipeline.output("loop", pipeline.loop("l", step, carry={"x": start}, each={"e": each}))
    body = new("body")
    body.output("y", body.add("d", Double())(body.input("x", spec(2))))
    maybe = pipeline.input("x", spec(2), optional=True)
    pipeline.output("when", pipeline.when("w", body, inputs={"x": maybe}, otherwise={"y": otherwise}))
    with pipeline.plan().load() as session:
        twice(session, {"n": torch.tensor([size])})
        twice(session, {"n": torch.tensor([size]), "x": torch.ones(2)})
    assert start.tolist() == otherwise.tolist() == [1, 1]


def through_numpy(x):
    view = x.numpy()
    view[view > 1] = -1
    return torch.from_numpy(view)


def through_data(x):
    x.data.clamp_(max=1)
    return x + 0


def through_a_pointer(x):
    memory = (numpy.ctypeslib.ctypes.c_float * x.numel()).from_address(x.data_ptr())
    memory[0] = 99.0
    return x * 1


WRITES = [through_numpy, through_data, through_a_pointer]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("device", ["cpu", "neuron"])
def test_what_a_host_stage_writes_past_torch_nobody_else_sees(write, device):
    """Kind: the version counter does not tell; the caller, another reader, and a view of the same memory might see."""
    pipeline = new()
    x = pipeline.input("x", spec(2, 4))
    between = pipeline.add("between", lambda x: x * 2)(x)
    transposed_view = pipeline.add("turned", lambda x: x.t())(between)
    constant = torch.full((2, 4), 5.0)
    for name, value in {"input": x, "between": between, "constant": constant}.items():
        pipeline.output(name, host(pipeline, f"write {name}", write, y=spec(2, 4))(value))
    for name, value in {"x": x, "b": between, "t": transposed_view}.items():
        pipeline.output(f"read {name}", pipeline.add(f"read {name}", Double())(value))
    pipeline.output("turned", transposed_view)
    with load(pipeline, device, {}) as session:
        for _ in range(2):
            mine = X.clone()
            results = session(x=mine)
            assert torch.equal(mine, X)
            assert constant.eq(5).all()
            assert torch.equal(results["read x"], X * 2)
            assert torch.equal(results["read b"], X * 4)
            assert torch.equal(results["read t"], X.t() * 4)
            assert torch.equal(results["turned"], X.t() * 2)
            assert torch.equal(results["input"], write(X.clone()))
            assert torch.equal(results["between"], write(X * 2))
            assert torch.equal(results["constant"], write(constant.clone()))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": (x,)}, lambda x: x.numpy()])
def test_what_a_host_stage_writes_into_the_parts_of_a_python_value_nobody_else_sees(write, wrap):
    """Kind: a Python value may hold tensors and arrays, which are the caller's as well."""

    def unwrap(value):
        while not isinstance(value, torch.Tensor):
            kind = type(value)
            value = (
                torch.from_numpy(value)
                if kind is numpy.ndarray
                else value[0]
                if kind is not dict
                else value["a"]
            )
        return value

    pipeline, mine = new(), X.clone()
    value = pipeline.input("value", object)
    shape = spec(2, 4)
    pipeline.output("y", host(pipeline, "write", lambda value: write(unwrap(value)), y=shape)(value))
    pipeline.output("z", host(pipeline, "read", lambda value: unwrap(value) + 0, y=shape)(value))
    with pipeline.plan().load() as session:
        results = session(value=wrap(mine))
    assert torch.equal(mine, X)
    assert torch.equal(results["y"], write(X.clone()))
    assert torch.equal(results["z"], X)


def test_a_stage_on_a_device_that_writes_past_the_version_counter_is_refused_when_planned():
    def writes(x):
        x.data[:1].mul_(2)
        return x + 1

    for stage in (writes, lambda x: torch.add(x, 1, out=x.detach().view(4, 2).data.view(2, 4))):
        refuses(PlanError, ("writes into its input 'x'", "clone"), chain(stage, takes=spec(2, 4)).plan)


@pytest.mark.parametrize("write", WRITES)
def test_a_host_stage_that_writes_into_a_carry_spoils_no_start(write):
    body = new("body")
    body.output("x", host(body, "write", write, x=spec(2, 4))(body.input("x", spec(2, 4))))
    pipeline = new()
    x = pipeline.input("x", spec(2, 4))
    pipeline.output("y", pipeline.loop("l", body, carry={"x": x}, max_steps=3))
    pipeline.output("same", pipeline.add("read", Double())(x))
    by_hand = X.clone()
    for _ in range(3):
        by_hand = write(by_hand)
    with pipeline.plan().load() as session:
        for _ in range(2):
            mine = X.clone()
            results = session(x=mine)
            assert torch.equal(mine, X)
            assert torch.equal(results["same"], X * 2)
            assert torch.equal(results["y"], by_hand)


def test_a_host_stage_that_alone_reads_a_value_is_given_that_value():
    """No copy without need: a large picture on its way to the last stage stays where it is."""
    places = []

    def made(x):
        if type(x) is torch.Tensor:
            places.append((y := x * 2).data_ptr())
            return y
        return x * 2

    def last(x):
        places.append(x.data_ptr())
        return x + 1

    pipeline = new()
    y = pipeline.add("made", made)(pipeline.input("x", spec(2, 4)))
    pipeline.output("y", host(pipeline, "last", last, y=spec(2, 4))(y))
    with pipeline.plan().load() as session:
        session(x=X)
    assert places[0] == places[1]


def test_a_host_stage_that_keeps_what_it_gets_and_gives_changes_no_result():
    values = []

    def keeping(x):
        for tensor in values:
            tensor.zero_()
        y = x + 1
        values[:] = [x, y]
        return y

    pipeline = new()
    x = pipeline.input("x", spec(2, 4))
    pipeline.output("y", host(pipeline, "keep", keeping, y=spec(2, 4))(x))
    with pipeline.plan().load() as session:
        mine = X.clone()
        first = session(x=mine)["y"]
        session(x=X.clone())
        assert torch.equal(first, X + 1)
        assert torch.equal(mine, X)


@pytest.mark.parametrize("device", ["cpu", "neuron"])
def test_what_a_loop_hands_out_while_it_runs_is_a_copy(device):
    """A value of an iteration is what the next one goes on with."""
    body = new("body")
    body.output("x", body.add("more", lambda x: x + 1)(body.input("x", spec(2))))
    pipeline = new()
    pipeline.output("y", pipeline.loop("l", body, carry={"x": pipeline.input("x", spec(2))}, max_steps=6))
    with load(pipeline, device, {}) as session:
        values = []
        for _, _, value in session.stream([{"x": torch.zeros(2)}], partial="y"):
            values.append(value.tolist())
            value.fill_(100)
        assert values == [[float(at)] * 2 for at in range(1, 7)]


def test_a_plain_chain_copies_nothing():
    """What a stage makes is handed out as it is: the hot path has no copy."""
    places = []

    def last(x):
        y = x * 2
        if type(x) is torch.Tensor:
            places.append(y.data_ptr())
        return y

    with chain(linear(4, 4), last, takes=spec(2, 4)).plan().load() as session:
        assert session(x=X)["y"].data_ptr() == places[-1]
    deep = chain(linear(4, 4), takes=spec(2, 3, 4)).plan()
    assert not deep.calls[0].shares, "a linear layer over three dims gives a view of what it made"
    copies = {lambda x: x.clone(): False, lambda x: x.contiguous(): True, lambda x: x.t().contiguous(): True}
    for stage, shares in copies.items():
        (call,) = chain(stage, takes=spec(2, 4)).plan().calls
        assert call.shares is shares, "what may be the input at other strides is told from a copy of its own"

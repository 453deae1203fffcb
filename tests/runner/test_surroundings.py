"""K13, K14, K21: what a caller has set in torch, and the random state, at planning, loading and requests.

Planning, compiling and loading are not reached by it, and move no random state. A request on a torch device runs as
the modules would by hand; a compiled program runs as it was compiled.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator import CompileError, Dim, ModelWrapper, Pipeline, StageError, TensorSpec
from orchestrator.surroundings import own_modes, same_random_state
from tests.kit import refuses

DEVICES = ("cpu", "neuron-emulated")


class Made(ModelWrapper):
    """Draws its weights, with all three generators, when it is built."""

    inputs = {"x": None}  # noqa: RUF012

    def make_model(self) -> nn.Module:
        layer = nn.Linear(4, 4).eval()
        with torch.no_grad():
            layer.bias += random.random() + numpy.random.rand()
        return layer


class Table(nn.Module):
    """Makes tensors of its own while it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(4, dtype=torch.float32, device="cpu")


@contextlib.contextmanager
def _set(setting: Callable[[Any], None], value: Any, back: Any) -> Iterator[None]:
    setting(value)
    try:
        yield
    finally:
        setting(back)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    with _set(torch.use_deterministic_algorithms, True, False):
        yield


MODES: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a default device": lambda: _set(torch.set_default_device, "meta", None),
    "a device context": lambda: torch.device("meta"),
    "deterministic algorithms": _deterministic,
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
}


def _pipeline(wrapper: ModelWrapper) -> Pipeline:
    pipeline = Pipeline("p")
    x = pipeline.input("x", TensorSpec((Dim("n", buckets=(2, 4)), 4), pad=0))
    value = pipeline.add("made", wrapper)(pipeline.add("plain", nn.Linear(4, 4).eval())(x))
    pipeline.output("y", pipeline.add("table", Table())(value))
    return pipeline


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_do_not_reach_into_planning_and_loading(mode: str, device: str, tmp_path: Path):
    wrapper, x = Made(), torch.randn(3, 4)
    pipeline = _pipeline(wrapper)
    with MODES[mode]():
        plan = pipeline.plan(device=device)
        session = plan.compile(tmp_path).load()
    with session:
        output = session(x=x)["y"]
    with torch.no_grad():
        plain = pipeline.freeze().stages["plain"].target
        expected = Table()(wrapper.model(plain(x)))
    assert torch.allclose(output, expected, atol=1e-5)
    assert not any(tensor.is_inference() for tensor in wrapper.model.parameters())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("autocast", "fake tensors")])
def test_a_request_gives_the_same_whatever_the_mode(mode: str, device: str):
    wrapper, x = Made(), torch.randn(3, 4)
    with _pipeline(wrapper).plan(device=device).load() as session:
        expected = session(x=x)["y"]
        with MODES[mode]():
            outputs = session(x=x)["y"], next(session.stream([{"x": x}]))["y"]
    for each in outputs:
        assert each.dtype is torch.float32
        assert torch.equal(each, expected)


def test_autocast_holds_where_stages_run_by_hand_and_not_in_what_is_compiled():
    wrapper, x = Made(), torch.randn(4, 4)
    for device, dtype in zip(DEVICES, (torch.bfloat16, torch.float32), strict=True):
        pipeline = Pipeline("p")
        pipeline.output("y", pipeline.add("made", wrapper)(pipeline.input("x", TensorSpec((4, 4)))))
        with pipeline.plan(device=device).load() as session, torch.autocast("cpu", torch.bfloat16):
            assert session(x=x)["y"].dtype is dtype


def test_a_stage_that_contradicts_its_plan_under_autocast_is_told_of_autocast():
    spec, pipeline = TensorSpec((2, 4)), Pipeline("p")
    value = pipeline.add("layer", nn.Linear(4, 4).eval())(pipeline.input("x", spec))
    for name in ("declares", "computes"):
        stage = pipeline.add(name, lambda v: v + 0, device="host", outputs={"o": spec})
        pipeline.output(name, stage(value))
    x = torch.rand(2, 4)
    with pipeline.plan().load() as session:
        with torch.autocast("cpu", torch.bfloat16):
            refuses(StageError, ("gave [2, 4] bfloat16", "torch.autocast is on"), lambda: session(x=x))
        assert session(x=x)["declares"].dtype is torch.float32


def _random_states() -> tuple[Any, ...]:
    return random.getstate(), torch.get_rng_state().tolist(), str(numpy.random.get_state())


class Reads(ModelWrapper):
    """Its model cannot be built on fake tensors, so that planning builds it."""

    inputs = {"x": None}  # noqa: RUF012

    def make_model(self) -> nn.Module:
        layer = nn.Linear(4, 4).eval()
        layer.weight.data = torch.from_numpy(layer.weight.detach().numpy() + numpy.random.rand())
        return layer


@pytest.mark.parametrize("device", DEVICES)
def test_neither_planning_nor_loading_nor_a_first_request_moves_a_random_state(device: str, tmp_path: Path):
    pipeline, spec = Pipeline("p"), TensorSpec((Dim("n", buckets=(2, 4)), 4), pad=0)
    value = pipeline.add("reads", Reads())(pipeline.add("made", Made())(pipeline.input("x", spec)))
    own = pipeline.add("host", Made(), device="host", outputs={"o": spec})
    pipeline.output("y", own(value))
    before = _random_states()
    plan = pipeline.plan(device=device)
    assert _random_states() == before, "planning"
    for store in ("compiled", "found"):
        session = plan.compile(tmp_path).load()
        assert _random_states() == before, store
        with session:
            session(x=torch.ones(3, 4))
        assert _random_states() == before, f"a request, {store}"


def test_models_of_one_load_are_drawn_one_after_another_as_by_hand():
    pipeline = Pipeline("p")
    first, second = ModelWrapper({"in_features": 4, "out_features": 4}, nn.Linear), Made()
    value = pipeline.add("first", first)(pipeline.input("x", TensorSpec((2, 4))))
    pipeline.output("y", pipeline.add("second", second)(value))
    torch.manual_seed(5)
    with pipeline.plan().load():
        pass
    assert torch.equal(torch.rand(3), torch.manual_seed(5) and torch.rand(3))
    torch.manual_seed(5)
    assert torch.equal(first.model.weight, nn.Linear(4, 4).weight)
    assert torch.equal(second.model.weight, nn.Linear(4, 4).weight)


def test_another_default_dtype_than_the_plans_is_refused_with_the_way_back():
    x, pipeline = torch.rand(2, 4), Pipeline("p")
    pipeline.output(
        "y", pipeline.add("ones", lambda x: x + torch.ones(4))(pipeline.input("x", TensorSpec((2, 4))))
    )
    plans = [pipeline.plan(device=device) for device in DEVICES]
    session = plans[1].load()
    with session, _set(torch.set_default_dtype, torch.float64, torch.float32):
        for plan in plans:
            refuses(CompileError, ("default dtype was torch.float32", "now it is torch.float64"), plan.load)
        refuses(StageError, "Set it back, with torch.set_default_dtype(torch.float32)", lambda: session(x=x))
    for device in DEVICES:
        with _set(torch.set_default_dtype, torch.float64, torch.float32):
            if device == "cpu":
                with pipeline.plan(device=device).load() as double:
                    assert double(x=x)["y"].dtype is torch.float64
    with plans[1].load() as session:
        assert torch.equal(session(x=x)["y"], x + 1)


def test_random_states_are_put_back_also_after_an_error():
    before = _random_states()
    with contextlib.suppress(ValueError), same_random_state():
        torch.rand(3), random.random(), numpy.random.randn(3)
        raise ValueError
    assert _random_states() == before


def test_modes_of_its_own_end_with_their_block():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        with own_modes():
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            assert torch.empty(1).device.type == "cpu"
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.empty(1).device.type == "meta"

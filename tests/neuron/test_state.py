"""A program keeps no state: stages that do are refused when they are compiled, and others are not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import Pipeline, TensorSpec
from orchestrator.errors import CompileError
from orchestrator.stage import ModelWrapper
from tests.neuron.programs import application, emulated_backend, load, program, spec

SQUARE = program({"x": spec(2, 4)}, {"output": spec(2, 4)})
TABLE = torch.zeros(4)


class Keeps(nn.Module):
    """Runs a function on itself and its input, below another module."""

    def __init__(self, step: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("k", torch.zeros(4))
        self.inner.plain = torch.zeros(4)
        self.inner.h = None
        self.inner.runs = 0
        self.inner.cache = []
        self.inner.table = {}
        self.inner.past = SimpleNamespace(layers=[SimpleNamespace(keys=torch.zeros(4))])
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(self.inner, x)


def _buffer(m: Any, x: torch.Tensor) -> Any:
    m.k = m.k + 1
    return x + m.k


def _write(m: Any, x: torch.Tensor) -> Any:
    m.k.add_(1)
    return x + m.k


def _other_data(m: Any, x: torch.Tensor) -> Any:
    m.k.data = m.k.data + 1
    return x + m.k


def _plain(m: Any, x: torch.Tensor) -> Any:
    m.plain = m.plain + 1
    return x + m.plain


def _first_none(m: Any, x: torch.Tensor) -> Any:
    m.h = x if m.h is None else m.h + x
    return m.h * 1


def _delay(m: Any, x: torch.Tensor) -> Any:
    before, m.h = m.h, x
    return x if before is None else before


def _counter(m: Any, x: torch.Tensor) -> Any:
    m.runs += 1
    return x + m.runs


def _grows(m: Any, x: torch.Tensor) -> Any:
    m.cache.append(x)
    return sum(m.cache)


def _table(m: Any, x: torch.Tensor) -> Any:
    m.table[len(m.table)] = 1
    return x + len(m.table)


def _deep(m: Any, x: torch.Tensor) -> Any:
    layer = m.past.layers[0]
    layer.keys = layer.keys + x[0]
    return x + layer.keys


STATE = {
    "inner.k": (_buffer, _write, _other_data),
    "inner.plain": (_plain,),
    "inner.h": (_first_none, _delay),
    "inner.runs": (_counter,),
    "inner.cache": (_grows,),
    "inner.table": (_table,),
    "inner.past.layers[0].keys": (_deep,),
}


@pytest.mark.parametrize(("path", "step"), [(path, step) for path, steps in STATE.items() for step in steps])
def test_state_in_attributes_is_refused(tmp_path: Path, path: str, step: Any) -> None:
    module = Keeps(step)
    with emulated_backend() as backend, pytest.raises(CompileError) as excinfo:
        load(backend, application(module, SQUARE, name="net"), tmp_path)
    text = str(excinfo.value)
    assert f"each run changes {path!r}" in text
    for part in ("program 'p' of stage 'net'", "keeps no state", "an input and an output"):
        assert part in text
    assert (module.inner.runs, module.inner.cache, module.inner.h) == (0, [], None)


def _counting() -> Any:
    runs = 0

    def count(x: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return x + runs

    return count


def _into_global(x: torch.Tensor) -> torch.Tensor:
    TABLE.add_(1)
    return x + TABLE


class _Object:
    def __init__(self) -> None:
        self.runs = 0

    def run(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x + self.runs

    __call__ = run


class _Wrapper(ModelWrapper):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = {"x": None}
        self.runs = 0

    def forward(self, *tensors: Any, **keywords: Any) -> Any:
        self.runs += 1
        return tensors[0] + self.runs


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("count.runs", _counting()),
        ("_into_global.TABLE", _into_global),
        ("__self__.runs", _Object().run),
        ("runs", _Object()),
        ("func.__self__.runs", functools.partial(_Object().run)),
        ("runs", _Wrapper()),
    ],
)
def test_state_around_functions_is_refused(tmp_path: Path, path: str, target: Any) -> None:
    with emulated_backend() as backend, pytest.raises(CompileError, match=rf"each run changes '{path}'"):
        load(backend, application(target, SQUARE, inputs=("x",)), tmp_path)


def _lazy(m: Any, x: torch.Tensor) -> Any:
    if m.h is None or m.h.shape != x.shape:
        m.h = torch.ones_like(x)
        m.table["made"] = torch.ones(4)
    return x + m.h + m.table["made"]


def _left_there(m: Any, x: torch.Tensor) -> Any:
    m.h = torch.softmax(x, -1)
    m.table["last"] = m.h
    return m.h * 1


def _the_same(m: Any, x: torch.Tensor) -> Any:
    m.runs, m.cache = x.shape[0], [x.shape[1], "four"]
    m.k = m.k
    m.plain = m.plain.to("cpu")
    return x + m.runs


def _scratch(m: Any, x: torch.Tensor) -> Any:
    scratch = torch.zeros_like(x)
    scratch.add_(x)
    return scratch


@pytest.mark.parametrize("step", [_lazy, _left_there, _the_same, _scratch])
def test_what_the_next_run_does_not_read_is_no_state(tmp_path: Path, step: Any) -> None:
    x = torch.randn(2, 4)
    reference = Keeps(step)(x)
    with emulated_backend() as backend:
        run = load(backend, application(Keeps(step), SQUARE), tmp_path)["p"]
        assert torch.equal(backend.download(run(backend.upload(x))[0]), reference)


@pytest.mark.parametrize(
    "module",
    [
        nn.utils.spectral_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.Sequential(nn.BatchNorm1d(4), nn.Dropout()),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_modules_of_torch_keep_none(tmp_path: Path, module: nn.Module) -> None:
    form = program({"x": spec(2, 4)}, {"output": spec(2, 4)})
    x = torch.randn(2, 4)
    with emulated_backend() as backend:
        run = load(backend, application(module, form, inputs=("x",)), tmp_path)["p"]
        value = backend.download(run(backend.upload(x))[0])
    torch.testing.assert_close(value, module.eval()(x))


def test_a_hook_may_collect(tmp_path: Path) -> None:
    collection: list[torch.Tensor] = []
    module = nn.Linear(4, 4)
    module.register_forward_hook(lambda *_: collection.append(torch.zeros(1)))
    with emulated_backend() as backend:
        load(backend, application(module, SQUARE, inputs=("x",)), tmp_path)


@pytest.mark.parametrize("step", [_buffer, _first_none, _grows])
def test_a_pipeline_refuses_it_too(step: Any) -> None:
    pipeline = Pipeline("one")
    x = pipeline.input("x", TensorSpec((2, 4)))
    pipeline.output("y", pipeline.add("net", Keeps(step))(x))
    with pytest.raises(CompileError, match="keeps no state"):
        pipeline.plan(device="neuron-emulated").load()

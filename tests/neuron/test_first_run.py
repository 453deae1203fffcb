"""K3: what a wrapper builds is built once, before; what a first run draws, reads or makes is refused, with the way out.

By hand all of these stages are right, and so they are on 'cpu'. Compiled without a word, their programs would draw anew
in each request, keep what a file said once, or have weights that no checkpoint knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from orchestrator import CompileError, Dim, ModelWrapper, Pipeline, TensorSpec
from tests.kit import refuses

DEVICE = "neuron-emulated"
SPEC = TensorSpec((Dim("n", buckets=(2, 4)), 4))


def plan_of(target: Any, device: str = DEVICE, **config: Any) -> Any:
    pipeline = Pipeline("p")
    pipeline.output("y", pipeline.add("s", target, config=config)(pipeline.input("x", SPEC)))
    return pipeline.plan(device=device)


# What a wrapper builds.


class Own(ModelWrapper):
    """Makes its model itself, and calls it in a forward of its own; ``model_cls`` is not set."""

    inputs = {"x": None}  # noqa: RUF012

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.make = make

    def make_model(self) -> nn.Module:
        return self.make().eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.model(x)


def from_array(folder: Path) -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.data = torch.from_numpy(numpy.load(folder / "w.npy"))
    return layer


def from_checkpoint(folder: Path) -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    layer.load_state_dict(load_file(folder / "w.safetensors"))
    return layer


def from_pickle(folder: Path) -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    layer.load_state_dict(torch.load(folder / "w.pt"))
    return layer


def write(folder: Path, weight: torch.Tensor) -> None:
    numpy.save(folder / "w.npy", weight.numpy())
    save_file({"weight": weight}, folder / "w.safetensors")
    torch.save({"weight": weight}, folder / "w.pt")


@pytest.mark.parametrize("make", [from_array, from_checkpoint, from_pickle])
@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_a_wrapper_has_the_weights_that_its_file_has_now(device: str, make: Any, tmp_path: Path):
    x = torch.rand(2, 4)
    for _ in range(2):
        weight = torch.randn(4, 4)
        write(tmp_path, weight)
        with plan_of(Own(lambda: make(tmp_path)), device).compile(tmp_path / "store").load() as session:
            assert torch.allclose(session(x=x)["y"], x @ weight.t(), atol=1e-5)
    if device == DEVICE:
        assert len(list((tmp_path / "store").glob("*/*.safetensors"))) <= 2  # one artifact, two sizes


def test_a_model_with_random_weights_is_one_model():
    wrapper, x = Own(lambda: nn.Linear(4, 4)), torch.rand(2, 4)
    with plan_of(wrapper).load() as session:
        first, second = session(x=x)["y"], session(x=x)["y"]
    assert torch.equal(first, second)
    assert torch.allclose(first, wrapper.model(x), atol=1e-5)


def test_what_a_wrapper_reads_beside_its_weights_makes_another_program(tmp_path: Path):
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = float((tmp_path / "factor").read_text())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    for factor in (2.0, 3.0):
        (tmp_path / "factor").write_text(str(factor))
        with plan_of(Own(Scale)).compile(tmp_path / "store").load() as session:
            assert torch.equal(session(x=torch.ones(2, 4))["y"], torch.full((2, 4), factor))


# What a first run makes.


class MakesLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> Any:
        if self.inner is None:
            self.inner = nn.Linear(4, 4).eval()
        return self.inner(x)


class MakesBuffer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.arange(4.0))
        return x + self.table  # type: ignore[operator]


class MakesWeight(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.arange(4.0))
        return x * self.scale


@pytest.mark.parametrize(
    ("kind", "name"), [(MakesLayer, "inner"), (MakesBuffer, "table"), (MakesWeight, "scale")]
)
def test_parts_made_by_a_first_run_are_refused_and_found_once_they_are_there(kind: Any, name: str):
    module, x = kind().eval(), torch.rand(2, 4)
    error = refuses(CompileError, ("first run makes", f"'{name}'", "__init__"), plan_of(module).load)
    assert name in error.made[0]
    with torch.no_grad():
        reference = module(x)  # the way out: it is called once by hand
    with plan_of(module).load() as session:
        assert torch.allclose(session(x=x)["y"], reference, atol=1e-5)


class Remembers(nn.Module):
    """Computes a table when it is first needed, anew for each size."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, torch.Tensor] = {}
        self.longest: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[0]
        if size not in self.tables:
            self.tables[size] = torch.arange(4.0 * size).reshape(size, 4)
        if self.longest is None or self.longest.shape[0] < size:
            self.longest = torch.ones(size, 4)
        return x + self.tables[size] + self.longest[:size]


def test_tables_computed_in_a_first_run_are_computed_in_each_program():
    module = Remembers().eval()
    with plan_of(module).load() as session:
        for size in (4, 2, 4):
            x = torch.rand(size, 4)
            assert torch.equal(session(x=x)["y"], Remembers()(x))


# What a run draws.

OWN = torch.Generator()

DRAWS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "rand": (lambda x: x + torch.rand(4), "aten.rand"),
    "in place": (lambda x: x + torch.empty(4).normal_(), "aten.normal_"),
    "like": (lambda x: x + torch.randn_like(x), "aten.randn_like"),
    "an order": (lambda x: x[:, torch.randperm(4)], "aten.randperm"),
    "dropout": (lambda x: functional.dropout(x, 0.5, training=True), "aten.dropout"),
    "sampling": (lambda x: x + torch.multinomial(torch.ones(4), 1), "aten.multinomial"),
    "a seed of its own": (lambda x: (torch.manual_seed(0), x + torch.rand(4))[1], "aten.rand"),
    "a generator of its own": (lambda x: x + torch.randn(x.shape, generator=OWN), "aten.randn.generator"),
    "Python's": (lambda x: x + random.random(), "'random'"),
    "numpy's": (lambda x: x + float(numpy.random.rand()), "'numpy.random'"),
}


@pytest.mark.parametrize("case", DRAWS)
def test_a_stage_that_draws_is_refused_when_compiled_whatever_it_draws_with(case: str):
    stage, operation = DRAWS[case]
    refuses(CompileError, ("draws random numbers", operation, "Draw on the host"), plan_of(stage).load)


class Quiet(nn.Module):
    """Has all that might draw in training and does not now."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()
        self.recur = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.attend = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.leaky = nn.RReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.leaky(self.recur(self.drop(x[None]))[0])
        value = functional.scaled_dot_product_attention(value, value, value)
        return self.attend(value, value, value)[0][0]  # type: ignore[no-any-return]


def test_what_draws_in_training_only_is_compiled():
    module, x = Quiet().eval(), torch.rand(2, 4)
    with plan_of(module).load() as session, torch.no_grad():
        assert torch.allclose(session(x=x)["y"], module(x), atol=1e-5)


# What a run reads.


@pytest.mark.parametrize("kind", ["an array", "a pickle", "a text"])
def test_a_stage_that_reads_a_file_while_it_runs_is_refused_when_compiled(kind: str, tmp_path: Path):
    write(tmp_path, torch.ones(4, 4))
    (tmp_path / "w.txt").write_text("1.0")
    read: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
        "an array": (lambda x: x + torch.from_numpy(numpy.load(tmp_path / "w.npy")[0]), "w.npy"),
        "a pickle": (lambda x: x + torch.load(tmp_path / "w.pt")["weight"][0], "w.pt"),
        "a text": (lambda x: x + float((tmp_path / "w.txt").read_text()), "w.txt"),
    }
    stage, name = read[kind]
    error = refuses(CompileError, ("reads the file", name, "__init__"), plan_of(stage).load)
    assert error.files[0] == str(tmp_path / name)


def test_what_python_reads_to_import_a_module_is_not_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "imported_late.py").write_text("FACTOR = 3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def stage(x: torch.Tensor) -> Any:
        import imported_late  # type: ignore[import-not-found]

        return x * imported_late.FACTOR

    with plan_of(stage).load() as session:
        assert torch.equal(session(x=torch.ones(2, 4))["y"], torch.full((2, 4), 3.0))


# A module without content (K19).


class Net(nn.Module):
    def __init__(self, computes: bool) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second.weight = self.first.weight
        if computes:
            self.register_buffer("table", torch.ones(4), persistent=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(self.second(self.first(x))) + torch.ones(4)


def on_meta(computes: bool = False) -> nn.Module:
    with torch.device("meta"):
        return Net(computes).eval()


def test_a_module_on_meta_runs_with_the_weights_of_its_checkpoint(tmp_path: Path):
    net, x = Net(computes=False).eval(), torch.rand(2, 4)
    weights = net.state_dict()
    del weights["second.weight"]  # tied: the file has it once
    save_file(weights, tmp_path / "w.safetensors")
    plan = plan_of(on_meta(), checkpoint=tmp_path / "w.safetensors")
    assert dict(plan.weights) == dict(plan_of(net).weights)
    with plan.load() as session, torch.no_grad():
        assert torch.allclose(session(x=x)["y"], net(x), atol=1e-5)


def test_what_nobody_gives_a_module_on_meta_is_named():
    refuses(CompileError, ("'first.weight'", "meta device", "checkpoint"), plan_of(on_meta()).load)
    refuses(CompileError, ("'first.weight'", "to_empty"), plan_of(on_meta(), "cpu").load)
    weights = Net(computes=True).state_dict()
    plan = plan_of(on_meta(computes=True), checkpoint=weights)
    refuses(CompileError, ("'table'", "no checkpoint has it"), plan.load)

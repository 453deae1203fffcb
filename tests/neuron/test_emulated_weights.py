"""Weights, constants and dtypes of programs on the emulated device: what is compiled in, and what is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator.errors import CompileError
from orchestrator_neuron.emulated.backend import EmulatedBackend
from tests.neuron.programs import Affine, application, emulated_backend, load, program, spec

PLAIN = program({"x": spec("batch", 4)}, {"output": spec("batch", 3)}, sizes=[{"batch": 2}, {"batch": 8}])


@pytest.fixture
def backend() -> Iterator[EmulatedBackend]:
    with emulated_backend(tp_degree=2) as backend:
        yield backend


def test_the_program_runs_and_not_the_module(backend: EmulatedBackend, tmp_path: Path) -> None:
    runs = itertools.count()

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            next(runs)
            return x * self.weight

    module = Counting()
    run = load(backend, application(module, program({"x": spec(2)}, {"output": spec(2)})), tmp_path)["p"]
    before = repr(runs)
    module.weight.data.fill_(9)
    module.forward = None  # type: ignore[method-assign,assignment]
    assert backend.download(run(backend.upload(torch.ones(2)))[0]).tolist() == [1, 1]
    assert repr(runs) == before


def test_weights_come_from_the_checkpoint(backend: EmulatedBackend, tmp_path: Path) -> None:
    item = application(Affine(), PLAIN)
    backend.build(item, tmp_path)
    x = torch.randn(2, 4)
    for seed in (5, 6):
        path = tmp_path / f"{seed}.safetensors"
        save_file(Affine(seed=seed).state_dict(), path)
        other = application(Affine(), PLAIN, config={"checkpoint": str(path)})
        assert backend.key(other) == backend.key(item)
        run = backend.load_application(other, tmp_path)["p"]
        assert torch.equal(backend.download(run(backend.upload(x))[0]), Affine(seed=seed)(x))
    path = tmp_path / "short.safetensors"
    save_file({"scale": torch.ones(3)}, path)
    before = list(backend.open_device.allocated_bytes)
    with pytest.raises(CompileError, match=r"2 missing: 'model.weight', 'model.bias'"):
        backend.load_application(application(Affine(), PLAIN, config={"checkpoint": str(path)}), tmp_path)
    assert backend.open_device.allocated_bytes == before


def test_artifacts_hold_no_weights(backend: EmulatedBackend, tmp_path: Path) -> None:
    module = nn.Linear(300, 300)
    form = program({"x": spec(1000, 300)}, {"output": spec(1000, 300)})
    backend.build(application(module, form), tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 50_000


def test_what_a_stage_holds_besides_weights_is_compiled_in(backend: EmulatedBackend, tmp_path: Path) -> None:
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = torch.tensor([1.0, 2.0])
            self.register_buffer("mask", torch.ones(2), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.mask + self.offset + torch.tensor([10.0, 20.0]) + closed

    closed = torch.tensor([100.0, 100.0])
    form = program({"x": spec(2)}, {"output": spec(2)})
    backend.build(application(Constants(), form), tmp_path)
    later = Constants()
    later.offset, later.mask = torch.zeros(2), torch.zeros(2)
    run = backend.load_application(application(later, form), tmp_path)["p"]
    assert backend.download(run(backend.upload(torch.ones(2)))[0]).tolist() == [111, 122]


def test_a_module_that_a_function_closes_over_is_compiled_in(
    backend: EmulatedBackend, tmp_path: Path
) -> None:
    module, x = Affine(), torch.randn(2, 4)
    form = program({"x": spec(2, 4)}, {"output": spec(2, 3)})
    run = load(backend, application(lambda x: module(x), form), tmp_path)["p"]
    assert torch.equal(backend.download(run(backend.upload(x))[0]), Affine()(x))
    assert backend.open_device.allocated_bytes[0] == (12 + 3 + 3 + 3 + 6) * 4


def test_tied_weights_are_on_the_device_once(backend: EmulatedBackend, tmp_path: Path) -> None:
    class TwoNames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(ids))

    module = TwoNames()
    form = program({"ids": spec(3, dtype=torch.int32)}, {"output": spec(3, 6)}, dtypes={"ids": torch.int64})
    run = load(backend, application(module, form), tmp_path)["p"]
    assert backend.open_device.allocated_bytes == [6 * 4 * 4 + 3 * 6 * 4] * 2
    ids = torch.tensor([0, 5, 2])
    assert torch.equal(backend.download(run(backend.upload(ids.int()))[0]), module(ids))


def test_int64_is_held_in_32_bits(backend: EmulatedBackend, tmp_path: Path) -> None:
    class Next(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            assert ids.dtype is torch.int64
            return ids + 1

    int32s = spec(3, dtype=torch.int32)
    form = program({"ids": int32s}, {"output": int32s}, dtypes={"ids": torch.int64})
    run = load(backend, application(Next(), form), tmp_path)["p"]
    value = backend.download(run(backend.upload(torch.arange(3, dtype=torch.int32)))[0])
    assert (value.dtype, value.tolist()) == (torch.int32, [1, 2, 3])


def test_torch_dtype_converts_weights_and_values(tmp_path: Path) -> None:
    half = torch.bfloat16
    form = program({"x": spec(2, 4, dtype=half)}, {"output": spec(2, 3, dtype=half)})
    with emulated_backend(torch_dtype="bfloat16") as backend:
        run = load(backend, application(Affine(), form), tmp_path)["p"]
        x = torch.randn(2, 4, dtype=half)
        assert torch.equal(backend.download(run(backend.upload(x))[0]), Affine().to(half)(x))
        assert backend.open_device.allocated_bytes[0] == (12 + 3 + 3 + 3) * 2 + 12


@pytest.mark.parametrize("place", ["buffer", "attribute", "input"])
def test_a_program_keeps_no_state(backend: EmulatedBackend, tmp_path: Path, place: str) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("buffer", torch.zeros(2))
            self.attribute = torch.zeros(2)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return {"input": input}.get(place, getattr(self, place, input)).add_(1) + input

    item = application(Counts(), program({"input": spec(2)}, {"output": spec(2)}))
    with pytest.raises(CompileError, match="keeps no state"):
        load(backend, item, tmp_path)


def test_a_stage_that_zeros_do_not_suit_is_loaded_all_the_same(
    backend: EmulatedBackend, tmp_path: Path
) -> None:
    item = application(torch.linalg.inv, program({"A": spec(2, 2)}, {"output": spec(2, 2)}), inputs=("A",))
    run = load(backend, item, tmp_path)["p"]
    assert torch.equal(backend.download(run(backend.upload(torch.eye(2)))[0]), torch.eye(2))

"""What is compiled in: it is weighed before anything is loaded, and 64-bit integers keep their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.errors import CompileError
from orchestrator_neuron.emulated.backend import EmulatedBackend
from tests.neuron.programs import application, emulated_backend, load, program, spec

FORM = program({"x": spec(3, 4)}, {"output": spec(3, 4)})
TABLE = torch.ones(100, 4)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(100, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table.sum(0)


CONSTANTS = {
    "closure": (lambda x: x + TABLE.sum(0), 1600),
    "attribute": (Plain(), 1600),
    "literal": (lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]), 16),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_constants_are_weighed_with_what_requests_take(tmp_path: Path, kind: str) -> None:
    target, size = CONSTANTS[kind]
    item = application(target, FORM)
    backend = EmulatedBackend("neuron-emulated")
    for budget, fits in ((size + 95, False), (size + 96, True)):
        folder = tmp_path / str(budget)
        folder.mkdir()
        backend.build(item, folder)
        backend.open(budget, reserved=48)
        try:
            if fits:
                run = backend.load_application(item, folder)["p"]
                run(backend.upload(torch.ones(3, 4)))
                continue
            with pytest.raises(CompileError) as excinfo:
                backend.load_application(item, folder)
            assert backend.open_device.allocated_bytes == [0]
        finally:
            backend.close()
        for part in (f"constants {size:,}", f"of {budget:,}", "requests take 48", "a plan cannot count them"):
            assert part in str(excinfo.value)


def test_routing_inputs_are_weighed(tmp_path: Path) -> None:
    form = program({"x": spec(3, 4)}, {"output": spec(3, 4)}, route=5)
    with emulated_backend(budget=48 + 19) as backend, pytest.raises(CompileError, match="routing inputs 20"):
        load(backend, application(nn.ReLU(), form, inputs=("x",)), tmp_path)


INT32 = spec(2, dtype=torch.int32)
INTEGERS = program({"x": INT32}, {"output": INT32}, dtypes={"x": torch.int64})


class Large(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.tensor([2**40])
        self.register_buffer("persistent", torch.tensor([2**41]))
        self.register_buffer("aside", torch.tensor([2**42]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = x * self.plain + self.persistent + self.aside + torch.tensor(2**43) + 2**44
        assert whole.dtype is torch.int64
        return whole // 2**38


def test_integers_of_64_bits_keep_their_values_inside(tmp_path: Path) -> None:
    with emulated_backend() as backend:
        run = load(backend, application(Large(), INTEGERS), tmp_path)["p"]
        value = backend.download(run(backend.upload(torch.tensor([1, 3], dtype=torch.int32)))[0])
        assert value.tolist() == Large()(torch.tensor([1, 3])).tolist()


@pytest.mark.parametrize("factor", [2**30, -(2**30) - 1])
def test_an_output_beyond_32_bits_raises(tmp_path: Path, factor: Any) -> None:
    with emulated_backend() as backend:
        run = load(backend, application(lambda x: x * factor, INTEGERS), tmp_path)["p"]
        (fits,) = run(backend.upload(torch.tensor([1, -1], dtype=torch.int32)))
        assert backend.download(fits).tolist() == [factor, -factor]
        with pytest.raises(RuntimeError, match="'output' is beyond the 32 bits"):
            run(backend.upload(torch.tensor([2, 1], dtype=torch.int32)))


class Draws(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(3, 4)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_program_that_draws_is_no_program(tmp_path: Path, ranks: int) -> None:
    words = (
        r"draws random numbers with aten\.randn\.default \(at test_constants\.py:\d+: return x .*on the host"
    )
    with emulated_backend(tp_degree=ranks) as backend, pytest.raises(CompileError, match=words):
        backend.build(application(Draws(), FORM), tmp_path)


def test_ranks_that_hold_other_values_are_told(tmp_path: Path) -> None:
    with emulated_backend(tp_degree=2) as backend:
        handle = backend.upload(torch.zeros(3, 4))
        handle[1][0].payload.add_(1)
        with pytest.raises(RuntimeError, match=r"'sharded'.*random numbers.*on the host"):
            backend.download(handle)

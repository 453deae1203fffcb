"""A fingerprint of a model: which tensors count, and how; code that was traced, compiled or decorated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.stage import ModelWrapper
from tests.fingerprint.holders import closing_over, key


class Table(nn.Module):
    """A tensor that is made when the module is, held in one way or another."""

    def __init__(self, how: str, value: float) -> None:
        super().__init__()
        table = torch.full((3,), float(value))
        if how == "parameter":
            self.table = nn.Parameter(table)
        elif how in ("persistent", "passing"):
            self.register_buffer("table", table, persistent=how == "persistent")
        elif how == "listed":
            self.tables = [nn.Parameter(table)]
        else:
            self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table


@pytest.mark.parametrize(
    ("how", "counts"),
    [("parameter", False), ("persistent", False), ("passing", True), ("plain", True), ("listed", True)],
)
def test_a_tensor_that_no_checkpoint_fills_counts_by_content(how: str, counts: bool):
    assert key(Table(how, 1)) == key(Table(how, 1))
    assert (key(Table(how, 1)) != key(Table(how, 2))) == counts
    wrapped = [ModelWrapper({"how": how, "value": 1}, Table) for _ in range(2)]
    _ = wrapped[1].model
    assert key(wrapped[0]) == key(wrapped[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.to(torch.bfloat16),
        lambda t: t.to(torch.complex64).conj(),
        lambda t: t.expand(4, 6),
        lambda t: t.t()[1:, ::2],
        lambda t: t.to_sparse(),
        lambda t: torch.quantize_per_tensor(t, 0.5, 0, torch.qint8),
        lambda t: t.numpy(),
        lambda t: t > 3,
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_content_of_every_kind_of_tensor(make: Callable[[torch.Tensor], Any]):
    one, same, other = (
        make(torch.arange(start, start + 6.0).expand(6, 6).contiguous()[:1]) for start in (0, 0, 1)
    )
    assert key(closing_over(one)) == key(closing_over(same)) != key(closing_over(other))


def test_shared_modules_and_tied_weights_count():
    relu, line = nn.ReLU(), nn.Linear(4, 4)
    chains = [
        nn.Sequential(relu),
        nn.Sequential(relu, relu),
        nn.Sequential(line, line),
        nn.Sequential(line, nn.Linear(4, 4)),
    ]
    assert len({key(chain) for chain in chains}) == 4


def test_traced_and_scripted_modules_count_by_their_code():
    def traced(function: Any) -> Any:
        return torch.fx.symbolic_trace(function)

    programs = [traced(lambda x: x + 1), traced(lambda x: x + 1), traced(lambda x: x + 2)]
    keys = [key(program, inputs=("x",)) for program in programs]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_counts_as_what_it_was_made_from():
    compiled = functools.partial(torch.compile, backend="eager")
    keys = [key(compiled(nn.Linear(4, width)), inputs=("x",)) for width in (4, 4, 5)]
    assert keys[0] == keys[1] != keys[2]
    keys = [key(compiled(closing_over(value))) for value in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_a_decorated_function_counts_as_itself():
    keys = [key(torch.no_grad()(closing_over(value))) for value in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]

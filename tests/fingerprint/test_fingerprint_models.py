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
    wrappers = [ModelWrapper({"how": how, "value": 1}, Table) for _ in range(2)]
    _ = wrappers[1].model
    assert key(wrappers[0]) == key(wrappers[1])


class Saying(ModelWrapper):
    """A wrapper that says which of its attributes count."""

    def __init__(self, factor: float, cache: object = None, width: int = 4) -> None:
        super().__init__(width, lambda config: nn.Linear(config, 2))
        self.factor = factor
        self.cache = cache

    def forward(self, x: torch.Tensor) -> Any:
        return self.model(x) * self.factor

    def key_parts(self) -> list[object] | None:
        return [self.factor]


class SayingMore(Saying):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) + 1


class SayingNothing(Saying):
    def key_parts(self) -> None:
        return None


@pytest.mark.parametrize("hold", [lambda wrapper: wrapper, lambda wrapper: wrapper.forward, closing_over])
def test_a_wrapper_may_say_which_objects_count(hold: Callable[[Any], Any]):
    # A generator cannot be read: where it counts, no two keys are equal.
    caches = [(number for number in range(3)), None, "other"]
    assert len({key(hold(Saying(2.0, cache))) for cache in caches}) == 1
    assert len({key(hold(SayingNothing(2.0, cache))) for cache in caches}) == len(caches)
    stages = [Saying(2.0), Saying(3.0), SayingMore(2.0)]
    assert len({key(hold(stage)) for stage in stages}) == len(stages)


def test_the_model_of_a_wrapper_counts_whatever_it_says():
    before, after = Saying(2.0), Saying(2.0)
    _ = after.model
    assert key(before) == key(after)
    assert key(Saying(2.0, width=4)) != key(Saying(2.0, width=5))


def test_a_wrapper_that_fails_to_say_its_key_is_like_no_other():
    class Failing(Saying):
        def key_parts(self) -> list[object]:
            raise ValueError("not now")

    assert key(Failing(2.0)) != key(Failing(2.0))


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
    compiled_net = functools.partial(torch.compile, backend="eager")
    keys = [key(compiled_net(nn.Linear(4, width)), inputs=("x",)) for width in (4, 4, 5)]
    assert keys[0] == keys[1] != keys[2]
    keys = [key(compiled_net(closing_over(value))) for value in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]


def test_a_decorated_function_counts_as_itself():
    keys = [key(torch.no_grad()(closing_over(value))) for value in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]

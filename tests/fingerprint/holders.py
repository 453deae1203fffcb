"""Ways to hold a value, and values, for the tests of fingerprints."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from orchestrator.fingerprint import fingerprint
from orchestrator.stage import ModelWrapper, make_stage
from orchestrator.store import content_key

__all__ = ["HOLDERS", "VALUES", "closing_over", "key", "module"]


def key(target: Any, **more: Any) -> str:
    return content_key(fingerprint(make_stage("stage", target, **more)))


def module(source: str, name: str = "users_own") -> ModuleType:
    """A module of a user's; it is not on disk."""
    user_module = ModuleType(name)
    exec(compile(source, name, "exec"), user_module.__dict__)
    return user_module


def test_weights_do_not_count_but_their_forms_do():
    assert key(nn.Linear(4, 3)) == key(nn.Linear(4, 3))
    assert key(nn.BatchNorm1d(4)) == key(nn.BatchNorm1d(4))
    forms = [nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(4, 3, bias=False), nn.Linear(4, 3).double()]
    assert len({key(form) for form in forms}) == len(forms)


def closing_over(value: Any) -> Callable[[Any], Any]:
    def run(x: Any) -> Any:
        return x * value

    return run


def defaulting_to(value: Any) -> Callable[..., Any]:
    def run(x: Any, y: Any = value, *, z: Any = value) -> Any:
        return x * y * z

    return run


def reading_a_global(value: Any) -> Any:
    user_module = module(
        "def inner(x):\n    return x * VALUE\ndef run(x):\n    return (lambda y: inner(y))(x)\n"
    )
    user_module.VALUE = value
    return user_module.run


def reading_a_module(value: Any) -> Any:
    user_module = module("def run(x):\n    return settings.deep.VALUE * x\n")
    user_module.settings = module("", "settings")
    user_module.settings.deep = module("OTHER = 1\n", "settings.deep")
    user_module.settings.deep.VALUE = value
    return user_module.run


def partially(value: Any) -> Any:
    return functools.partial(closing_over(1), x=value)


def held_by_a_module(value: Any) -> Any:
    net = nn.Identity()
    net._private = value
    return net


def held_by_an_object(value: Any) -> Any:
    holder = nn.Identity()
    holder.helper = SimpleNamespace(options=[{"deep": (value,)}])
    holder.helper.me = holder
    return holder


def held_in_slots(value: Any) -> Any:
    holder = nn.Identity()
    holder.helper = Slotted(value)
    return holder


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, x: Any) -> Any:
        return x


def hooked(value: Any) -> Any:
    net = nn.Identity()
    net.register_forward_hook(lambda module, args, output: output * value)
    return net


def configured(value: Any) -> Any:
    return Wrapper({"value": value})


class Wrapper(ModelWrapper):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Kind(enum.Enum):
    A = 1
    B = 2


class Number(float):
    pass


HOLDERS = (
    closing_over,
    defaulting_to,
    reading_a_global,
    reading_a_module,
    held_by_a_module,
    held_by_an_object,
    held_in_slots,
    hooked,
    partially,
    configured,
)
VALUES: tuple[Callable[[], Any], ...] = (
    lambda: 1,
    lambda: 1.0,
    lambda: True,
    lambda: "1",
    lambda: b"1",
    lambda: None,
    lambda: (1, 2),
    lambda: [1, 2],
    lambda: {"a": 1},
    lambda: {"a": 2},
    lambda: {"a", "b"},
    lambda: {"a", "c"},
    lambda: Kind.A,
    lambda: Kind.B,
    lambda: Number(1),
    lambda: Number(2),
    lambda: torch.float16,
    lambda: torch.tensor([1.0, 2.0]),
    lambda: torch.tensor([1.0, 3.0]),
    lambda: torch.tensor([1.0, 2.0], dtype=torch.float64),
    lambda: SimpleNamespace(a=1),
    lambda: SimpleNamespace(a=2),
    lambda: closing_over(1),
    lambda: closing_over(2),
    lambda: lambda x: x + 1,
    lambda: lambda x: x + 2,
    lambda: torch.relu,
    lambda: torch.tanh,
    lambda: nn.ReLU(),
    lambda: nn.Tanh(),
    lambda: Path("a"),
    lambda: Path("b"),
    lambda: slice(1, 2),
    lambda: range(3),
    lambda: torch.Size((1, 2)),
)

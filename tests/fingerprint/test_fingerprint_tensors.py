"""Fingerprints of tensors without content, and of hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator import Pipeline, TensorSpec
from orchestrator.stage import ModelWrapper
from tests.fingerprint.holders import closing_over, key

# Tensors without content


def contentless() -> Iterator[torch.Tensor]:
    yield torch.ones(2, 3, device="meta")
    yield FakeTensorMode().from_tensor(torch.ones(2, 3))


def test_a_tensor_without_content_is_equal_to_itself_alone():
    for one, other in zip(contentless(), contentless(), strict=True):
        assert key(closing_over([one])) == key(closing_over([one])) != key(closing_over([other]))


def test_a_stage_that_keeps_what_it_was_planned_with_compiles():
    inputs: list[torch.Tensor] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        inputs.append(x.clone())
        return x * 2

    pipeline = Pipeline("keeper")
    pipeline.output("y", pipeline.add("look", look)(pipeline.input("x", TensorSpec((2, 3)))))
    plan = pipeline.plan("cpu")
    inputs.extend(contentless())
    with plan.load() as session:
        assert torch.equal(session(x=torch.ones(2, 3))["y"], torch.full((2, 3), 2.0))


def test_a_wrapper_whose_outline_lacks_content_counts_by_its_model():
    class Net(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.table = torch.full((3,), value)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table

    keys = [key(ModelWrapper({"value": value}, Net)) for value in (1.0, 1.0, 2.0)]
    assert keys[0] == keys[1] != keys[2]


# Hooks


@pytest.mark.parametrize("kind", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_hooks_of_all_modules_count(kind: str):
    register = getattr(torch.nn.modules.module, kind)
    net = nn.Linear(2, 2)
    keys = [key(net)]
    for value in (1, 1, 2):
        hook = register(lambda *_, value=value: None if value else value)
        keys.append(key(net))
        hook.remove()
    assert keys[0] == key(net) != keys[1] == keys[2] != keys[3]


def test_what_a_hook_is_given_counts():
    def hook(*_: Any) -> None:
        return None

    keys = []
    for more in (False, True):
        net = nn.Identity()
        net.register_forward_hook(hook, with_kwargs=more)
        keys.append(key(net))
    assert keys[0] != keys[1]

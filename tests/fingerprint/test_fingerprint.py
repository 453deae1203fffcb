"""A fingerprint tells apart what would compile to something else, and nothing else, in every process alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.stage import ModelWrapper
from tests.fingerprint.holders import HOLDERS, VALUES, closing_over, key, module


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__)
def test_every_value_counts_wherever_it_is_held(holder: Callable[[Any], Any]):
    keys = [key(holder(make())) for make in VALUES]
    assert len(set(keys)) == len(VALUES)
    assert keys == [key(holder(make())) for make in VALUES]


def test_what_is_not_used_does_not_count():
    one, two = (
        module(f"def run(x):\n    # {n}\n    return x\ndef other(x):\n    return {n}\n") for n in (1, 2)
    )
    assert key(one.run) == key(two.run)


def test_code_counts_where_no_source_tells_it_apart():
    same_line = [lambda x: x + 1, lambda x: x + 2, lambda x: x * 1]
    assert len({key(each) for each in same_line}) == 3
    sources = [f"class Net:\n    def __call__(self, x):\n        return x {sign} 1\n" for sign in "+-"]
    assert len({key(module(source).Net()) for source in sources}) == 2


def test_code_of_a_base_class_counts():
    def net(text: str) -> Any:
        source = f"class Base(nn.Module):\n    scale = {text}\n    def forward(self, x):\n        return self.scale\n"
        user_module = ModuleType("users_own")
        user_module.nn = nn
        exec(source + "class Net(Base):\n    pass\n", user_module.__dict__)
        return user_module.Net()

    assert key(net("1")) == key(net("1")) != key(net("2"))


# Wrappers


def test_a_wrapper_counts_the_same_before_and_after_it_is_built():
    wrapper = ModelWrapper({"in_features": 4, "out_features": 3}, nn.Linear)
    before = key(wrapper)
    assert wrapper.__dict__["_model"] is None
    _ = wrapper.model
    assert key(wrapper) == before
    assert before != key(ModelWrapper({"in_features": 4, "out_features": 5}, nn.Linear))


def test_a_wrapper_that_cannot_be_built_has_a_key():
    class Broken(ModelWrapper):
        def make_model(self) -> Any:
            raise OSError("no weights")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert key(Broken()) == key(Broken()) != key(Broken({"a": 1}))


# Bad company


def test_cycles_deep_chains_and_what_has_no_state():
    import threading

    holder = nn.Identity()
    holder.lock, holder.stream, holder.generator = threading.Lock(), sys.stdout, (n for n in range(3))
    holder.me = [holder, {"me": holder}]
    chain: Any = None
    for n in range(20_000):
        chain = [chain, n]
    holder.chain = chain
    other, friend = SimpleNamespace(), SimpleNamespace()
    holder.peers = {Peer(), Peer()}
    other.friend, friend.friend = friend, other
    holder.other = other
    assert key(holder) == key(holder)


class Peer:
    def __init__(self) -> None:
        self.all = {self}


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("leave me alone")


def test_an_object_that_cannot_be_asked_is_like_no_other():
    one, other = closing_over(Hostile()), closing_over(Hostile())
    keys = key(one), key(one), key(other)
    assert keys[0] == keys[1] != keys[2]


def test_asking_leaves_no_trace():
    wrapper = ModelWrapper({"in_features": 4, "out_features": 3}, nn.Linear)
    state, before = torch.random.get_rng_state(), dict(vars(wrapper))
    key(wrapper)
    assert vars(wrapper) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_large_model_is_cheap():
    def block(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())

    model = nn.Sequential(*(block(64) for _ in range(50)))
    key(model)
    start_time = time.perf_counter()
    key(model)
    assert time.perf_counter() - start_time < 0.5  # some 5 ms on an idle machine

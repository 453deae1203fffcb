"""Copies of what a user handed over: made where a plain deep copy fails too, and never at the original's cost."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator.backends.torch_backend import TorchBackend
from orchestrator.duplicate import duplicate, owner_of
from orchestrator.stage import make_stage


class Locked(nn.Module):
    """Holds what cannot be copied, and keeps what it made."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.lock = threading.Lock()
        self.cache = {}

    def forward(self, x, twice=False):
        with self.lock:
            scale = self.cache.setdefault(tuple(x.shape), torch.ones(4))
        return self.linear(x) * scale * (2 if twice else 1)

    def encode(self, x):
        return self.linear(x)


def plan(stage):
    pipeline = Pipeline("copies")
    x = pipeline.input("x", TensorSpec((Dim("n", buckets=(2, 4), batch=True), 4), pad=0))
    pipeline.output("y", pipeline.add("stage", stage)(x))
    return pipeline.plan(device="cpu")


def test_what_cannot_be_copied_is_shared_and_the_rest_is_not():
    module = Locked()
    module.cache["key"] = torch.zeros(1)
    twin = duplicate(module, {})
    assert twin.lock is module.lock
    assert twin.linear is not module.linear
    assert twin.linear.weight is not module.linear.weight
    assert twin.cache is not module.cache


def test_one_memo_makes_one_copy_of_what_is_shared():
    module, memo = Locked(), {}
    assert duplicate(module, memo).linear is duplicate(module.encode, memo).__self__.linear


def test_a_copy_that_fails_leaves_nothing_behind():
    class Single(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of these")

    memo = {}
    with pytest.raises(TypeError, match="one of these"):
        duplicate(nn.Sequential(nn.Linear(2, 2), Single()), memo)
    assert memo == {}


def test_planning_leaves_no_fake_tensor_in_a_module_with_a_lock():
    module = Locked().eval()
    plan(module)
    assert module.cache == {}
    assert type(module.linear.weight) is nn.Parameter


def test_one_module_with_a_lock_is_planned_in_many_threads_while_it_runs():
    module = Locked().eval()
    x = torch.rand(2, 4)
    expected = module.encode(x).detach()

    def work(_):
        with plan(module).load() as session:
            return session(x=x)["y"]

    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(work, range(16)):
            torch.testing.assert_close(result, expected)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("make", [Locked, lambda: nn.utils.weight_norm(nn.Linear(4, 4))])
def test_what_a_plain_deep_copy_refuses_is_moved(make, monkeypatch):
    module = make().eval()
    x = torch.rand(2, 4)
    backend = TorchBackend("cpu")
    monkeypatch.setattr(backend, "_is_here", lambda _module: False)
    copy = backend.load(make_stage("stage", module))
    assert copy is not module
    with torch.no_grad():
        torch.testing.assert_close(copy(x), module(x))
    assert not {id(value) for value in module.parameters()} & {id(value) for value in copy.parameters()}


def test_a_partial_of_a_module_is_moved_with_it(monkeypatch):
    module = Locked().eval()
    backend = TorchBackend("cpu")
    monkeypatch.setattr(backend, "_is_here", lambda _module: False)
    copy = backend.load(make_stage("stage", functools.partial(module, twice=True)))
    assert owner_of(copy) is not module
    assert copy.keywords == {"twice": True}

"""Closing a session gives its copies of weights back at once: nothing waits for the cyclic garbage collector."""

from __future__ import annotations

import gc
import linecache
import weakref

import pytest
import torch
from torch import nn

from orchestrator import Dim, InputError, Pipeline, TensorSpec
from orchestrator.backends.torch_backend import TorchBackend


@pytest.fixture
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def copies(monkeypatch):
    """Makes every stage run on a copy, as on a device other than the host, and lists the copies."""
    log = []
    load = TorchBackend.load

    def loading(self, artifacts, stage):
        log.append(load(self, artifacts, stage))
        return log[-1]

    monkeypatch.setattr(TorchBackend, "_is_here", lambda _self, _module: False)
    monkeypatch.setattr(TorchBackend, "load", loading)
    return log


def plan():
    pipeline = Pipeline("weights")
    x = pipeline.input("x", TensorSpec((Dim("n", buckets=(2, 4), batch=True), 8), pad=0))
    pipeline.output("y", pipeline.add("linear", nn.Linear(8, 8).eval())(x))
    return pipeline.plan(device="cpu")


@pytest.mark.usefixtures("_no_collector")
def test_weights_are_freed_when_the_session_closes_though_it_is_still_held(copies):
    session = plan().load()
    for size in (2, 3, 9):
        session(x=torch.rand(size, 8))
    session.run({"x": torch.rand(2, 8)}, keep_on_device=("y",))
    with session.trace():
        session(x=torch.rand(2, 8))
    reference = weakref.ref(copies.pop().weight)
    assert reference() is not None
    session.close()
    assert reference() is None
    with pytest.raises(InputError, match="closed"):
        session(x=torch.rand(2, 8))


@pytest.mark.usefixtures("_no_collector")
def test_a_closed_session_leaves_no_source_behind():
    def sources() -> set[str]:
        # Files that somebody looked into, such as this one, stay there.
        return {name for name in linecache.cache if name.startswith("<")}

    before = sources()
    with plan().load() as session:
        session(x=torch.rand(3, 8))
        assert sources() - before
    assert sources() - before == set()

"""Kind K2: what a stage's code caches or records outside of its own object stays the user's when it is planned.

Each stage multiplies by a window that it makes once and keeps somewhere. After planning, no fake tensor is alive and
the place holds what it held; a session gives what the stage gives by hand.
"""

from __future__ import annotations

import collections
import functools
import gc
import threading
import types

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from orchestrator import ModelWrapper, PlanError
from tests.kit import chain, refuses, spec

TABLE: dict[object, object] = {}
NESTED: dict[str, dict[object, object]] = {"windows": {}}
WINDOW = None
RECORD: list[object] = []
RECENT: collections.deque[object] = collections.deque(maxlen=2)
LOCAL = threading.local()
CELLS = types.SimpleNamespace()


def window(width):
    return torch.hann_window(width)


def global_table(x):
    if "w" not in TABLE:
        TABLE["w"] = window(x.shape[1])
    return x * TABLE["w"]


def table_of_tables(x):
    if "w" not in TABLE:
        TABLE["w"] = {"window": window(x.shape[1]), "width": x.shape[1]}
    return x * TABLE["w"]["window"]


def nested_table(x):
    windows = NESTED["windows"]
    if "w" not in windows:
        windows["w"] = (window(x.shape[1]), 1)
    return x * windows["w"][0]


def global_name(x):
    global WINDOW
    if WINDOW is None:
        WINDOW = {"window": window(x.shape[1])}
    return x * WINDOW["window"]


class Held:
    def __init__(self, width):
        self.window = window(width)


def object_in_a_table(x):
    if "w" not in TABLE:
        TABLE["w"] = Held(x.shape[1])
    return x * TABLE["w"].window


def attribute_of_a_function(x):
    if not hasattr(attribute_of_a_function, "window"):
        attribute_of_a_function.window = window(x.shape[1])
    return x * attribute_of_a_function.window


def attribute_of_an_object(x):
    if not hasattr(CELLS, "window"):
        CELLS.window = window(x.shape[1])
    return x * CELLS.window


def thread_local(x):
    if not hasattr(LOCAL, "window"):
        LOCAL.window = window(x.shape[1])
    return x * LOCAL.window


@functools.cache
def unbounded(width):
    return window(width)


@functools.lru_cache(maxsize=2)
def bounded(width):
    return window(width)


def by_hand_memoised(function):
    known = {}

    def call(width):
        if width not in known:
            known[width] = function(width)
        return known[width]

    return call


memoised = by_hand_memoised(window)


class OnTheClass(nn.Module):
    window = None

    def forward(self, x):
        if OnTheClass.window is None:
            OnTheClass.window = window(x.shape[1])
        return x * OnTheClass.window


class InADefault(nn.Module):
    def forward(self, x):
        return x * self.window(x.shape[1])

    def window(self, width, known={}):  # noqa: B006
        if width not in known:
            known[width] = window(width)
        return known[width]


class CachedMethod(nn.Module):
    @functools.lru_cache(maxsize=8)  # noqa: B019
    def window(self, width):
        return window(width)

    def forward(self, x):
        return x * self.window(x.shape[1])


class Locked(nn.Module):
    """Its cache has a lock, so that it cannot be copied and is shared with the copy."""

    class Cache:
        def __init__(self):
            self.lock, self.windows = threading.Lock(), {}

    def __init__(self):
        super().__init__()
        self.cache = Locked.Cache()

    def forward(self, x):
        with self.cache.lock:
            self.cache.windows.setdefault("w", window(x.shape[1]))
        return x * self.cache.windows["w"]


class Plain(nn.Module):
    def forward(self, x):
        return x * window(x.shape[1])


def hooked(record):
    module = Plain()
    module.register_forward_hook(lambda *seen: record.append(seen))
    return module


class Wrapped(ModelWrapper):
    def __init__(self):
        super().__init__()
        self.windows = {}

    def make_model(self):
        model = nn.Identity()
        model.register_buffer("window", unbounded(4))
        return model

    def forward(self, x):
        self.windows.setdefault("w", window(x.shape[1]))
        return self.model(x) * self.windows["w"]


class Uncopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.windows, self.seen = {}, []

    def __deepcopy__(self, memo):
        raise TypeError("there is one of these")

    def forward(self, x):
        self.seen.append(x)
        self.windows.setdefault("w", window(x.shape[1]))
        return x * self.windows["w"]


def closure():
    known = {}

    def call(x):
        known.setdefault("w", window(x.shape[1]))
        return x * known["w"]

    return call


def variable():
    known = None

    def call(x):
        nonlocal known
        known = window(x.shape[1]) if known is None else known
        return x * known

    return call


STAGES = {
    "a global table": lambda: global_table,
    "a table of tables": lambda: table_of_tables,
    "a table in a table": lambda: nested_table,
    "a global name": lambda: global_name,
    "an object in a table": lambda: object_in_a_table,
    "a function's attribute": lambda: attribute_of_a_function,
    "an object's attribute": lambda: attribute_of_an_object,
    "a thread's own": lambda: thread_local,
    "lru_cache": lambda: lambda x: x * unbounded(x.shape[1]),
    "a bounded lru_cache": lambda: lambda x: x * bounded(x.shape[1]),
    "a memoised function": lambda: lambda x: x * memoised(x.shape[1]),
    "a class": OnTheClass,
    "a default": InADefault,
    "a cached method": CachedMethod,
    "a locked cache": Locked,
    "a hook's list": lambda: hooked(RECORD),
    "a hook's deque": lambda: hooked(RECENT),
    "a wrapper's table": Wrapped,
    "a module that cannot be copied": Uncopied,
    "a closure's table": closure,
    "a closure's variable": variable,
}


def forget():
    """Empties every place."""
    global WINDOW
    WINDOW = OnTheClass.window = None
    for place in (TABLE, NESTED["windows"], RECORD, RECENT, vars(CELLS), vars(LOCAL)):
        place.clear()
    vars(attribute_of_a_function).clear()
    InADefault.window.__defaults__[0].clear()
    memoised.__closure__[1].cell_contents.clear()
    for cache in (unbounded, bounded, CachedMethod.window):
        cache.cache_clear()


def fakes():
    items = gc.get_objects()
    kinds = {kind for kind in set(map(type, items)) if issubclass(kind, FakeTensor)}
    return [item for item in items if type(item) in kinds] if kinds else []


@pytest.fixture(scope="module")
def older_fakes():
    """Identities of those that other files left; they are kept alive, so that no identity is another's later."""
    items = fakes()
    yield set(map(id, items))
    items.clear()


@pytest.fixture(autouse=True)
def _places_are_empty():
    forget()
    yield
    forget()


X = torch.rand(2, 4)


@pytest.mark.parametrize("place", STAGES)
def test_planning_fills_no_cache_outside_of_a_stage(place, older_fakes):
    stage = STAGES[place]()
    stage = stage.eval() if isinstance(stage, nn.Module) else stage
    plan = chain(stage, takes=spec("n", 4, pad=0)).plan(sizes={"n": (2, 6)})
    # A look at the whole heap takes as long as the plan, so there is a second one only where a cycle holds something.
    if not set(map(id, fakes())) <= older_fakes:
        gc.collect()
        assert set(map(id, fakes())) <= older_fakes
    assert (TABLE, NESTED, WINDOW, OnTheClass.window) == ({}, {"windows": {}}, None, None)
    assert (list(RECORD), list(RECENT), vars(CELLS), vars(LOCAL)) == ([], [], {}, {})
    assert [cache.cache_info().currsize for cache in (unbounded, bounded, CachedMethod.window)] == [0, 0, 0]
    with plan.load() as session:
        (result,) = session(x=X).values()
    assert type(result) is torch.Tensor
    assert torch.allclose(result, X * window(4))


@pytest.mark.parametrize(
    "place", ["a global table", "a bounded lru_cache", "a memoised function", "a class", "a hook's list"]
)
def test_what_a_call_by_hand_had_filled_stays(place):
    stage = STAGES[place]()
    stage = stage.eval() if isinstance(stage, nn.Module) else stage
    wanted = stage(X)
    table, recorded, size = dict(TABLE), len(RECORD), bounded.cache_info().currsize
    plan = chain(stage, takes=spec(2, 4)).plan()
    assert all(TABLE[key] is value for key, value in table.items())
    assert (len(RECORD), bounded.cache_info().currsize) == (recorded, size)
    with plan.load() as session:
        (result,) = session(x=X).values()
    assert type(result) is torch.Tensor
    assert torch.equal(result, wanted)


def test_a_hook_counts_requests_alone():
    count = []
    module = Plain().eval()
    module.register_forward_hook(lambda *_: count.append(1))
    with chain(module, takes=spec(2, 4)).plan().load() as session:
        assert count == []
        session(x=X)
    assert count == [1]


def test_a_module_in_a_closure_stays_as_it_is():
    class Keeping(nn.Module):
        def forward(self, x):
            self.last = x * 2
            return self.last

    module = Keeping().eval()
    chain(lambda x: module(x), takes=spec(2, 4)).plan()
    assert not hasattr(module, "last")


def test_a_place_that_cannot_be_put_back_is_named_with_the_ways_out():
    class Opaque:
        """Python does not see what it holds."""

        def __init__(self):
            self.numpy = pytest.importorskip("numpy").empty(1, dtype=object)

        def __deepcopy__(self, memo):
            return self

    cache = Opaque()

    def stage(x):
        if cache.numpy[0] is None:
            cache.numpy[0] = window(4)
        return x * cache.numpy[0]

    error = refuses(
        PlanError,
        ("Stage 'a' keeps tensors outside of itself", "by hand before planning", "opaque", "host"),
        chain(stage, takes=spec(2, 4)).plan,
    )
    assert error.stage == "a"
    cache.numpy[0] = None
    wanted = stage(X)
    with chain(stage, takes=spec(2, 4)).plan().load() as session:
        (result,) = session(x=X).values()
    assert torch.equal(result, wanted)


def test_an_emptied_cache_is_noted():
    bounded(7)
    plan = chain(lambda x: x * bounded(x.shape[1]), takes=spec(2, 4)).plan()
    assert any("bounded" in note and "emptied" in note for note in plan.notes)


def test_the_collector_is_as_it_was():
    gc.disable()
    try:
        chain(Plain().eval(), takes=spec(2, 4)).plan()
        assert not gc.isenabled()
    finally:
        gc.enable()
    chain(Plain().eval(), takes=spec(2, 4)).plan()
    assert gc.isenabled()

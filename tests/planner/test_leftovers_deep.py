"""Kind K2: what a stage's code puts into containers and objects in one another is taken out, and nothing else is.

As in ``test_leftovers``, each stage multiplies by a window that it makes once and keeps somewhere. Planning has to know
what was there: an empty table, a place in a list or None is the user's as much as a window is.
"""

from __future__ import annotations

import collections
import contextvars
import types
import weakref

import pytest
import torch

from orchestrator import PlanError
from tests.kit import chain, spec

X = torch.rand(2, 4)


def window(width):
    return torch.hann_window(width)


class Holder:
    """An object of another one, with a table, a list of places and a slot of its own."""

    __slots__ = ("__dict__", "slot")

    def __init__(self):
        self.inner = types.SimpleNamespace(table={}, window=None)
        self.places = [None, None, None]
        self.user = collections.UserDict()


HOLDER = Holder()
VARIABLE: contextvars.ContextVar[torch.Tensor | None] = contextvars.ContextVar("VARIABLE", default=None)
WEAK: weakref.WeakKeyDictionary[object, torch.Tensor] = weakref.WeakKeyDictionary()
TREE: dict[str, dict[str, dict[str, torch.Tensor]]] = {"a": {"b": {}}}


def table_of_an_inner_object(x):
    return x * HOLDER.inner.table.setdefault("w", window(x.shape[1]))


def attribute_of_an_inner_object(x):
    if HOLDER.inner.window is None:
        HOLDER.inner.window = window(x.shape[1])
    return x * HOLDER.inner.window


def place_in_a_list(x):
    if HOLDER.places[1] is None:
        HOLDER.places[1] = window(x.shape[1])
    return x * HOLDER.places[1]


def slot_of_an_object(x):
    if not hasattr(HOLDER, "slot"):
        HOLDER.slot = window(x.shape[1])
    return x * HOLDER.slot


def user_dict(x):
    return x * HOLDER.user.setdefault("w", window(x.shape[1]))


def weak_table(x):
    return x * WEAK.setdefault(Holder, window(x.shape[1]))


def table_deep_in_tables(x):
    return x * TREE["a"]["b"].setdefault("w", window(x.shape[1]))


def context_variable(x):
    if VARIABLE.get() is None:
        VARIABLE.set(window(x.shape[1]))
    return x * VARIABLE.get()


def object_in_a_closure():
    holder = Holder()

    def call(x):
        return x * holder.inner.table.setdefault("w", window(x.shape[1]))

    return call


STAGES = {
    "a table of an inner object": lambda: table_of_an_inner_object,
    "an attribute of an inner object": lambda: attribute_of_an_inner_object,
    "a place in a list": lambda: place_in_a_list,
    "a slot": lambda: slot_of_an_object,
    "a UserDict": lambda: user_dict,
    "a weak table": lambda: weak_table,
    "a table deep in tables": lambda: table_deep_in_tables,
    "a context variable": lambda: context_variable,
    "an object in a closure": object_in_a_closure,
}


def forget():
    """Empties every place."""
    HOLDER.__init__()
    if hasattr(HOLDER, "slot"):
        del HOLDER.slot
    WEAK.clear()
    TREE["a"]["b"].clear()
    VARIABLE.set(None)


def holdings():
    """What the objects and containers in one another hold."""
    inner = HOLDER.inner
    return (
        (inner.table, inner.window, HOLDER.places, hasattr(HOLDER, "slot"), dict(HOLDER.user)),
        (dict(WEAK), TREE, VARIABLE.get()),
    )


EMPTY = (({}, None, [None] * 3, False, {}), ({}, {"a": {"b": {}}}, None))


@pytest.mark.parametrize("place", STAGES)
def test_planning_puts_back_what_an_inner_place_held(place):
    forget()
    stage = STAGES[place]()
    plan = chain(stage, takes=spec("n", 4, pad=0)).plan(sizes={"n": (2, 6)})
    assert holdings() == EMPTY
    with plan.load() as session:
        (result,) = session(x=X).values()
    assert type(result) is torch.Tensor
    assert torch.allclose(result, X * window(4))
    forget()


class Unknown:
    """An object that keeps its table deeper than planning looks."""

    def __init__(self):
        self.table = {}


def test_a_refusal_leaves_what_an_object_held():
    """K2: what was there is not known, so planning refuses; but it takes nothing away that may have been there."""
    place = Unknown()
    for _ in range(8):
        place = [place]

    def stage(x, *, places=(place,)):
        held = places[0]
        while isinstance(held, list):
            (held,) = held
        return x * held.table.setdefault("w", window(x.shape[1]))

    def held():
        item = place
        while isinstance(item, list):
            (item,) = item
        return item

    with pytest.raises(PlanError, match="keeps tensors outside of itself, in the attribute 'table'"):
        chain(stage, takes=spec(2, 4)).plan()
    assert held().table == {}
    wanted = stage(X)
    with chain(stage, takes=spec(2, 4)).plan().load() as session:
        assert torch.equal(next(iter(session(x=X).values())), wanted)

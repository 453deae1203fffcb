"""Objects that do not show what they hold: read by their own ways, or else like nothing in another process."""

from __future__ import annotations

import contextvars
import functools
import gc
import operator
import os
import re
import types
import weakref
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fingerprint.holders import closing_over, key, module

KEPT: list[Any] = []  # what only a weak reference leads to


def cached(value: Any) -> Any:
    @functools.lru_cache
    def run() -> Any:
        return value

    return run


def wrapping(value: Any) -> Any:
    def run() -> None:
        return None

    run.__wrapped__ = closing_over(value)  # type: ignore[attr-defined]
    return run


def with_private_attribute(value: Any) -> Any:
    def run() -> None:
        return None

    run.__value = value  # type: ignore[attr-defined]
    return run


def referring_to(value: Any) -> Any:
    holder = closing_over(value)
    KEPT.append(holder)
    return weakref.ref(holder)


def weakly(value: Any) -> Any:
    holder = closing_over(value)
    KEPT.append(holder)
    return weakref.WeakSet([holder])


def variable(value: Any) -> Any:
    return contextvars.ContextVar("value", default=value)


def own_module(value: Any) -> Any:
    user_module = module("def run():\n    return VALUE\n", "settings")
    user_module.VALUE = value
    return user_module


def made_by(value: Any) -> Any:
    kind = type("Kind", (type,), {"__call__": lambda self: value})
    return kind("Made", (), {})


def calling(value: Any) -> Any:
    return type("Made", (), {"__call__": functools.partialmethod(closing_over(1), value)})()


def in_private_slot(value: Any) -> Any:
    class Made:
        __slots__ = ("__value",)

        def __init__(self) -> None:
            self.__value = value

    return Made()


def in_own_queue(value: Any) -> Any:
    return type("Queue", (deque,), {})([value])


def in_own_array(value: Any) -> Any:
    import array

    return type("Array", (array.array,), {})("d", [value])


def deep_in_sets(value: Any) -> Any:
    return {frozenset([("a", frozenset([value]))])}


def partially(value: Any) -> Any:
    partial = type("Part", (functools.partial,), {"__call__": lambda self: value})
    return partial(print)


def scripted(value: Any) -> Any:
    source = f"lambda x: x + {value}"
    return torch.fx.symbolic_trace(eval(source))


def calling_own_function(value: Any) -> Any:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(closing_over(value), (graph.placeholder("x"),)))
    return torch.fx.GraphModule({}, graph)


READABLE: tuple[Callable[[Any], Any], ...] = (
    cached,
    wrapping,
    with_private_attribute,
    lambda value: types.MappingProxyType({"a": value}),
    lambda value: re.compile(str(value)),
    lambda value: re.compile("a", re.IGNORECASE if value == 1 else 0),
    lambda value: {value: 0}.keys(),
    lambda value: {"a": value}.values(),
    lambda value: UserDict(a=value).items(),
    lambda value: OrderedDict(a=value).values(),
    referring_to,
    weakly,
    types.CellType,
    lambda value: compile(str(value), "text", "eval"),
    own_module,
    variable,
    made_by,
    calling,
    in_private_slot,
    in_own_queue,
    in_own_array,
    deep_in_sets,
    partially,
    scripted,
    calling_own_function,
    lambda value: operator.itemgetter(int(value)),
    lambda value: [value].__getitem__,
    lambda value: slice(value),
)


@pytest.mark.parametrize("hold", READABLE)
def test_what_can_be_read_in_its_own_way_counts(hold: Callable[[Any], Any]):
    keys = [key(closing_over(hold(value))) for value in (1.0, 1.0, 2.0)]
    assert keys[0] == keys[1] != keys[2]


def test_functions_in_c_count_by_their_module():
    import cmath
    import math

    assert key(closing_over(math.sqrt)) == key(closing_over(math.sqrt)) != key(closing_over(cmath.sqrt))


def generator(value: Any) -> Iterator[Any]:
    return (value for _ in range(3))


@pytest.mark.parametrize("make", [generator, lambda _: Path(os.devnull).open()])  # noqa: SIM115
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_cannot_be_read_is_equal_to_itself_alone(make: Callable[[Any], Any]):
    targets = [closing_over(make(1)) for _ in range(2)]
    assert key(targets[0]) == key(targets[0]) != key(targets[1])


def test_an_identity_that_is_used_again_is_another_object():
    keys = set()
    gc.freeze()  # what was there before is no garbage: fifty walks over all of it are half a minute
    try:
        for _ in range(50):
            keys.add(key(closing_over(generator(1))))
            gc.collect()
    finally:
        gc.unfreeze()
    assert len(keys) == 50

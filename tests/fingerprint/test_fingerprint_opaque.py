"""Objects that do not show what they hold: read by their own ways, or else like nothing in another process."""

from __future__ import annotations

import contextvars
import functools
import gc
import operator
import os
import re
import subprocess
import sys
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
    for _ in range(50):
        keys.add(key(closing_over(generator(1))))
        gc.collect()
    assert len(keys) == 50


SCRIPT = """
import contextvars, functools, re, sys, threading, types, typing, weakref, enum, logging, dataclasses, random
import torch
from torch import nn
import numpy
from orchestrator.stage import make_stage
from orchestrator.fingerprint import fingerprint
from orchestrator.store import content_key
junk = [object() for _ in range(random.randrange(10_000))]
T = typing.TypeVar("T")
NAMES = {"a", "b", "c", "d"}
settings = types.ModuleType("settings")
settings.NAMES, settings.torch = NAMES, torch
@functools.lru_cache
def cached(n): return n, NAMES
@dataclasses.dataclass(frozen=True)
class Config:
    names: typing.Optional[frozenset] = frozenset(NAMES)
    call: typing.Callable[[int], int] = cached
class Net(nn.Module, typing.Generic[T]):
    pattern = re.compile("[a-z]+", re.I)
    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.LSTM(2, 2), nn.Linear(2, 2), nn.MultiheadAttention(2, 1))
        self.table = types.MappingProxyType({name: cached for name in sorted(NAMES)})
        self.views = ({"a": 1}.keys(), {"a": NAMES}.values())
        self.weak = weakref.ref(self.parts), weakref.WeakSet([self.parts]), weakref.WeakValueDictionary(a=self)
        self.variable = contextvars.ContextVar("v", default=NAMES)
        self.lock, self.condition, self.local = threading.RLock(), threading.Condition(), threading.local()
        self.out, self.log, self.random = sys.stdout, logging.getLogger("x"), random.Random(1)
        self.settings, self.code = settings, (lambda: NAMES).__code__
        self.calls = [torch.relu, torch.ops.aten.add, torch.ops.aten.add.Tensor, numpy.add, numpy.dtype("f4"),
            nn.functional.gelu, nn.functional.scaled_dot_product_attention, len, str.join, "a".join, torch.add, T,
            torch.Tensor.add, torch.Tensor.shape, typing.Union[int, str], int | str, list[int], torch.ones(2).add]
        self.config, self.kind, self.generator = Config(), enum.Enum("Kind", "A B"), torch.Generator()
        self.parts[1].register_forward_hook(lambda module, args, output: output)
        self.decorated = torch.no_grad()(cached), torch.compiler.disable(lambda x: x)
        self.nested = {frozenset({("a", name) for name in NAMES}), frozenset({int, str})}
    def forward(self, x): return x
@torch.library.custom_op("stage_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor: return x * 2
def run(x): return torch.ops.stage_test.twice(x), settings.NAMES, twice
for target in (Net(), run, torch.relu):
    print(content_key(fingerprint(make_stage("s", target, inputs=("x",)))))
"""


def outputs_of(tmp_path: Path, script: str) -> list[tuple[str, ...]]:
    (tmp_path / "run.py").write_text(script)
    return [
        tuple(
            subprocess.run(
                [sys.executable, tmp_path / "run.py"],
                env={**os.environ, "PYTHONHASHSEED": seed},
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
        )
        for seed in ("0", "1", "4242")
    ]


def test_what_can_be_read_is_alike_in_every_process(tmp_path: Path):
    outputs = outputs_of(tmp_path, SCRIPT)
    assert len(set(outputs)) == 1
    assert len(set(outputs[0])) == 3


def test_what_cannot_be_read_is_like_nothing_in_another_process(tmp_path: Path):
    script = (
        "import os\nfrom orchestrator.stage import make_stage\n"
        "from orchestrator.fingerprint import fingerprint\nfrom orchestrator.store import content_key\n"
        "held = (n for n in range(3))\ndef run(x):\n    return held\n"
        "def show(): print(content_key(fingerprint(make_stage('s', run))), flush=True)\n"
        "show()\nchild = os.fork()\nif not child:\n    show()\n    os._exit(0)\nos.waitpid(child, 0)\n"
    )
    keys = [each for output in outputs_of(tmp_path, script) for each in output]
    assert len(set(keys)) == len(keys) == 6

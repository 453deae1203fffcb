"""Keys are alike in every process, whatever its seed of hashes is; what cannot be read is like nothing in another.

The scripts share their processes: one for each seed imports torch once and forks for each of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = ("0", "1", "4242")

FORKING = """
import os, runpy, sys
from pathlib import Path
import numpy, torch
import orchestrator.fingerprint, orchestrator.stage, orchestrator.store, orchestrator.testing.stages
import orchestrator_neuron.emulated.backend, tests.neuron.programs
for script in map(Path, sys.argv[1:]):
    child = os.fork()
    if not child:
        sys.path.insert(0, str(script.parent))
        with script.with_name(f"printed-{os.environ['PYTHONHASHSEED']}").open("w") as sys.stdout:
            runpy.run_path(str(script), run_name="__main__")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, script
"""

READABLE = """
import pathlib, random, torch
from torch import nn
from types import SimpleNamespace
from orchestrator.stage import ModelWrapper, make_stage
from orchestrator.fingerprint import fingerprint
from orchestrator.store import content_key
junk = [object() for _ in range(random.randrange(10_000))]  # other addresses in every process
NAMES = {"a", "b", "c", "d", "e", "f"}
class Net(nn.Module):
    names = frozenset(NAMES)
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.helper = SimpleNamespace(names=set(NAMES), path=pathlib.Path("x/y"), kinds={int, str, torch.relu})
        hash(self.helper.path)
        self.register_buffer("table", torch.arange(3.0), persistent=False)
    def forward(self, x):
        return self.body(x) if x in {"a", "b", "c"} else NAMES
def function(x, y=frozenset(NAMES)):
    return Net, NAMES, (lambda z: z in {"p", "q", "r"})
for target in (Net(), ModelWrapper(None, Net), function):
    print(content_key(fingerprint(make_stage("s", target))))
"""

OPAQUE = """
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

UNREADABLE = """
import os
from orchestrator.stage import make_stage
from orchestrator.fingerprint import fingerprint
from orchestrator.store import content_key
held = (n for n in range(3))
def run(x):
    return held
def show(): print(content_key(fingerprint(make_stage('s', run))), flush=True)
show()
child = os.fork()
if not child:
    show()
    os._exit(0)
os.waitpid(child, 0)
"""

TOYS = """
import functools, torch
from orchestrator.fingerprint import fingerprint
from orchestrator.stage import make_stage
from orchestrator.store import content_key
from orchestrator.testing import stages

def relu(x):
    return torch.relu(x)

class Holder:
    def __init__(self):
        self.scale, self.handle = 2.0, object()
    def __call__(self, x):
        return x * self.scale

targets = [relu, torch.relu, functools.partial(torch.add, other=1), Holder(), Holder().__call__, stages.SplitHalves(),
           stages.Linear(), stages.SeededLinear(), torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())]
for target in targets:
    print(content_key(fingerprint(make_stage("s", target, inputs=("x",)))))
"""

EMULATED = """
from orchestrator_neuron.emulated.backend import EmulatedBackend
from tests.neuron.programs import application, program, spec
from stage import Model
form = program({"x": spec(2, 4)}, {"output": spec(2, 4)})
print(EmulatedBackend("neuron-emulated").key(application(Model(), form)))
"""

STAGE = """
import torch
NAMES = {"a", "b", "c"}
def helper(x):
    return x * FACTOR if "a" in {"a", "b", "c", "d"} else x
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.names = set("abcdef")
    def forward(self, x):
        return helper(x)
FACTOR = 2
"""

SCRIPTS = {
    "readable": READABLE,
    "opaque": OPAQUE,
    "unreadable": UNREADABLE,
    "toys": TOYS,
    "emulated": EMULATED,
    "emulated again": EMULATED,
    "another global": EMULATED,
    "another helper": EMULATED,
}
STAGES = {
    "emulated": STAGE,
    "emulated again": STAGE,
    "another global": STAGE.replace("FACTOR = 2", "FACTOR = 3"),
    "another helper": STAGE.replace("x * F", "x + F"),
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """The keys that each script prints, once for each seed."""
    root = tmp_path_factory.mktemp("scripts")
    for name, script in SCRIPTS.items():
        (root / name).mkdir()
        (root / name / "run.py").write_text(script)
    for name, stage in STAGES.items():
        (root / name / "stage.py").write_text(stage)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-B", "-c", FORKING, *(str(root / name / "run.py") for name in SCRIPTS)]
    for seed in SEEDS:
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return {
        name: [(root / name / f"printed-{seed}").read_text().split() for seed in SEEDS] for name in SCRIPTS
    }


@pytest.mark.parametrize(("name", "count"), [("readable", 3), ("opaque", 3), ("toys", 9)])
def test_what_can_be_read_is_alike_in_every_process(
    printed: dict[str, list[list[str]]], name: str, count: int
) -> None:
    first, *others = printed[name]
    assert all(other == first for other in others)
    assert len(set(first)) == len(first) == count


def test_what_cannot_be_read_is_like_nothing_in_another_process(printed: dict[str, list[list[str]]]) -> None:
    keys = [key for output in printed["unreadable"] for key in output]
    assert len(set(keys)) == len(keys) == 2 * len(SEEDS)


def test_the_key_of_an_application_sees_a_helper_and_is_alike_in_every_process(
    printed: dict[str, list[list[str]]],
) -> None:
    """Processes agree; a change in a function that the stage merely calls is a change."""
    keys = {name: {key for output in printed[name] for key in output} for name in STAGES}
    assert [len(each) for each in keys.values()] == [1, 1, 1, 1]
    assert keys["emulated"] == keys["emulated again"]
    assert len(set.union(*keys.values())) == 3

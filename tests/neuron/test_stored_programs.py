"""Loading an artifact runs nothing that its author chose. Kind: a border behind which somebody else writes.

Whoever can write a folder of artifacts writes its digests as well, so each file is taken for somebody's word: every
file is put in place of by pickles, archives and graphs that would leave a mark if they ran.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch._higher_order_ops.map import map as torch_map

from orchestrator import Pipeline, Plan, TensorSpec
from orchestrator.errors import CompileError
from orchestrator.store.manifest import read_manifest, write_manifest
from orchestrator_neuron.emulated.backend import EmulatedBackend
from orchestrator_neuron.emulated.graph_file import dump, load
from tests.neuron.programs import Affine, application, emulated_backend, program, spec

FORM = program({"x": spec(2, 4)}, {"output": spec(2, 3)})


class Mark:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture
def backend() -> Iterator[EmulatedBackend]:
    with emulated_backend() as backend:
        yield backend


def _affine_plan() -> Plan:
    pipeline = Pipeline("p")
    pipeline.output("y", pipeline.add("lin", Affine())(pipeline.input("x", TensorSpec((2, 4)))))
    return pipeline.plan(device="neuron-emulated")


def _archive(data: bytes) -> bytes:
    """An archive of an exported program whose every member is a pickle, as a reader of archives would look for them."""
    members = ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/model.pt"]
    members += ["data/constants/custom_obj_0", "models/model.json", "version", "data/aotinductor/model/a.so"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in members:
            archive.writestr(f"archive/{member}", data)
            archive.writestr(member, data)
    return buffer.getvalue()


def test_what_is_stored_is_json_and_tensors(tmp_path: Path) -> None:
    _affine_plan().compile(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        else:
            load_tensors(path.read_bytes())


@pytest.mark.parametrize("form", ["pickle", "torch.save", "archive"])
def test_no_file_of_a_store_is_unpickled(tmp_path: Path, form: str) -> None:
    """Every file of every artifact in turn; the digests are written anew, as its author can."""
    mark = tmp_path / "mark"
    torch.save({"x": Mark(mark)}, tmp_path / "saved")
    hostile = {
        "pickle": pickle.dumps(Mark(mark)),
        "torch.save": (tmp_path / "saved").read_bytes(),
        "archive": _archive(pickle.dumps(Mark(mark))),
    }[form]
    store = tmp_path / "store"
    _affine_plan().compile(store)
    folder = next(store.glob("artifacts/*/*/*/manifest.json")).parent
    manifest = read_manifest(folder)
    for path in sorted(folder.iterdir()):
        if path.name == "orchestrator-manifest.json":
            continue
        whole = path.read_bytes()
        path.write_bytes(hostile)
        (folder / "orchestrator-manifest.json").unlink()
        write_manifest(folder, manifest.key, manifest.about)
        with pytest.raises(CompileError, match="cannot be read"):
            _affine_plan().compile(store).load()
        path.write_bytes(whole)
    assert not mark.exists()


def _rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the graph in a compiled folder."""
    file = folder / "0.safetensors"
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    body = json.loads(header["__metadata__"]["graph"])
    change(body)
    file.write_bytes(save_tensors(load_tensors(data), {"graph": json.dumps(body)}))


HOSTILE_NAMES = [
    "torch.os.system",
    "os.system",
    "builtins.eval",
    "_operator.methodcaller",
    "math.floor",
    "aten.from_file.default",
    "aten.from_file.out",
    "aten.save.default",
    "aten.set_.source_Tensor",
    "aten.resize_.default",
    "aten._sparse_coo_tensor_unsafe.default",
    "aten.add.nothing",
    "aten.__class__.default",
    "aten.add.__class__",
    "aten.add.Tensor.__globals__",
    "aten.relu.default or __import__('os')",
    "prim.Print.default",
    "profiler._record_function_enter_new.default",
    "inductor._alloc_from_pool.default",
    "c10d.allreduce_.default",
    "higher_order.call_torchbind",
    "higher_order.print",
    "higher_order.aoti_call_delegate",
    "higher_order.executorch_call_delegate",
    "higher_order.invoke_leaf_function",
    "higher_order.__class__",
    "nobody.registered.this",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_graph_names_operators_that_compute_and_nothing_else(
    backend: EmulatedBackend, tmp_path: Path, name: str
) -> None:
    affine = application(Affine(), FORM)
    backend.build(affine, tmp_path)
    mark = tmp_path / "mark"

    def call(body: dict[str, Any]) -> None:
        at = len(body["graphs"][0]) - 1
        body["graphs"][0].insert(at, ["call", name, [f"touch '{mark}'"], []])

    _rewritten(tmp_path, call)
    with pytest.raises(CompileError, match=r"cannot be read from .*compile it again"):
        backend.load_application(affine, tmp_path)
    assert not mark.exists()


CODE = "__import__('pathlib').Path({mark!r}).touch()"
INJECTIONS: dict[str, Callable[[list[Any], str], None]] = {
    "keyword": lambda node, code: node[3].append([code, 1]),
    "keyword that ends the call": lambda node, code: node[3].append([f"a=1); {code}; (b", 1]),
    "dict": lambda node, code: node[2].append(["dict", [code, 1]]),
    "string": lambda node, code: node[2].append(f"'+{code}+'"),
    "string with a line end": lambda node, code: node[2].append(f"\n    {code}\n"),
    "dtype": lambda node, code: node[2].append(["dtype", code]),
    "layout": lambda node, code: node[2].append(["layout", code]),
    "float": lambda node, code: node[2].append(["float", code]),
    "kind": lambda node, code: node[2].append([code, 1]),
    "op": lambda node, code: node.__setitem__(0, code),
    "number": lambda node, code: node[2].append(["node", code]),
}


@pytest.mark.parametrize("where", INJECTIONS)
def test_no_text_of_a_graph_becomes_code(backend: EmulatedBackend, tmp_path: Path, where: str) -> None:
    """It may be refused while loading, or be no argument of the operator when it runs; it is never run itself."""
    affine = application(Affine(), FORM)
    backend.build(affine, tmp_path)
    mark = tmp_path / "mark"
    code = CODE.format(mark=str(mark))

    def inject(body: dict[str, Any]) -> None:
        node = next(node for node in body["graphs"][0] if node[0] == "call")
        INJECTIONS[where](node, code)

    _rewritten(tmp_path, inject)
    with contextlib.suppress(CompileError, RuntimeError, TypeError):
        run = backend.load_application(affine, tmp_path)["p"]
        run(backend.upload(torch.ones(2, 4)))
    assert not mark.exists()


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a constant that reaches beyond its content": lambda body: body["constants"].__setitem__(
        0, [[4000], [1], "float32"]
    ),
    "a constant that holds the whole memory": lambda body: body["constants"].__setitem__(
        0, [[1 << 40], [0], "float32"]
    ),
    "a weight that the stage does not have": lambda body: body["takes"].__setitem__(0, ["weight", "other"]),
    "another number of inputs": lambda body: body["takes"].pop(),
    "a graph that refers to itself": lambda body: body["graphs"][0].insert(0, ["graph", 0, [], []]),
    "a graph that gives nothing": lambda body: body["graphs"][0].pop(),
    "another order of outputs and inputs": lambda body: body["graphs"][0][-1][2].__setitem__(
        0, ["tuple", ["node", 0]]
    ),
    "depth": lambda body: body["graphs"][0][0].append(_lists(400)),
}


def _lists(depth: int) -> list[Any]:
    lists: list[Any] = []
    for _ in range(depth):
        lists = ["list", lists]
    return lists


@pytest.mark.parametrize("name", CHANGES)
def test_a_graph_that_is_not_of_the_program_is_refused(
    backend: EmulatedBackend, tmp_path: Path, name: str
) -> None:
    table = torch.arange(8.0).reshape(4, 2).t()
    item = application(lambda x: x @ table, program({"x": spec(3, 2)}, {"output": spec(3, 4)}))
    if "weight" in name:
        item = application(Affine(), FORM)
    backend.build(item, tmp_path)
    _rewritten(tmp_path, CHANGES[name])
    with pytest.raises(CompileError, match=r"compile it again"):
        backend.load_application(item, tmp_path)
    assert backend.open_device.allocated_bytes == [0] or "weight" not in name


def test_the_manifest_of_a_program_says_what_the_plan_says(backend: EmulatedBackend, tmp_path: Path) -> None:
    affine = application(Affine(), FORM)
    backend.build(affine, tmp_path)
    whole = json.loads((tmp_path / "manifest.json").read_text())
    entry = whole["entries"][0]
    for change in (
        {"file": "../0.safetensors"},
        {"file": "/etc/passwd"},
        {"inputs": [[[2, 1 << 40], "float32"]]},
        {"outputs": []},
        {"outputs": [[[2, -3], "float32"]]},
        {"outputs": [[[2, 3], "nn"]]},
        {"constant_bytes": -1},
        {"program": "q"},
    ):
        data = {**whole, "entries": [{**entry, **change}]}
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(CompileError, match=r"[Cc]ompile it again"):
            backend.load_application(affine, tmp_path)
        assert backend.open_device.allocated_bytes == [0]


class _Ordinary(nn.Module):
    """What programs are made of: constants in any order of memory, numbers that JSON lacks, branches and loops."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.table = torch.arange(6.0).reshape(2, 3).t()
        self.phase = torch.tensor([1 + 2j, -1j])
        self.flags = torch.tensor([True, False, True])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        probabilities = x.masked_fill(self.flags, float("-inf")).softmax(-1)
        branch, rows = self.branch(x, self.linear(x)), self.rows(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = x @ self.table
        first, rest = x.split([1, 2], dim=-1)
        wide = torch.zeros(2, 3, dtype=torch.int64).to(memory_format=torch.contiguous_format)
        return probabilities, branch, rows, half, first * rest, wide, torch.view_as_real(self.phase * x.sum())

    def branch(self, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v - 1, (value,))

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return torch_map(lambda row: row + 1, x)


class _ByHand(_Ordinary):
    """The same in plain Python."""

    def branch(self, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value * 2 if x.sum() > 0 else value - 1

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row + 1 for row in x])


def test_a_stored_graph_computes_what_its_module_does() -> None:
    module = _ByHand().eval()
    with torch.no_grad():
        graph = load(dump(torch.export.export(_Ordinary().eval(), (torch.randn(2, 3),), strict=False)))
        for x in (torch.randn(2, 3), -torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3)):
            takes = {
                "input": {"": x},
                "constant": graph.constants,
                "weight": dict(module.named_parameters()),
            }
            values = graph.module(*(takes[kind][name] for kind, name in graph.takes))
            for one, other in zip(values, module(x), strict=True):
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

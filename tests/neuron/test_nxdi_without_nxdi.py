"""The device `nxdi` where NxD Inference is not installed: planning works, compiling says what to install."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator import Pipeline, TensorSpec
from orchestrator.adapter import Adapter
from orchestrator.errors import CompileError, StageError
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.stage import make_stage
from orchestrator_neuron import from_nxdi, ranked
from orchestrator_neuron.nxdi import packages
from orchestrator_neuron.nxdi.application import (
    WORK_DIR,
    check_routes,
    compiler_arguments,
    tag_of,
    version_examples,
    work_folder,
)
from orchestrator_neuron.nxdi.backend import NxdiBackend
from orchestrator_neuron.nxdi.calls import ProgramCall
from orchestrator_neuron.nxdi.renamed import accept_renamed_device
from orchestrator_neuron.options import NeuronSettings
from orchestrator_neuron.ranked import is_ranked
from orchestrator_neuron.versions import versions_of
from orchestrator_stages.demos.vision_text import vision_text

absent = pytest.mark.skipif(
    importlib.util.find_spec("neuronx_distributed_inference") is not None, reason="NxD Inference is installed"
)


def program(name: str = "net", *shapes: tuple[int | str, ...], **more) -> Program:
    takes = tuple(
        ProgramInput(f"x{place}", TensorSpec(dims)) for place, dims in enumerate(shapes or ((2, 4),))
    )
    return Program(name, takes, (ProgramOutput("output", TensorSpec((2, 4))),), **more)


@absent
def test_planning_needs_nothing_and_compiling_says_what_to_install(tmp_path: Path):
    plan = vision_text(batch=4).plan(device="nxdi", options={"tp_degree": 2})
    assert (plan.summary["uploads"], plan.summary["downloads"]) == (4, 1)
    with pytest.raises(CompileError) as excinfo:
        plan.compile(tmp_path)
    text = str(excinfo.value)
    for part in (
        "neuronx-distributed-inference 0.9 or 0.10",
        "torch-neuronx 2.9",
        "[nxdi]",
        "neuron-emulated",
    ):
        assert part in text
    assert text.count(". ") == 0, "one sentence"
    assert "://" not in text


@absent
def test_session_needs_the_packages_too():
    with pytest.raises(CompileError, match="install"):
        NxdiBackend("nxdi").open()
    with pytest.raises(CompileError, match="install"):
        from_nxdi(object())


def test_packages_without_a_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packages, "require", lambda: None)
    monkeypatch.setattr(packages, "notes", lambda: ())
    monkeypatch.setattr(
        torch.Tensor, "to", lambda *_: (_ for _ in ()).throw(RuntimeError("no driver\nat line 3"))
    )
    with pytest.raises(
        CompileError, match=r"no Neuron device here \(RuntimeError: no driver\); 'neuron-emulated'"
    ):
        NxdiBackend("nxdi").open()


def test_importing_the_plugin_imports_neither_torch_nor_nxd_inference():
    code = (
        "import sys, orchestrator_neuron; "
        "print(sorted({'torch', 'neuronx_distributed', 'orchestrator_neuron.nxdi'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="from_nxd'"):
        _ = __import__("orchestrator_neuron").from_nxd


@pytest.mark.parametrize(
    ("version", "is_known"),
    [
        ("0.9.0", True),
        ("0.9.17334", True),
        ("0.10.18399+abc", True),
        ("0.8.9", False),
        ("0.11", False),
        ("1.0", False),
    ],
)
def test_known_versions(version: str, is_known: bool):
    assert packages.PACKAGES[0].is_known(version) is is_known


def test_unknown_version_is_a_note(monkeypatch: pytest.MonkeyPatch):
    versions = {"neuronx-distributed-inference": "0.12.1", "transformers": "4.57.6"}
    monkeypatch.setattr(packages.Package, "version", lambda self: versions.get(self.name))
    (note,) = packages.notes()
    assert "neuronx-distributed-inference is 0.12.1" in note
    assert packages.versions()["transformers"] == "4.57.6"


def test_what_another_version_compiled_is_no_artifact_of_this_one(monkeypatch: pytest.MonkeyPatch):
    """The compiler's counts, too: an artifact is found by its key, and that has all versions in it."""
    net = make_stage("net", nn.Linear(4, 4))
    keys = set()
    for newer in (None, *(package.name for package in packages.PACKAGES)):
        installed = {package.name: "2.0" if package.name == newer else "1.0" for package in packages.PACKAGES}
        monkeypatch.setattr(packages, "versions", lambda installed=installed: installed)
        keys.add(NxdiBackend("nxdi").key(Application("net", (net,), (program(),))))
    assert len(keys) == 1 + len(packages.PACKAGES)


def test_tags_name_folders_and_modules():
    names = ["sub/enc", "sub.enc", "pad a -> b", "enc~1", "Ünïcode", ""]
    tags = [tag_of(program(name), place) for place, name in enumerate(names)]
    assert len(set(tags)) == len(tags)
    nn.ModuleDict({tag: nn.Identity() for tag in tags})
    assert all(Path(tag).name == tag and tag.isascii() and tag.isidentifier() for tag in tags)


def test_one_form_is_compiled_once_and_two_programs_never_share_one():
    sizes = ({"n": 2, "m": 1}, {"n": 2, "m": 3}, {"n": 4, "m": 3})
    one = program("net", ("n", 4), sizes=sizes)
    assert versions_of(one) == (sizes[0], sizes[2])
    assert [tuple(row[0].shape) for row in version_examples(one)] == [(2, 4), (4, 4)]
    stage = make_stage("net", nn.Identity())
    check_routes(Application("net", (stage,), (one, replace(one, name="again", route=1))))
    with pytest.raises(CompileError, match="inputs of the same shapes"):
        check_routes(Application("net", (stage,), (one, replace(one, name="again"))))
    with pytest.raises(CompileError, match="takes no tensor"):
        check_routes(Application("net", (stage,), (replace(one, inputs=()),)))


def test_sizes_that_only_an_adapter_sees_are_told_apart():
    cut = ProgramInput("x", TensorSpec((8,)), (Adapter("slice", ("n",)),))
    one = Program("cut", (cut,), (ProgramOutput("value", TensorSpec(("n",))),), sizes=({"n": 2}, {"n": 4}))
    with pytest.raises(CompileError, match=r"'cut' at n=2 and the program 'cut' at n=4"):
        check_routes(Application("cut", (), (one,)))


def test_compiler_arguments_carry_the_core_configuration():
    assert compiler_arguments(NeuronSettings()) is None
    assert compiler_arguments(NeuronSettings(compiler_args="-O1", logical_nc_config=1)) == "-O1 --lnc=1"
    assert (
        compiler_arguments(NeuronSettings(compiler_args="-O1 --lnc=2", logical_nc_config=1)) == "-O1 --lnc=2"
    )


@pytest.mark.parametrize("before", [None, "/somewhere/"])
def test_work_folder_is_one_for_each_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
):
    monkeypatch.delenv(WORK_DIR, raising=False)
    if before:
        monkeypatch.setenv(WORK_DIR, before)
    with work_folder(tmp_path):
        work = Path(os.environ[WORK_DIR])
        assert work.parent == tmp_path
        work.mkdir()
        (work / "graph.neff").write_text("x")
    assert os.environ.get(WORK_DIR) == before
    assert list(tmp_path.iterdir()) == []


class Wrapper:
    return_ranked_to_cpu = False


@pytest.mark.parametrize(
    ("gives", "text"),
    [(torch.ones(2), r"a tensor \[2\] on cpu"), ([], "a list"), ("rows", "2 of them"), (None, "a NoneType")],
)
def test_what_a_forward_may_not_give(monkeypatch: pytest.MonkeyPatch, gives: object, text: str):
    monkeypatch.setattr(ranked, "DEVICE_TYPES", ("meta",))
    if gives == "rows":
        gives = [[torch.empty(1, device="meta")] * 2] * 2
    with pytest.raises(StageError, match=rf"keeps them on the device.*gave {text}"):
        ProgramCall(program(), Wrapper(), lambda *_: gives)()


def test_stage_of_this_project_is_foldable():
    pipeline = Pipeline("one")
    pipeline.output("y", pipeline.add("net", nn.Linear(2, 2))(pipeline.input("x", TensorSpec((1, 2)))))
    assert NxdiBackend("nxdi").foldable(pipeline.freeze().stages["net"])


def test_values_under_the_new_name_of_the_device_are_known_to_nxd_inference(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("neuronx_distributed_inference.models.any")
    vars(module)["is_ranked_io"] = theirs = object()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    accept_renamed_device()
    assert vars(module)["is_ranked_io"] is theirs
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "neuron")
    accept_renamed_device()
    assert vars(module)["is_ranked_io"] is is_ranked

"""Exit codes: 2 where the command line is at fault, 1 where the job failed; each with one clear message."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy
import pytest

from tests.cli.conftest import Shell

X = ("-i", "x=x.npy")
WORDS = ("-i", "prompt=a", "-i", "loud=true")
NULL = ("shop:double", "--device", "null")


@pytest.fixture(autouse=True)
def files(folder: Path) -> None:
    numpy.save(folder / "x.npy", numpy.zeros((2, 3), dtype=numpy.float32))
    numpy.save(folder / "two.npy", numpy.zeros(2, dtype=numpy.float32))
    numpy.save(folder / "wide.npy", numpy.zeros((2, 7), dtype=numpy.float32))
    (folder / "bad.png").write_text("no picture")
    (folder / "crash.py").write_text("raise SystemExit('stop')")
    (folder / "lacks.py").write_text("import no_such_library")


USAGE = {
    "no such pipeline": (("run", "acme-doubel", *X), "Did you mean 'acme-double'?"),
    "no such module": (("run", "shp:double", *X), "There is no module 'shp'"),
    "no such submodule": (("run", "shop.inner:double", *X), "There is no module 'shop.inner'"),
    "no such attribute": (("run", "shop:doble", *X), "'shop' has no 'doble'. Did you mean 'double'?"),
    "a file as module": (("run", "shop.py:double", *X), "MODULE:ATTR"),
    "half a target": (("run", "shop:", *X), "MODULE:ATTR"),
    "no pipeline": (("run", "shop:number"), "is a int"),
    "no pipeline made": (("run", "shop:broken", "--set", "how=return"), "returned a str"),
    "no such device": (("plan", "shop:double", "--device", "cdua"), "'cdua'"),
    "no such device family member": (("plan", "shop:double", "--device", "cuda:x"), "'cuda:x'"),
    "placement device": (("plan", "shop:double", "--placement", "scale=tpu9"), "'tpu9'"),
    "placement stage": (("plan", "shop:double", "--placement", "scael=cpu"), "Did you mean 'scale'?"),
    "placement form": (("plan", "shop:double", "--placement", "scale"), "STAGE=DEVICE"),
    "sizes dim": (("plan", "shop:double", "--sizes", "bacth=4"), "Did you mean 'batch'?"),
    "sizes form": (("plan", "shop:double", "--sizes", "batch"), "DIM=SIZE"),
    "sizes value": (("plan", "shop:double", "--sizes", "batch=4,x"), "positive ints"),
    "sizes zero": (("plan", "shop:double", "--sizes", "batch=0"), "positive ints"),
    "sizes empty": (("plan", "shop:double", "--sizes", "batch="), "positive ints"),
    "residency form": (("plan", "shop:double", "--residency", "scale.output -> y"), "FROM -> TO=host"),
    "residency edge": (
        ("plan", "shop:double", "--residency", "x->scale.y=host"),
        "Did you mean 'x -> scale.x'?",
    ),
    "residency value": (("plan", "shop:double", "--residency", "x -> scale.x=hots"), "device or host"),
    "residency twice": (
        ("plan", "shop:double", "--residency", "x->scale.x=host", "--residency", "x -> scale.x=device"),
        "given twice for 'x -> scale.x'",
    ),
    "memory value": (("plan", "shop:double", "--memory", "lots"), "a size like '16GB'"),
    "memory of nothing": (("plan", "shop:double", "--memory", ""), "a size like '16GB'"),
    "memory device": (("plan", "shop:double", "--memory", "cup=1GB"), "Did you mean 'cpu'?"),
    "memory unused": (("plan", "shop:double", "--memory", "cuda=1GB"), "which the plan does not use"),
    "memory of all and one": (("plan", "shop:double", "--memory", "1GB", "--memory", "cpu=1GB"), "one SIZE"),
    "option form": (("plan", "shop:double", "--option", "ranks"), "NAME=VALUE"),
    "option twice": (("plan", "shop:double", "--option", "a=1", "--option", "a=2"), "twice"),
    "option of no backend": (("plan", "shop:double", "--option", "colour=2"), "knows the option 'colour'"),
    "option mistyped": (("run", *NULL, *X, "--option", "rnaks=2"), "Did you mean 'ranks'?"),
    "option of another type": (("plan", *NULL, "--option", "ranks=two"), "takes int, not 'two'"),
    "setting form": (("plan", "shop:double", "--set", "factor"), "OPTION=VALUE"),
    "setting name": (("plan", "shop:double", "--set", "=3"), "OPTION=VALUE"),
    "setting half": (("plan", "shop:double", "--set", "scale.=3"), "STAGE.OPTION"),
    "setting twice": (("plan", "shop:double", "--set", "width=3", "--set", "width=4"), "twice"),
    "no such option": (("plan", "shop:double", "--set", "fcator=3"), "Did you mean 'factor'?"),
    "no such option of a pipeline": (("plan", "shop:ready", "--set", "nmae=3"), "Did you mean 'name'?"),
    "tensor by setting": (("plan", "shop:double", "--set", "x=3"), "--input x=FILE"),
    "no such stage": (("plan", "shop:double", "--set", "scael.factor=3"), "scale"),
    "option missing": (("plan", "shop:needy"), "--set secret=VALUE"),
    "inputs missing": (("run", "shop:double"), "x: [batch, 3] float32, from .npy or .safetensors"),
    "some inputs missing": (
        ("run", "shop:sampled", *X, "--set", "echo=true"),
        "needs more inputs, each as --input NAME=FILE: prompt",
    ),
    "no such input": (("run", "shop:double", *X, "-i", "z=x.npy"), "has no input 'z'"),
    "input form": (("run", "shop:double", "-i", "x.npy"), "NAME=FILE"),
    "input twice": (("run", "shop:double", *X, *X), "twice"),
    "input by both": (("run", "shop:hello", "-i", "name=a", "--set", "name=b"), "--input and by --set"),
    "missing file": (("run", "shop:double", "-i", "x=nope.npy"), "does not exist"),
    "unknown ending": (("run", "shop:double", "-i", "x=x.pt"), ".npy or .safetensors"),
    "picture for a vector": (("run", "shop:double", "-i", "x=bad.png"), "no picture"),
    "value of another type": (
        ("run", "shop:words", *WORDS, "-i", "times=x"),
        "a int",
    ),
    "out is a file": (("run", "shop:double", *X, "--out", "x.npy"), "cannot be a folder"),
    "no such command option": (("run", "shop:double", "--inptu", "x"), "No such option"),
    "no such command": (("rnu",), "No such command"),
    "no target": (("run",), "Missing argument"),
    "no such format": (("draw", "shop:double", "--format", "gif"), "gif"),
}

FAILED = {
    "planning": (("plan", "shop:invalid"), "linear"),
    "a size that is no bucket": (("plan", "shop:double", "--sizes", "batch=3"), "batch"),
    "a residency that cannot be": (
        ("plan", *NULL, "--residency", "x -> scale.x=device"),
        "come from the host",
    ),
    "too little memory": (("run", *NULL, *X, "--memory", "null=10"), "more memory than its budget"),
    "examples that fail": (("run", "shop:sampled", "--set", "how=raise"), "OSError: the photo is not here"),
    "a size missing": (("plan", "shop:bare"), "sizes"),
    "a module that ends": (("plan", "crash:pipeline"), "SystemExit: stop"),
    "a module that lacks a library": (("plan", "lacks:pipeline"), "no_such_library"),
    "a factory that raises": (("plan", "shop:broken"), "ValueError: the weights are not here"),
    "a registered target that is gone": (("plan", "acme-gone"), "no_such_thing"),
    "no picture": (("run", "shop:negative", "-i", "image=bad.png"), "cannot be read as a PNG or JPEG"),
    "a shape that does not fit": (("run", "shop:double", "-i", "x=wide.npy"), "7"),
    "a stage that raises": (("run", "shop:failing", "-i", "x=two.npy"), "the stage broke"),
    "a device that is not here": (("run", "shop:double", *X, "--device", "cuda:77"), "cuda:77"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage(shell: Shell, case: str):
    words, message = USAGE[case]
    done = shell(*words, code=2)
    assert message in " ".join(done.err.replace("│", " ").split())
    assert not done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize("case", FAILED)
def test_a_failed_job(shell: Shell, case: str):
    words, message = FAILED[case]
    done = shell(*words, code=1)
    assert done.err.startswith("error: ")
    assert message in done.err
    assert not done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (("run", "shop:double", *X, "--device", "cdua"), 2, "UsageError"),
        (("run", "shop:failing", "-i", "x=two.npy"), 1, "StageError"),
        (("run", "shop:double", "-i", "x=wide.npy"), 1, "InputError"),
        (("plan", "shop:broken"), 1, "JobError"),
        (("validate", "shop:invalid"), 1, "PlanError"),
    ],
)
def test_errors_as_json(shell: Shell, words: tuple[str, ...], code: int, kind: str):
    done = shell(*words, "--json", code=code)
    assert done.data["error"]["type"] == kind
    assert done.err == f"error: {done.data['error']['message']}\n"


def test_debug_shows_the_traceback_and_the_cause(shell: Shell):
    done = shell("run", "shop:failing", "-i", "x=two.npy", "--debug", code=1)
    assert "Traceback" in done.err
    assert "RuntimeError: the stage broke" in done.err


def test_a_fault_of_our_own_keeps_its_traceback(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    from orchestrator.cli import machine

    monkeypatch.setattr(machine, "describe_machine", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shell("env", "--json")


@pytest.mark.skipif(os.geteuid() == 0 or sys.platform == "win32", reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(shell: Shell, folder: Path):
    (folder / "out").mkdir(mode=0o500)
    done = shell("run", "shop:double", *X, "--out", "out", code=1)
    assert "cannot be written" in done.err

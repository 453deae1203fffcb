"""Input files whose author means ill, or that are damaged: one line, and neither time nor memory. Kind: borders.

All of :mod:`tests.cli.hostile` is read in a process that may take a gibibyte; flipped bytes of sound files in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.cli.report import JobError, UsageError
from orchestrator.cli.values import read_input
from orchestrator.specs import TensorSpec
from orchestrator_stages.demos.speech.recording import Recording
from tests.cli.conftest import Shell
from tests.cli.hostile import FILES, PHOTO, SOUND, VECTOR, npy, read, wav

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is bounded on Linux only")
    command = [sys.executable, "-m", "tests.cli.hostile", str(tmp_path_factory.mktemp("files"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), "a warning is no line of an error"
    return {name: (found, seconds) for name, found, seconds in json.loads(done.stdout)}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_a_line_without_time_or_memory(
    outcomes: dict[str, tuple[str, float]], name: str
):
    found, seconds = outcomes[name]
    assert found.startswith("read" if name in SOUND else "refused: ")
    assert name in SOUND or name in found, "the file is named"
    assert "\n" not in found
    assert "MemoryError" not in found
    assert len(found) < 1000
    assert seconds < 2


def test_booleans_of_a_file_are_booleans(tmp_path: Path):
    """Any bits in a byte: numpy and safetensors hand them on, and torch then counts with them."""
    (tmp_path / "any-bits.npy").write_bytes(FILES["any-bits.npy"])
    value = read(tmp_path / "any-bits.npy")
    assert isinstance(value, torch.Tensor)
    assert value.sum() == 3
    assert value.view(torch.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "x.png", "x.json", "x.wav"])
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path, name: str):
    kinds = {".json": list, ".wav": Recording, ".png": PHOTO}
    spec: Any = kinds.get(Path(name).suffix, VECTOR)
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is no ordinary file"):
        read_input("x", str(path), spec)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="is no ordinary file"):
        read_input("x", str(path), spec)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UsageError, match="cannot be opened"):
        read_input("x", str(path), spec)
    with pytest.raises(UsageError, match="does not exist"):
        read_input("x", str(tmp_path / "none" / name), spec)


def test_a_picture_that_the_input_does_not_take_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda file: pytest.fail("it was decoded"))
    with pytest.raises(JobError, match="20 rows and 30 columns, but the input 'x'"):
        read_input("x", str(tmp_path / "a.png"), TensorSpec((40, 30, 3), torch.uint8))


def _npy(path: Path) -> None:
    numpy.save(path, numpy.arange(12.0).reshape(3, 4))


def _tensors(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bool)}, path)


def _picture(path: Path) -> None:
    Image.fromarray(numpy.arange(192, dtype=numpy.uint8).reshape(8, 8, 3)).save(path)


WRITERS: dict[str, tuple[Callable[[Path], object], Any]] = {
    "x.npy": (_npy, VECTOR),
    "x.safetensors": (_tensors, list),
    "x.png": (_picture, PHOTO),
    "x.jpg": (_picture, PHOTO),
    "x.wav": (lambda path: path.write_bytes(wav(8000, 50)), Recording),
    "x.json": (lambda path: path.write_text('[1, 2.5, "text", {"a": [null, true]}]'), list),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str):
    """Bytes flipped, left out and put in anywhere."""
    write, spec = WRITERS[name]
    path = tmp_path_factory.mktemp("damaged") / name
    write(path)
    whole = path.read_bytes()
    places = st.integers(0, len(whole) - 1)
    edits = st.lists(
        st.tuples(places, st.integers(0, 255), st.sampled_from(["flip", "cut", "put"])),
        min_size=1,
        max_size=4,
    )

    @settings(max_examples=60, deadline=None)
    @given(edits)
    def check(changes: list[tuple[int, int, str]]) -> None:
        data = bytearray(whole)
        for at, byte, kind in changes:
            if kind == "flip":
                data[at % len(data)] = byte
            elif kind == "cut":
                del data[max(at, 1) :]
            else:
                data[at:at] = bytes([byte] * 3)
        path.write_bytes(data)
        try:
            read_input("x", str(path), spec)
        except (JobError, UsageError) as error:
            assert "\n" not in str(error)  # noqa: PT017

    check()


def test_a_command_ends_with_one_line_and_goes_on_with_the_next(shell: Shell, folder: Path):
    (folder / "huge.npy").write_bytes(FILES["seven-tebibytes.npy"])
    (folder / "well.npy").write_bytes(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"))
    (folder / "deep.json").write_bytes(FILES["deep.json"])
    (folder / "mine.py").write_text(
        "from orchestrator import Pipeline, TensorSpec\n"
        "def vector():\n"
        "    p = Pipeline('v')\n"
        "    p.output('y', p.add('s', lambda x: x + 1)(p.input('x', TensorSpec((2,)))))\n"
        "    return p\n"
        "def json():\n"
        "    p = Pipeline('j')\n"
        "    p.output('y', p.add('s', lambda x: len(x), device='host', outputs={'n': int})(p.input('x', list)))\n"
        "    return p\n"
    )
    for target, file in (("mine:vector", "huge.npy"), ("mine:json", "deep.json")):
        err = shell("run", target, "--input", f"x={file}", code=1).err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    shell("run", "mine:json", "--input", "x=" + "[" * 100_000, code=2)
    shell("run", "mine:vector", "--input", "x=well.npy", "--option", "a=" + "[" * 100_000, code=2)
    assert "1" in shell("run", "mine:vector", "--input", "x=well.npy").out

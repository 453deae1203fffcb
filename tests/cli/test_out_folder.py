"""Outputs stay in ``--out``, all of them or none. Kind: names and links that lead out of a folder."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.output_files import Batch, file_stem, file_stems
from orchestrator.cli.report import JobError
from orchestrator.cli.values import write_output, write_outputs
from tests.cli.conftest import Shell

NAMES = [
    "..",
    ".",
    "../up",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "a\0b",
    "a\nb",
    "con",
    "NUL.txt",
    "lpt1",
    "~",
    ".hidden",
    "ends.",
    " ",
    "-rf",
    "%2e%2e",
    "x" * 400,
    "ü" * 300,
    "\ud800",
    "a\u2028b",
]

VALUES = {"txt": "text", "npy": torch.ones(2), "list": [torch.ones(2)], "json": {"a": 1}}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "value", ["text", torch.ones(2), [torch.ones(2)], {"a": 1}], ids=["txt", "npy", "list", "json"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str, value: Any):
    out = tmp_path / "out"
    out.mkdir()
    path = write_output(out, name, value)
    assert path.parent == out
    assert path.exists()
    assert not path.name.startswith(".")
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@given(st.text(min_size=1, max_size=300))
def test_a_name_is_one_part_of_a_path_on_every_system(name: str):
    stem = file_stem(name)
    assert not set(stem) & set('/\\:*?"<>|\0\n')
    assert 0 < len(stem.encode()) <= 200
    assert stem not in (".", "..")
    assert not stem.startswith(".")
    assert stem.partition(".")[0].lower() not in ("con", "nul", "aux", "prn", "com1")


@given(
    st.lists(st.text(alphabet="aAäÄ\u0308ßsSK\u212a~2/%", min_size=1, max_size=4), unique=True, max_size=8)
)
def test_no_two_outputs_are_one_file_on_any_system(names: list[str]):
    stems = file_stems(names)
    assert list(stems) == names
    folded = [
        unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold()) for stem in stems.values()
    ]
    assert len(set(folded)) == len(names)


def test_ordinary_names_stay_as_they_are():
    names = ["boxes", "grüße", "画像", "a b", "x-1", "mel_80", "1"]
    assert file_stems(names) == {name: name for name in names}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path):
    out, other = tmp_path / "out", tmp_path / "other.txt"
    out.mkdir()
    other.write_text("mine")
    (out / "y.txt").symlink_to(other)
    (out / "z.txt").symlink_to(tmp_path / "nothing.txt")
    write_outputs(out, {"y": "new", "z": "new"})
    assert other.read_text() == "mine"
    assert not (tmp_path / "nothing.txt").exists()
    for name in "yz":
        assert (out / f"{name}.txt").read_text() == "new"
        assert not (out / f"{name}.txt").is_symlink()


def test_a_linked_folder_is_refused_and_nothing_is_written(tmp_path: Path):
    out, other = tmp_path / "out", tmp_path / "other"
    for folder in (out, other):
        folder.mkdir()
    (other / "7.npy").write_text("mine")
    (out / "crops").symlink_to(other)
    with pytest.raises(JobError, match=r"crops' cannot be written: it is a symbolic link"):
        write_outputs(out, {"y": "text", "crops": [torch.ones(1)]})
    assert [item.name for item in out.iterdir()] == ["crops"]
    assert [item.name for item in other.iterdir()] == ["7.npy"]


@pytest.mark.parametrize("last", ["no form", "a folder in the way", "no room"])
def test_all_outputs_are_written_or_none(tmp_path: Path, last: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "y.txt").write_text("older")
    values: dict[str, Any] = {"y": "new", "many": [torch.ones(2)], "z": "text"}
    if last == "no form":
        values["z"] = object()
    elif last == "a folder in the way":
        (tmp_path / "z.txt").mkdir()
    else:
        monkeypatch.setattr("orchestrator.cli.values.save_npy", _full)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(JobError):
        write_outputs(tmp_path, values)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "y.txt").read_text() == "older"


def _full(array: object, file: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_list_that_became_shorter_leaves_nothing_of_the_longer(tmp_path: Path):
    write_output(tmp_path, "crops", [torch.ones(2)] * 3)
    (tmp_path / "crops" / "mine.txt").write_text("mine")
    write_output(tmp_path, "crops", [torch.ones(2)], tensors="safetensors")
    assert sorted(path.name for path in (tmp_path / "crops").iterdir()) == ["0.safetensors", "mine.txt"]


def test_a_temporary_file_is_nobodys_guess(tmp_path: Path):
    """Who can write into the folder could put a link under a name that is known before."""
    with Batch() as batch:
        batch.write(tmp_path / "a", lambda file: file.write(b"1"))
        (name,) = [path.name for path in tmp_path.iterdir()]
    with Batch() as batch:
        batch.write(tmp_path / "a", lambda file: file.write(b"2"))
        (other,) = [path.name for path in tmp_path.iterdir() if path.name != "a"]
    assert name != other
    assert (tmp_path / "a").read_bytes() == b"2"


def test_a_command_says_where_each_output_is(shell: Shell, folder: Path):
    (folder / "mine.py").write_text(
        "from orchestrator import Pipeline, TensorSpec\n"
        "def odd():\n"
        "    p = Pipeline('v')\n"
        "    x = p.input('x', int)\n"
        "    for name in ('Q', 'q', 'a\\\\b', 'nul'):\n"
        "        p.output(name, p.add(f'to {name}', lambda x: x, device='host', outputs={'n': int})(x))\n"
        "    return p\n"
    )
    files = shell("run", "mine:odd", "--input", "x=3", "--out", "here", "--json").data["outputs"]
    names = [Path(found["file"]).name for found in files.values()]
    assert names == ["Q.json", "q~2.json", "a%5Cb.json", "_nul_.json"]
    assert sorted(path.name for path in (folder / "here").iterdir()) == sorted(names)

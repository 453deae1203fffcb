"""A disk that is full, a folder that cannot be written: said in words, nothing half-written, the next try works."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.errors import CompileError
from orchestrator.store import ArtifactStore, files, manifest

KEY = "ab" * 32


def write(folder: Path) -> None:
    (folder / "program.bin").write_bytes(bytes(100_000))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True)
    if result.returncode:
        pytest.skip("only root mounts a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def by_python(folder: Path) -> None:
    (folder / "program.bin").write_bytes(bytes(1_000_000))


def by_torch(folder: Path) -> None:
    torch.save(torch.zeros(1_000_000), folder / "program.pt")  # a RuntimeError


def wrapped(folder: Path) -> None:
    try:
        by_python(folder)
    except OSError as error:
        raise CompileError("the compiler failed") from error


def by_a_compiler(folder: Path) -> None:
    subprocess.run(f"head -c 1000000 /dev/zero > {folder}/program.bin", shell=True, check=True)


@pytest.mark.parametrize("build", [by_python, by_torch, wrapped, by_a_compiler])
def test_a_full_disk(small_disk: Path, build: Callable[[Path], None]):
    store = ArtifactStore(small_disk / "store")
    with pytest.raises(CompileError, match=r"disk is full.*cache clean") as error_info:
        store.get_or_build(KEY, build, {"stage": "vision"})
    assert "'vision'" in str(error_info.value)
    assert error_info.value.path == store.path
    assert store.entries() == ()
    assert not [path for path in (store.path / "artifacts").rglob("*") if path.is_file()]
    assert store.get_or_build(KEY, write) == store.find(KEY)


def test_a_disk_that_is_full_before_anything_is_written(small_disk: Path):
    store = ArtifactStore(small_disk / "store")
    store.get_or_build("cd" * 32, write)
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'filler'}"], capture_output=True)
    with pytest.raises(CompileError, match="disk is full"):
        store.get_or_build(KEY, write)
    assert [entry.state for entry in store.entries()] == ["ok"]
    store.clean()
    (small_disk / "filler").unlink()
    store.get_or_build(KEY, write)


@pytest.mark.parametrize("step", ["sync", "mkdir", "replace", "write_text"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_every_step_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int):
    store = ArtifactStore(tmp_path / "store")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if step == "sync":
            patch.setattr(manifest, "sync", fail)
        else:
            patch.setattr(Path, step, fail)
        with pytest.raises(CompileError, match=os.strerror(code)) as error_info:
            store.get_or_build(KEY, write)
    assert str(store.path) in str(error_info.value)
    assert store.find(KEY) is None
    assert store.entries() == ()
    assert store.get_or_build(KEY, write) == store.find(KEY)


def test_a_store_that_cannot_be_a_folder(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file/store"):
        with pytest.raises(CompileError, match="Give a folder that can be made"):
            ArtifactStore(path).get_or_build(KEY, write)


#: Looks into a store as a user who may only read it, or on a file system that is read-only.
READER = """
import os, sys
import filelock  # another user may not read the packages
from pathlib import Path
from orchestrator.errors import CompileError
from orchestrator.store import ArtifactStore
if sys.argv[2] == "user":
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
store = ArtifactStore(sys.argv[1])
missing = "cd" * 32
def never(folder):
    raise AssertionError("it was built")
assert store.find("ab" * 32) == store.get_or_build("ab" * 32, never)
assert store.find(missing) is None
assert [entry.state for entry in store.entries(checksums=True)] == ["ok"]
store.write_plan("plan")
try:
    store.get_or_build(missing, never, {"stage": "vision"})
except CompileError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user, or mounts a file system")
@pytest.mark.parametrize("how", ["user", "mount"])
def test_a_store_that_can_only_be_read(readable: Path, how: str):
    store = ArtifactStore(readable / "store")
    store.get_or_build(KEY, write)
    store.write_plan("plan")
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    mount = (
        subprocess.run(["mount", "--bind", readable, readable], capture_output=True)
        if how == "mount"
        else None
    )
    if mount and mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        if mount:
            subprocess.run(["mount", "-o", "remount,ro,bind", readable], check=True)
        process = subprocess.run(
            [sys.executable, "-c", READER, store.path, how], capture_output=True, text=True, timeout=60
        )
    finally:
        if mount:
            subprocess.run(["umount", "-l", readable], check=True)
    assert not process.returncode, process.stderr
    assert "'vision' cannot be stored" in process.stdout
    assert "Give a folder that can be made and written to" in process.stdout
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_is_gone_at_once_for_who_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = ArtifactStore(tmp_path / "store")
    folder = store.get_or_build(KEY, write)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # killed right before it is emptied
    assert len(store.clean().artifacts) == 1
    assert not folder.exists()
    assert store.entries() == ()
    monkeypatch.undo()
    assert store.clean().stale_builds == 1
    assert not list(folder.parent.iterdir())

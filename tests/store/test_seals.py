"""Files of an artifact that are sealed before it is done: the next build of its key finds them, true ones alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.store import ArtifactStore, content_key
from orchestrator.store.seals import seal, sealed_content

KEY = content_key("parts")


class Killed(BaseException):
    """What ends a build and is no error of it."""


def built(store: ArtifactStore, build: Callable[[Path], object]) -> Path:
    return store.get_or_build(KEY, build)


def cut_short(store: ArtifactStore, end: type[BaseException] = Killed) -> None:
    """A build that is ended with one of its files sealed and another one begun."""

    def build(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "sub").mkdir()
        (folder / "sub" / "first").write_bytes(b"done")
        seal(folder / "sub" / "first", {"number": 1})
        (folder / "second").write_bytes(b"beg")
        raise end

    with pytest.raises(end):
        built(store, build)
    assert store.find(KEY) is None


def test_the_next_build_finds_what_was_sealed_and_nothing_else(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    cut_short(store)

    def build(folder: Path) -> None:
        assert sealed_content(folder / "sub" / "first") == {"number": 1}
        assert sealed_content(folder / "second") is None
        assert not (folder / "second").exists()
        (folder / "second").write_bytes(b"done as well")

    place = built(store, build)
    assert (place / "sub" / "first").read_bytes() == b"done"
    assert not list(place.rglob("*.seal"))
    assert not store.verify()
    assert not list(tmp_path.glob("artifacts/*/??/.*"))


def test_a_file_that_changed_since_is_made_again(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    cut_short(store)
    (left,) = tmp_path.glob("artifacts/*/??/.*/sub/first")
    left.write_bytes(b"DONE")
    place = built(store, lambda folder: (folder / "a").write_bytes(b"".join(map(bytes, folder.iterdir()))))
    assert [path.name for path in place.iterdir() if path.name != "orchestrator-manifest.json"] == ["a"]


def test_what_a_failed_build_has_sealed_goes(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    cut_short(store, ValueError)
    assert not list(tmp_path.glob("artifacts/*/??/.*"))


def test_cleaning_removes_what_a_build_has_left(tmp_path: Path):
    store = ArtifactStore(tmp_path)
    cut_short(store)
    assert store.clean().stale_builds == 1
    assert not list(tmp_path.glob("artifacts/*/??/.*"))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"sha256": 3, "content": {}}'])
def test_a_seal_that_says_nothing_is_none(tmp_path: Path, text: bytes):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    seal(path)
    assert sealed_content(path) == {}
    (tmp_path / ".file.seal").write_bytes(text)
    assert sealed_content(path) is None
    assert sealed_content(tmp_path / "nothing") is None

"""A store: an artifact is there whole or not at all, damage is found, cleaning takes what it should."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import CompileError
from orchestrator.store import ArtifactStore, files

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def build(text: str = "code") -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "program.bin").write_text(text)
        (folder / "deep/er").mkdir(parents=True)
        (folder / "deep/er/empty").touch()

    return fill


def never(folder: Path) -> None:
    raise AssertionError("it was built again")


def test_what_is_built_is_found_and_not_built_again(store: ArtifactStore):
    assert store.find(KEY) is None
    folder = store.get_or_build(KEY, build(), {"stage": "vision", "sizes": {"batch": 4}})
    assert (folder / "program.bin").read_text() == "code"
    assert store.find(KEY) == folder == store.get_or_build(KEY, never)
    assert ArtifactStore(store.path).get_or_build(KEY, never) == folder
    (entry,) = store.entries()
    assert (entry.key, entry.state, entry.fault) == (KEY, "ok", "")
    assert entry.about == {"stage": "vision", "sizes": {"batch": 4}}
    assert entry.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert store.verify() == ()


def test_an_artifact_may_have_no_files(store: ArtifactStore):
    folder = store.get_or_build(KEY, lambda folder: None)
    assert store.find(KEY) == folder


def test_every_flipped_byte_is_found_and_the_artifact_is_rebuilt(store: ArtifactStore):
    folder = store.get_or_build(KEY, build())
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for position in range(len(whole)):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            assert store.find(KEY) is None, (path.name, position)
        path.write_bytes(whole)
    assert store.find(KEY) == folder
    (folder / "program.bin").write_text("edoc")
    assert [entry.state for entry in store.entries()] == ["ok"]  # a look at sizes alone
    (damaged_entry,) = store.verify()
    assert "program.bin" in damaged_entry.fault
    assert (store.get_or_build(KEY, build("new")) / "program.bin").read_text() == "new"
    assert store.verify() == ()


@pytest.mark.parametrize("name", ["program.bin", "deep/er/empty", "orchestrator-manifest.json"])
def test_a_missing_or_cut_file_is_damage(store: ArtifactStore, name: str):
    folder = store.get_or_build(KEY, build())
    (folder / name).unlink()
    assert store.find(KEY) is None
    assert [entry.state for entry in store.entries()] == ["damaged"]
    store.get_or_build(KEY, build())
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"")
    assert (store.find(KEY) is None) == (name != "deep/er/empty")


def test_an_artifact_under_another_key_is_damage(store: ArtifactStore):
    folder = store.get_or_build(KEY, build())
    place = folder.parent.parent / OTHER[:2] / OTHER
    place.parent.mkdir()
    folder.rename(place)
    assert store.find(OTHER) is None
    assert KEY in store.verify()[0].fault


def test_a_build_that_raises_leaves_nothing(store: ArtifactStore):
    def fail(folder: Path) -> None:
        build()(folder)
        raise RuntimeError("no such operation")

    with pytest.raises(RuntimeError, match="no such operation"):
        store.get_or_build(KEY, fail)
    assert store.find(KEY) is None
    assert store.entries() == ()
    assert not [path for path in (store.path / "artifacts").rglob("*") if path.is_file()]
    store.get_or_build(KEY, build())


def test_an_error_of_the_compiler_is_not_blamed_on_the_store(store: ArtifactStore):
    def fail(folder: Path) -> None:
        raise FileNotFoundError("the compiler is not installed")

    with pytest.raises(FileNotFoundError, match="not installed"):
        store.get_or_build(KEY, fail)


def version_of(folder: Path, version: int) -> None:
    manifest = folder / "orchestrator-manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": version}))


def test_an_artifact_of_another_version_is_listed_and_rebuilt(store: ArtifactStore):
    folder = store.get_or_build(KEY, build("old"))
    version_of(folder, 7)
    assert store.find(KEY) is None
    (entry,) = store.entries()
    assert entry.state == "other version"
    assert "7" in entry.fault
    assert store.verify() == ()
    assert (store.get_or_build(KEY, build("new")) / "program.bin").read_text() == "new"


def test_another_release_has_its_artifacts_beside_ours(store: ArtifactStore):
    folder = store.get_or_build(KEY, build("theirs"))
    theirs = store.path / "artifacts/7" / KEY[:2] / KEY
    theirs.parent.mkdir(parents=True)
    folder.rename(theirs)
    version_of(theirs, 7)
    ours = store.get_or_build(KEY, build("ours"))
    assert sorted(entry.state for entry in store.entries()) == ["ok", "other version"]
    assert store.clean(only_damaged=True).artifacts == ()
    assert len(store.clean().artifacts) == 2
    assert not ours.exists()
    assert not theirs.exists()


@pytest.mark.parametrize("marker", ['{"layout": 2}', '{"layout": 70, "more": []}'])
def test_the_store_of_a_newer_release_is_refused(store: ArtifactStore, marker: str):
    store.get_or_build(KEY, build())
    (store.path / "store.json").write_text(marker)
    with pytest.raises(CompileError, match=r"newer release.*another folder") as error_info:
        ArtifactStore(store.path)
    assert error_info.value.path == store.path


@pytest.mark.parametrize(
    "marker",
    [b"", b'{"layo', b"nonsense", b"[]", b"\xff\x00", b'{"layout": "2"}', b'{"layout": 0}', b"[" * 99_999],
)
def test_a_damaged_marker_is_written_anew(store: ArtifactStore, marker: bytes):
    folder = store.get_or_build(KEY, build())
    whole = (store.path / "store.json").read_bytes()
    (store.path / "store.json").write_bytes(marker)
    again = ArtifactStore(store.path)
    assert again.find(KEY) == folder == again.get_or_build(KEY, never)
    assert (store.path / "store.json").read_bytes() == marker  # looking changes nothing
    again.get_or_build(OTHER, build())
    assert (store.path / "store.json").read_bytes() == whole


def test_a_plan_that_is_there_is_not_written_again(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch):
    store.write_plan("plan")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", lambda *_: pytest.fail("it was written"))
        store.write_plan("plan")
    store.write_plan("other")
    assert (store.path / "plan.json").read_text() == "other"


def test_a_key_is_a_digest(store: ArtifactStore):
    for wrong in ("", "../../etc", "short", "AB" * 32):
        with pytest.raises(ValueError, match="content key"):
            store.get_or_build(wrong, build())
    assert not store.path.exists()


def test_cleaning_takes_all_or_what_is_damaged_or_unused(store: ArtifactStore):
    old = store.get_or_build(KEY, build())
    new = store.get_or_build(OTHER, build())
    os.utime(old / "orchestrator-manifest.json", (0, 0))
    assert [entry.key for entry in store.clean(unused_days=30).artifacts] == [KEY]
    store.get_or_build(KEY, build())
    os.utime(old / "orchestrator-manifest.json", (0, 0))
    store.find(KEY)  # being asked for is use
    assert store.clean(unused_days=30).artifacts == ()
    (new / "program.bin").write_text("edoc")
    report = store.clean(only_damaged=True)
    assert [entry.key for entry in report.artifacts] == [OTHER]
    assert report.bytes == report.artifacts[0].bytes > 0
    assert [entry.key for entry in store.clean().artifacts] == [KEY]
    assert store.entries() == ()
    assert store.clean() == ArtifactStore(store.path).clean()


def test_cleaning_makes_and_takes_nothing_of_others(tmp_path: Path):
    theirs = tmp_path / "artifacts/1/ab/readme"
    theirs.mkdir(parents=True)
    (tmp_path / "artifacts/1/ab/.hidden.file").touch()
    before = sorted(tmp_path.rglob("*"))
    ArtifactStore(tmp_path).clean()
    assert sorted(tmp_path.rglob("*")) == before
    absent = ArtifactStore(tmp_path / "absent")
    assert absent.clean().artifacts == absent.entries() == absent.verify() == ()
    assert not absent.path.exists()


def test_an_artifact_has_the_permissions_of_any_new_folder(store: ArtifactStore, tmp_path: Path):
    plain = tmp_path / "plain"
    plain.mkdir()
    folder = store.get_or_build(KEY, build())
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_store_can_be_read_where_it_cannot_be_written(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    folder = store.get_or_build(KEY, build())

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "utime", denied)
    monkeypatch.setattr(Path, "mkdir", denied)
    assert store.get_or_build(KEY, never) == folder

"""A store that somebody else can write to is refused. Kind: a border behind which another user of the machine writes.

Other users are real: the tests are root, or skipped where they have to be.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from orchestrator import CompileError, Pipeline, TensorSpec
from orchestrator.store import ArtifactStore
from orchestrator.store.owners import TRUSTED_VARIABLE

KEY = "0123456789abcdef"
NOBODY = 65534
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be other users"
)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder of this user below a sticky one, as temporary folders are; others may look into it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def build(folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "a.bin").write_bytes(b"a" * 100)


def refused(store: Path, *words: str) -> None:
    """The store is refused before anything in it is read or written."""
    before = sorted(store.rglob("*")) if store.is_dir() else []
    for ask in (
        lambda: ArtifactStore(store).find(KEY),
        lambda: ArtifactStore(store).get_or_build(KEY, build),
        lambda: ArtifactStore(store).write_plan("{}"),
    ):
        with pytest.raises(CompileError) as error_info:
            ask()
        for word in (*words, TRUSTED_VARIABLE, "refused"):
            assert word in str(error_info.value)
        assert "\n" not in str(error_info.value)
    assert before == (sorted(store.rglob("*")) if store.is_dir() else [])


def chown(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def shared(path: Path) -> None:
    """A group that is nobody's private one may write."""
    os.chown(path, -1, NOBODY)
    path.chmod(0o775)


CHANGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "everybody": (".", lambda path: path.chmod(0o777), "everybody"),
    "everybody, sticky": (".", lambda path: path.chmod(0o1777), "everybody"),
    "a group": (".", shared, "group"),
    "another owner": (".", chown, "belongs to nobody"),
    "the folder above is everybody's": ("..", lambda path: path.chmod(0o777), "everybody"),
    "the folder above is a group's": ("..", shared, "group"),
    "the folder above is another's": ("..", chown, "belongs to nobody"),
    "a folder between": ("artifacts", lambda path: path.chmod(0o777), "everybody"),
    "an artifact": (f"artifacts/1/01/{KEY}", chown, "belongs to nobody"),
    "a folder in an artifact": (f"artifacts/1/01/{KEY}/parts", shared, "group"),
    "a file": (f"artifacts/1/01/{KEY}/parts/a.bin", lambda path: path.chmod(0o666), "everybody"),
    "a file of another": (f"artifacts/1/01/{KEY}/parts/a.bin", chown, "belongs to nobody"),
    "a manifest of another": (f"artifacts/1/01/{KEY}/orchestrator-manifest.json", chown, "belongs to nobody"),
}


@as_root
@pytest.mark.parametrize("name", CHANGES)
def test_a_store_that_another_can_write_to_is_refused(
    base: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, change, word = CHANGES[name]
    store = base / "above" / "store"
    ArtifactStore(store).get_or_build(KEY, build)
    path = (store / where).resolve()
    before = path.stat()
    change(path)
    if where in (".", ".."):
        refused(store, word, repr(str(path)))
    else:
        with pytest.raises(CompileError, match=word):
            ArtifactStore(store).find(KEY)
    monkeypatch.setenv(TRUSTED_VARIABLE, str(base / "else"))
    with pytest.raises(CompileError, match=word):
        ArtifactStore(store).find(KEY)
    # Each way out that the message names.
    monkeypatch.setenv(TRUSTED_VARIABLE, f"{base / 'else'}{os.pathsep}{store}")
    assert ArtifactStore(store).find(KEY) is not None
    monkeypatch.delenv(TRUSTED_VARIABLE)
    os.chown(path, before.st_uid, before.st_gid)
    path.chmod(path.stat().st_mode & ~0o022)
    assert ArtifactStore(store).find(KEY) is not None


@as_root
def test_a_link_of_another_in_a_sticky_folder_does_not_lead_to_a_store(base: Path) -> None:
    sticky = base / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    ArtifactStore(base / "store").get_or_build(KEY, build)
    own, others = sticky / "own", sticky / "others"
    for link in (own, others):
        link.symlink_to(base / "store")
    assert ArtifactStore(own).find(KEY) is not None
    os.chown(others, NOBODY, NOBODY, follow_symlinks=False)
    refused(others, "belongs to nobody", repr(str(others)))
    refused(others / ".." / "others", "belongs to nobody")


@as_root
def test_what_another_put_into_an_open_folder_is_not_loaded(base: Path) -> None:
    """The attack itself: a folder that anybody may write to, where somebody was first."""
    base.chmod(0o777)
    store = base / "store"
    child = os.fork()
    if child == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            ArtifactStore(store).get_or_build(KEY, build)
        except CompileError:
            store.mkdir()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert store.stat().st_uid == NOBODY
    refused(store, "everybody")
    base.chmod(0o1777)
    refused(store, "belongs to nobody")


@as_root
@pytest.mark.parametrize("umask", [0o002, 0o000, 0o077])
def test_a_new_store_is_private_whatever_the_umask(base: Path, umask: int) -> None:
    """Also what a compiler makes by itself, with rights for all."""

    def open_to_all(folder: Path) -> None:
        build(folder)
        (folder / "parts").chmod(0o777)
        (folder / "parts" / "a.bin").chmod(0o666)

    base.chmod(0o755)
    os.chown(base, -1, NOBODY)
    before = os.umask(umask)
    try:
        store = base / "new" / "deep" / "store"
        ArtifactStore(store).get_or_build(KEY, open_to_all)
        ArtifactStore(store).write_plan("{}")
        assert ArtifactStore(store).find(KEY) is not None
    finally:
        os.umask(before)
    assert not [path for path in (base / "new").rglob("*") if path.lstat().st_mode & 0o022]


@as_root
def test_a_trusted_store_is_shared_by_those_who_may_write(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = base / "store"
    store.mkdir()
    store.chmod(0o777)
    monkeypatch.setenv(TRUSTED_VARIABLE, str(store))
    before = os.umask(0)
    try:
        ArtifactStore(store).get_or_build("00" * 8, build)
        os.seteuid(NOBODY)
        ArtifactStore(store).get_or_build("00" * 7 + "01", build)
        os.seteuid(0)
        assert ArtifactStore(store).find("00" * 7 + "01") is not None
        assert not ArtifactStore(store).clean().busy_keys
    finally:
        os.seteuid(0)
        os.umask(before)


@as_root
def test_a_users_private_group_may_write(base: Path) -> None:
    """What the umask 002 leaves behind on systems where each user has a group of that name."""
    user = pwd.getpwnam("daemon")
    store = base / "store"
    store.mkdir(mode=0o775)
    store.chmod(0o775)
    os.chown(store, user.pw_uid, user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        ArtifactStore(store).get_or_build(KEY, build)
        os.seteuid(0)
        os.chown(store, -1, NOBODY)
        os.seteuid(user.pw_uid)
        refused(store, "group nogroup")
    finally:
        os.seteuid(0)
    refused(store, "belongs to daemon")


@as_root
def test_a_plan_is_not_loaded_from_it_and_the_next_one_is(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline("p")
    pipeline.output("y", pipeline.add("add", lambda x: x + 1)(pipeline.input("x", TensorSpec((2,)))))
    plan = pipeline.plan(device="neuron-emulated")
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    monkeypatch.setenv("ORCHESTRATOR_STORE", str(base / "open"))
    with pytest.raises(CompileError, match="can be written to by everybody"):
        plan.load()
    with pytest.raises(CompileError, match="can be written to by everybody"):
        plan.compile(base / "open")
    assert not list((base / "open").iterdir())
    monkeypatch.delenv("ORCHESTRATOR_STORE")
    with plan.load() as session:
        assert session(x=torch.zeros(2))["y"].tolist() == [1.0, 1.0]


HOSTILE = {
    "a path that leads out": {"path": "../../secret"},
    "an absolute path": {"path": "/etc/hostname"},
    "a path that is none": {"path": 3},
    "an empty part": {"path": "parts//a.bin"},
    "a size that is none": {"size": "100"},
    "a size that is true": {"size": True},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_lists_files_of_its_folder(base: Path, name: str) -> None:
    from orchestrator.store import manifest

    place = ArtifactStore(base / "store").get_or_build(KEY, build)
    original = manifest.read_manifest(place)
    body = {
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "key": KEY,
        "created": original.creation_time,
        "about": {},
        "files": [{"path": "parts/a.bin", "size": 100, "sha256": "", **HOSTILE[name]}],
    }
    (place / manifest.NAME).write_text(manifest._with_digest(body))
    assert ArtifactStore(base / "store").find(KEY) is None
    (entry,) = ArtifactStore(base / "store").verify()
    assert entry.state == "damaged"


@pytest.mark.parametrize("text", ["[" * 200_000, " " * (33 << 20), "[]", "{}", '"x"', "\xff"])
def test_a_manifest_that_is_none_is_damage(base: Path, text: str) -> None:
    place = ArtifactStore(base / "store").get_or_build(KEY, build)
    (place / "orchestrator-manifest.json").write_text(text, encoding="latin1")
    (entry,) = ArtifactStore(base / "store").entries()
    assert entry.state == "damaged"
    assert ArtifactStore(base / "store").get_or_build(KEY, build)


@pytest.mark.parametrize("what", ["link", "link above", "pipe", "device"])
def test_a_file_of_an_artifact_is_a_plain_file(base: Path, what: str) -> None:
    """A link leads to what its author chose, and a pipe or a device may never end."""
    place = ArtifactStore(base / "store").get_or_build(KEY, build)
    file = place / "parts" / "a.bin"
    (base / "other").mkdir()
    shutil.copy(file, base / "other" / "a.bin")
    file.unlink()
    if what == "link":
        file.symlink_to(base / "other" / "a.bin")
    elif what == "link above":
        file.parent.rmdir()
        file.parent.symlink_to(base / "other")
    elif what == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    (entry,) = ArtifactStore(base / "store").verify()
    assert (entry.state, "is no plain file" in entry.fault) == ("damaged", True)
    with pytest.raises(ValueError, match="no plain file"):
        ArtifactStore(base / "store").get_or_build(
            "f" * 16, lambda folder: (folder / "a").symlink_to("/dev/zero")
        )
    assert ArtifactStore(base / "store").get_or_build(KEY, build)
    assert file.read_bytes() == b"a" * 100

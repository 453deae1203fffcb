"""The commands that look after compiled artifacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.store import ArtifactStore
from tests.cli.conftest import Shell

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def store(folder: Path) -> ArtifactStore:
    """Two artifacts in the store that is taken by default."""
    store = ArtifactStore(folder / "build")
    for key, stage in ((KEY, "vision"), (OTHER, "text")):
        about = {"stage": stage, "device": "toy:0"}
        store.get_or_build(key, lambda folder: (folder / "program").write_bytes(bytes(1500)), about)
    return store


def damage(store: ArtifactStore) -> None:
    found = store.find(KEY)
    assert found is not None
    (found / "program").write_bytes(bytes(1499) + b"1")


def test_list_shows_what_is_there(shell: Shell, store: ArtifactStore):
    columns, vision, text, total = shell("cache", "list").out.splitlines()
    assert columns.split() == ["key", "stage", "device", "size", "created", "used", "state"]
    assert vision.split()[:3] == [KEY[:12], "vision", "toy:0"]
    assert text.split()[-1] == "ok"
    assert total.startswith("2 artifacts, 3.")
    data = shell("cache", "list", "--store", store.path, "--json").data
    assert [row["about"]["stage"] for row in data["artifacts"]] == ["vision", "text"]
    assert data["artifacts"][0].keys() == {
        "key",
        "state",
        "fault",
        "bytes",
        "created",
        "used",
        "about",
        "path",
    }
    assert data["bytes"] == sum(row["bytes"] for row in data["artifacts"]) > 3000


def test_list_tells_other_versions(shell: Shell, store: ArtifactStore):
    manifest = store.entries()[0].path / "orchestrator-manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 7}))
    out = shell("cache", "list").out
    assert "other version" in out
    assert f"{KEY[:12]} is of another version, not used by this release: it is in version 7" in out


def test_verify_finds_damage(shell: Shell, store: ArtifactStore):
    assert shell("cache", "verify").out == "2 artifacts in build, none damaged\n"
    damage(store)
    done = shell("cache", "verify", code=1)
    assert done.out.splitlines()[0].startswith(f"DAMAGED  {KEY[:12]} (vision): the content of program")
    data = shell("cache", "verify", "--json", code=1).data
    assert (data["artifacts"], data["ok"]) == (2, 1)
    assert [row["key"] for row in data["damaged"]] == [KEY]


def test_clean_removes_what_it_is_told_to(shell: Shell, store: ArtifactStore):
    damage(store)
    assert shell("cache", "clean", "--unused", "1").out.startswith("removed no artifacts, 0 B")
    assert [row["key"] for row in shell("cache", "clean", "--damaged", "--json").data["removed"]] == [KEY]
    assert shell("cache", "clean").out.startswith("removed 1 artifact, 1.")
    assert shell("cache", "list").out == "no artifacts, 0 B in build\n"


def test_clean_leaves_what_is_being_compiled(shell: Shell, store: ArtifactStore):
    with store._layout.lock(KEY):
        out = shell("cache", "clean").out
    assert "removed 1 artifact," in out
    assert f"kept {KEY[:12]}: it is being compiled" in out
    assert store.find(KEY) is not None


def test_the_store_may_come_from_the_environment(
    shell: Shell, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    store.path.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("ORCHESTRATOR_STORE", str(tmp_path / "elsewhere"))
    assert len(shell("cache", "list", "--json").data["artifacts"]) == 2


@pytest.mark.parametrize("command", ["list", "verify", "clean"])
def test_a_store_that_is_not_there_is_wrong_usage(shell: Shell, folder: Path, command: str):
    done = shell("cache", command, "--store", "biuld", code=2)
    assert done.err.startswith("error: There is no store 'biuld'.")
    assert not Path("biuld").exists()
    assert shell("cache", command, "--json", code=2).data["error"]["type"] == "UsageError"


def test_a_store_of_a_newer_release_is_refused(shell: Shell, store: ArtifactStore):
    (store.path / "store.json").write_text('{"layout": 9}')
    assert "newer release" in shell("cache", "clean", code=1).err


def test_wrong_days(shell: Shell, store: ArtifactStore):
    shell("cache", "clean", "--unused", "-1", code=2)
    shell("cache", "clean", "--unused", "soon", code=2)
    assert len(store.entries()) == 2


@pytest.mark.parametrize("command", ["list", "verify", "clean"])
def test_no_torch_is_needed(store: ArtifactStore, command: str):
    script = (
        "import sys\nfrom orchestrator.cli import main\n"
        f"sys.argv = ['orchestrator', 'cache', {command!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'networkx', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=store.path.parent, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_what_a_manifest_says_is_no_command_to_the_terminal(shell: Shell, tmp_path: Path):
    """Kind: text of somebody's file that reaches a terminal."""
    store = ArtifactStore(tmp_path / "store")
    place = store.get_or_build(
        "ab" * 8, lambda folder: (folder / "a").write_bytes(b"a"), {"stage": "\x1b[2Jgone"}
    )
    assert "\\x1b[2Jgone" in shell("cache", "list", "--store", tmp_path / "store").out
    (place / "a").write_bytes(b"b")
    out = shell("cache", "verify", "--store", tmp_path / "store", code=1).out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out

"""Real processes: several that want one artifact, and some that are killed while they make it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.store import ArtifactStore

KEY, OTHER = "ab" * 32, "cd" * 32

#: Builds slowly, and leaves a line for each time that it does.
SCRIPT = """
import sys, time
from pathlib import Path
from orchestrator.store import ArtifactStore

root, key, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def build(folder):
    (folder / "half").write_text("half")
    with (root / "builds").open("a") as log:
        log.write("built\\n")
    (root / "started").touch()
    time.sleep(seconds)
    (folder / "whole").write_text("whole")

print(ArtifactStore(root / "store").get_or_build(key, build))
"""


def start(root: Path, seconds: float, key: str = KEY) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), key, str(seconds)], stdout=subprocess.PIPE, text=True
    )


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def write(folder: Path) -> None:
    (folder / "whole").write_text("whole")


def test_processes_that_want_one_artifact_build_it_once(tmp_path: Path):
    processes = [start(tmp_path, 0.5) for _ in range(4)]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(folders) == 1
    assert (tmp_path / "builds").read_text() == "built\n"
    assert Path(folders.pop(), "whole").read_text() == "whole"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_leaves_nothing_that_counts(tmp_path: Path, number: int):
    process = start(tmp_path, 60)
    wait_for(tmp_path / "started")
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    store = ArtifactStore(tmp_path / "store")
    assert store.find(KEY) is None
    assert store.entries() == ()
    (half,) = store.path.rglob("half")
    assert (store.get_or_build(KEY, write) / "whole").exists()
    assert not half.parent.exists()  # the next build sweeps what was left


def test_cleaning_sweeps_after_the_dead_and_leaves_the_living(tmp_path: Path):
    store = ArtifactStore(tmp_path / "store")
    dead = start(tmp_path, 60, OTHER)
    wait_for(tmp_path / "started")
    dead.kill()
    dead.communicate(timeout=60)
    (tmp_path / "started").unlink()
    living = start(tmp_path, 3, KEY)
    wait_for(tmp_path / "started")
    report = store.clean()
    assert (report.stale_builds, report.busy_keys) == (1, (KEY,))
    assert report.bytes == len("half")
    out, _ = living.communicate(timeout=60)
    assert living.returncode == 0
    assert store.find(KEY) == Path(out.strip())


def test_a_compiler_that_outlives_its_process_spoils_nothing(tmp_path: Path):
    """It still writes by the name that its killed parent gave it; nobody is there any more."""
    script = (
        "import subprocess, sys\nfrom pathlib import Path\nfrom orchestrator.store import ArtifactStore\n"
        "def build(folder):\n"
        "    subprocess.Popen(['sh', '-c', f'while sleep 0.05; do echo spoilt > {folder}/whole || exit; done'])\n"
        f"    Path({str(tmp_path / 'started')!r}).touch()\n"
        "    sys.stdin.read()\n"
        f"ArtifactStore({str(tmp_path / 'store')!r}).get_or_build({KEY!r}, build)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    wait_for(tmp_path / "started")
    process.kill()
    process.communicate(timeout=60)
    store = ArtifactStore(tmp_path / "store")
    store.get_or_build(KEY, write)
    time.sleep(0.3)
    assert store.find(KEY) is not None

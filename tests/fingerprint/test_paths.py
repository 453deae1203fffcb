"""The same code has one key wherever it lies (reliability-26), and the config of a stage counts in its key."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.fingerprint import fingerprint
from orchestrator.stage import make_stage
from tests.fingerprint.holders import key

HEAD = "import os\nfrom pathlib import Path\n"

#: Ways in which code knows where it lies; each gives something that runs, called ``run``.
KNOWS = {
    "a global path": "FOLDER = Path(__file__).with_name('weights')\ndef run(x):\n    return x, FOLDER\n",
    "a global text": "FOLDER = os.path.dirname(__file__)\ndef run(x):\n    return x, FOLDER\n",
    "its file": "def run(x):\n    return x, Path(__file__).parent\n",
    "a default": "def run(x, folder=Path(__file__).parent / 'weights'):\n    return x, folder\n",
    "a closure": "def make(folder):\n    return lambda x: (x, folder)\nrun = make(os.path.abspath(__file__))\n",
    "a class": (
        "class Run:\n    FOLDER = Path(__file__).parent\n    def __call__(self, x):\n        return x\nrun = Run()\n"
    ),
    "an object": (
        "class Run:\n    def __init__(self):\n        self.file = str(Path(__file__).parent / 'w.pt')\n"
        "    def __call__(self, x):\n        return x\nrun = Run()\n"
    ),
    "a pair in a dict": "PLACES = {'w': ('big', __file__)}\ndef run(x):\n    return x, PLACES\n",
}


def key_in(folder: Path, source: str, package: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of ``run`` of a module that lies in a folder."""
    place = folder / "users" / "__init__.py" if package else folder / "users.py"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(HEAD + source)
    monkeypatch.syspath_prepend(str(folder))
    # Two sources of one size, written within a second, would be one in a cache of bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("users", None)
    importlib.invalidate_caches()
    user_module: Any = importlib.import_module("users")
    try:
        assert Path(user_module.__file__).is_relative_to(folder)
        return key(user_module.run)
    finally:
        del sys.modules["users"]


@pytest.mark.parametrize("package", [False, True], ids=["module", "package"])
@pytest.mark.parametrize("how", KNOWS)
def test_the_same_code_has_one_key_in_every_folder(
    how: str, package: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folders = [tmp_path / "here", tmp_path / "there" / "deeper"]
    assert len({key_in(folder, KNOWS[how], package, monkeypatch) for folder in folders}) == 1


@pytest.mark.parametrize("how", ["a global path", "a default"])
def test_another_place_beside_the_code_makes_another_key(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = KNOWS[how].replace("'weights'", "'others'")
    assert other != KNOWS[how]
    keys = {key_in(tmp_path / "here", source, False, monkeypatch) for source in (KNOWS[how], other)}
    assert len(keys) == 2


def test_places_elsewhere_count_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources = [
        f"FOLDER = Path({str(tmp_path / name)!r})\ndef run(x):\n    return x, FOLDER\n" for name in "ab"
    ]
    keys = {key_in(tmp_path / "here", source, False, monkeypatch) for source in sources}
    assert len(keys) == 2


def test_the_config_of_a_stage_counts_in_its_key():
    def config_key(**config: Any) -> Any:
        return fingerprint(make_stage("s", abs_of, config=config))

    assert config_key(scale=1) == config_key(scale=1) != config_key(scale=2)
    assert config_key(scale=1, by=2) == config_key(by=2, scale=1)
    assert config_key() != config_key(scale=1)


def abs_of(x: Any) -> Any:
    return abs(x)

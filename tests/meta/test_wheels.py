"""The distributions, as a user gets them: what is in them, and that they work away from the checkout.

The environment that the wheels go into is clean: it holds the wheels, and links to exactly those packages
of this environment that the wheels' metadata asks for, directly or through others. An import that no
dependency declares fails there, and so does a file that the wheel lacks.
"""

from __future__ import annotations

import email
import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROJECTS = {
    "orchestrator": ROOT,
    "orchestrator_stages": ROOT / "stages",
    "orchestrator_neuron": ROOT / "plugins" / "neuron",
}
SHADOWS = ("stages", "plugins", "tests", "docs")


def run(*command: str | Path, cwd: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def settings(package: str) -> dict[str, object]:
    text = (PROJECTS[package] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    assert isinstance(project, dict)
    return project


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels and source archives of all distributions."""
    folder = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        build = (sys.executable, "-m", "hatchling", "build", "-d", folder)
        run(*build, "-t", "wheel", "-t", "sdist", cwd=project)
    return folder


def wheel(built: Path, package: str) -> Path:
    name = str(settings(package)["name"]).replace("-", "_")
    (path,) = built.glob(f"{name}-[0-9]*.whl")
    return path


def metadata(archive: Path) -> email.message.Message:
    with zipfile.ZipFile(archive) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(files.read(name))


@pytest.mark.parametrize("package", PROJECTS)
def test_a_wheel_holds_its_package_whole_and_nothing_else(built: Path, package: str):
    names = set(zipfile.ZipFile(wheel(built, package)).namelist())
    stem = wheel(built, package).name.split("-py3")[0]
    inside = {name for name in names if name.startswith(f"{package}/")}
    folder = PROJECTS[package] / package
    expected = {
        path.relative_to(PROJECTS[package]).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == expected
    assert all(name.startswith(f"{stem}.dist-info/") for name in names - inside)
    assert f"{stem}.dist-info/licenses/LICENSE" in names
    assert f"{package}/py.typed" in names


@pytest.mark.parametrize("package", PROJECTS)
def test_a_source_archive_holds_what_its_wheel_needs_and_nothing_else(built: Path, package: str):
    name = str(settings(package)["name"]).replace("-", "_")
    (path,) = built.glob(f"{name}-[0-9]*.tar.gz")
    with tarfile.open(path) as archive:
        tops = {Path(member).parts[1] for member in archive.getnames() if len(Path(member).parts) > 1}
    assert tops - {".gitignore"} == {package, "LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}


@pytest.mark.parametrize("package", PROJECTS)
def test_the_metadata_says_what_it_is(built: Path, package: str):
    found = metadata(wheel(built, package))
    assert found["Version"] == settings(package)["version"]
    assert "Apache-2.0" in found["License-Expression"]
    assert ">=3.10" in found["Requires-Python"]


@pytest.mark.parametrize("package", [package for package in PROJECTS if package != "orchestrator"])
def test_the_others_pin_the_core_in_lockstep(package: str):
    version = settings("orchestrator")["version"]
    assert settings(package)["version"] == version
    dependencies = settings(package)["dependencies"]
    assert isinstance(dependencies, list)
    assert f"stage-orchestrator=={version}" in dependencies


def test_shipped_weights_come_with_their_notice(built: Path):
    names = zipfile.ZipFile(wheel(built, "orchestrator_stages")).namelist()
    weights = {Path(name).parent for name in names if name.endswith(".safetensors")}
    assert weights
    for folder in weights:
        texts = [name for name in names if Path(name).parent in (folder, *folder.parents)]
        assert any(re.search(r"(LICENSE|NOTICE)", Path(name).name) for name in texts), folder


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def closure(requirements: list[str]) -> set[str]:
    """Names of the distributions here that the requirements lead to, the wheels' own left out."""
    own = {str(settings(package)["name"]) for package in PROJECTS}
    todo = [need for need in map(Requirement, requirements) if applies(need, set())]
    found: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in found | own:
            found.add(name)
            needs = map(Requirement, distribution(name).requires or ())
            todo += [need for need in needs if applies(need, requirement.extras)]
    return found


def link(name: str, target: Path) -> None:
    """Links every top-level thing of an installed distribution into another `site-packages`."""
    installed = distribution(name)
    tops = {path.parts[0] for path in installed.files or () if path.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        source = Path(str(installed.locate_file(top)))
        if source.exists() and not (target / top).exists():
            (target / top).symlink_to(source, target_is_directory=source.is_dir())


@pytest.fixture(scope="module")
def clean(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a clean environment that the wheels are installed in."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    wheels = [wheel(built, package) for package in PROJECTS]
    needs = [text for path in wheels for text in metadata(path).get_all("Requires-Dist", [])]
    for name in closure(needs):
        link(name, site)
    pip(folder / "bin", "install", "--no-index", "--no-deps", *wheels)
    return folder / "bin"


def pip(folder: Path, *words: str | Path) -> str:
    """Runs this environment's pip on the one whose `bin` folder is given: it needs none of its own."""
    return run(sys.executable, "-m", "pip", "--python", folder / "python", *words, cwd=folder)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder whose own packages have the names of this checkout's folders."""
    for name in SHADOWS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a user module was imported')\n")
    return tmp_path


def test_the_declared_dependencies_suffice(clean: Path):
    assert "No broken requirements" in pip(clean, "check")


def test_all_packages_come_from_the_environment(clean: Path, elsewhere: Path):
    code = f"import {', '.join(PROJECTS)}; print({', '.join(f'{name}.__file__' for name in PROJECTS)})"
    for line in run(clean / "python", "-c", code, cwd=elsewhere).split():
        assert Path(line).is_relative_to(clean.parent)


def test_the_commands_list_plan_and_run_what_is_shipped(clean: Path, elsewhere: Path):
    found = json.loads(run(clean / "orchestrator", "list", "--json", cwd=elsewhere))
    assert {"faces", "vision-text", "model5"} <= {row["name"] for row in found["pipelines"]}
    assert "vision" in run(clean / "orchestrator", "plan", "vision-text", cwd=elsewhere)


def test_the_main_job_runs_on_a_photo(clean: Path, elsewhere: Path):
    skimage = pytest.importorskip("skimage")
    photo = Path(skimage.__file__).parent / "data" / "astronaut.png"
    run(clean / "orchestrator", "run", "faces", "--input", f"image={photo}", "--out", "out", cwd=elsewhere)
    kinds = {path.suffix for path in (elsewhere / "out").rglob("*")}
    assert ".json" in kinds
    assert kinds & {".png", ".jpg"}


def test_the_emulated_device_runs_without_the_neuron_packages(clean: Path, elsewhere: Path):
    code = "import importlib.util as u; print(u.find_spec('neuronx_distributed_inference'))"
    assert run(clean / "python", "-c", code, cwd=elsewhere).strip() == "None"
    words = ("run", "vision-text", "--device", "neuron-emulated", "--option", "tp_degree=2", "--json")
    reply = json.loads(run(clean / "orchestrator", *words, cwd=elsewhere))
    measured = reply["stats"]["measured"]["neuron-emulated"]
    for count in ("uploads", "upload_bytes", "downloads", "download_bytes"):
        assert measured[count] == reply["plan"][count]


def test_a_neuron_device_says_what_is_missing(clean: Path, elsewhere: Path):
    assert "on nxdi" in run(clean / "orchestrator", "plan", "vision-text", "--device", "nxdi", cwd=elsewhere)
    words = [str(clean / "orchestrator"), "run", "vision-text", "--device", "nxdi"]
    done = subprocess.run(words, cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "neuronx" in done.stderr
    assert "neuron-emulated" in done.stderr

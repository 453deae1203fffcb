"""What the commands answer, to people and to programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.cli.conftest import Shell


@pytest.fixture
def x(folder: Path) -> str:
    numpy.save(folder / "x.npy", numpy.arange(6, dtype=numpy.float32).reshape(2, 3))
    return "x=x.npy"


# plan, validate, draw


def test_plan_prints_the_table(shell: Shell):
    out = shell("plan", "shop:double").out
    assert "scale" in out
    assert max(map(len, out.splitlines())) > 80  # whole lines, although nobody told the width


def test_plan_as_json_can_be_read_back(shell: Shell, folder: Path):
    from orchestrator import Plan

    text = shell("plan", "shop:double", "--json").out
    plan = Plan.from_json(text)
    assert plan.pipeline == "double"
    assert "plan.json" in shell("plan", "shop:double", "--out", "plan.json").out
    assert not Plan.from_json((folder / "plan.json").read_text()).diff(plan)


def test_sizes_and_settings_reach_the_plan(shell: Shell):
    assert "[batch, 5] float32" in shell("plan", "shop:double", "--set", "width=5").out
    assert "batch: buckets 1, 4" in shell("plan", "shop:double").out
    assert "batch: buckets 4;" in shell("plan", "shop:double", "--sizes", "batch=4").out
    assert "n: buckets 2, 8" in shell("plan", "shop:bare", "--sizes", "n=2,8").out


def test_placement_reaches_the_plan(shell: Shell):
    words = ("validate", "shop:double", "--json", "--device", "cuda:1")
    assert shell(*words).data["devices"] == ["cuda:1"]
    assert shell(*words, "--placement", "scale=cpu").data["devices"] == ["cpu"]


def test_validate_says_what_holds(shell: Shell):
    lines = shell("validate", "shop:double").out.splitlines()
    assert [line.split()[:2] for line in lines] == [["OK", "graph"], ["OK", "plan"]]
    data = shell("validate", "shop:double", "--json").data
    assert data["valid"] is True
    assert data["graph"] == {"inputs": 1, "stages": 1, "calls": 1, "loops": 0, "outputs": 1}
    assert data["plan"]["dispatches"] == 1


def test_check_prints_the_table_and_fails_for_a_broken_promise(shell: Shell, folder: Path):
    numpy.save(folder / "x.npy", numpy.arange(9, dtype="float32").reshape(3, 3))
    good = shell("check", "shop:double", "--input", "x=x.npy")
    assert "pad of 'batch'" in good.out
    assert "All that was tried holds: 1 of 1." in good.out
    bad = shell("check", "shop:averaging", "--input", "x=x.npy", code=1)
    assert "broken" in bad.out
    assert bad.err.strip() == "error: The first stage that breaks a promise is 'centre': pad of 'batch'."


def test_check_as_json(shell: Shell, folder: Path):
    numpy.save(folder / "x.npy", numpy.arange(9, dtype="float32").reshape(3, 3))
    data = shell("check", "shop:averaging", "--input", "x=x.npy", "--json", code=1).data
    assert (data["ok"], data["first"], data["inputs"]) == (False, "centre", "given")
    assert [row["holds"] for row in data["rows"]] == [False, False, True]
    assert shell("check", "shop:averaging", "-i", "x=x.npy", "--tolerance", "5", "--json").data["ok"]


def test_check_takes_the_examples_or_asks_for_inputs(shell: Shell):
    shown = shell("check", "toy.diamond", code=2)
    assert "needs more inputs" in shown.err
    shown = shell("check", "model5", "--sizes", "batch=4")
    assert "checking the examples of 'model5' at batch=4" in shown.err
    assert "batch 3 in 4" in shown.out
    assert "no input 'z'" in shell("check", "model5", "--input", "z=1", code=2).err


def test_validate_fails_with_the_error(shell: Shell):
    done = shell("validate", "shop:invalid", code=1)
    assert done.err.startswith("error: ")
    assert "linear" in done.err
    assert "Traceback" not in done.err
    assert shell("validate", "shop:invalid", "--json", code=1).data["error"]["type"] == "PlanError"


def test_draw(shell: Shell, folder: Path):
    assert shell("draw", "shop:double").out.startswith("flowchart LR\n")
    assert shell("draw", "shop:double", "--format", "dot").out.startswith('digraph "double" {\n')
    shell("draw", "shop:double", "--out", "graph.dot")
    assert (folder / "graph.dot").read_text().startswith("digraph")


# run


def test_run_prints_a_table_of_tensors(shell: Shell, x: str):
    lines = shell("run", "shop:double", "--input", x).out.splitlines()
    assert [line.split() for line in lines] == [
        ["output", "shape", "dtype", "min", "max", "mean"],
        ["y", "[2,", "3]", "float32", "0", "10", "5"],
    ]


def test_run_as_json_holds_values_stats_and_plan(shell: Shell, x: str):
    data = shell("run", "shop:double", "--input", x, "--json").data
    assert data["outputs"]["y"]["values"] == [[0, 2, 4], [6, 8, 10]]
    assert data["stats"]["requests"] == 1
    assert data["stats"].keys() - {"requests"} == data["plan"].keys()
    assert data["pipeline"] == "double"


def test_run_writes_files(shell: Shell, x: str, folder: Path):
    done = shell("run", "shop:double", "-i", x, "-o", "a/b", "--set", "factor=0.5")
    assert "a/b/y.npy" in done.out
    assert numpy.load("a/b/y.npy").tolist() == [[0, 0.5, 1], [1.5, 2, 2.5]]
    data = shell("run", "shop:double", "-i", x, "-o", "a/b", "--tensors", "safetensors", "--json").data
    assert safetensors.torch.load_file(data["outputs"]["y"]["file"])["y"].shape == (2, 3)
    assert {path.name for path in (folder / "a/b").iterdir()} == {"y.npy", "y.safetensors"}


def test_a_registered_pipeline_runs_by_name(shell: Shell, x: str):
    assert shell("run", "acme-double", "-i", x, "--json").data["outputs"]["y"]["max"] == 10


def test_pictures_go_in_and_out(shell: Shell, folder: Path):
    Image.new("RGB", (5, 4), (255, 0, 10)).save("a.png")
    shell("run", "shop:negative", "-i", "image=a.png", "-o", "out")
    with Image.open("out/negative.png") as picture:
        assert picture.size == (5, 4)
        assert picture.getpixel((0, 0)) == (0, 255, 245)
    shell("run", "shop:negative", "-i", "image=a.png", "-o", "out", "--format", "jpg")
    assert (folder / "out/negative.jpg").exists()


def test_text_alone_is_printed_as_it_is(shell: Shell):
    assert shell("run", "shop:hello", "-i", "name=you").out == "Hello you!\n"
    assert shell("run", "shop:hello", "--set", "name=5").out == "Hello 5!\n"
    assert shell("run", "shop:ready", "--set", "name=you").out == "Hello you!\n"
    assert shell("run", "shop:Group.inner", "--set", "name=you").out == "Hello you!\n"


WORDS = ("run", "shop:words", "--set", "prompt=ab", "--input", "times=2", "--set", "loud=true")


def test_python_values_in_and_out(shell: Shell, folder: Path):
    out = shell(*WORDS).out
    assert out.startswith("text:\nABAB\nfacts:\n{")
    data = shell(*WORDS, "--json").data["outputs"]
    assert data["text"] == {"value": "ABAB"}
    assert data["facts"]["value"] == {"length": 4, "ratio": None, "letters": ["A", "B"], "pair": [1, "ü"]}
    shell(*WORDS, "--out", "out")
    assert (folder / "out/text.txt").read_text() == "ABAB"
    assert json.loads((folder / "out/facts.json").read_text())["length"] == 4


def test_a_setting_sets_an_input_rather_than_an_option_of_that_name(shell: Shell):
    out = shell("run", "shop:words", "--set", "prompt=ab", "--set", "times=3", "--set", "loud=false").out
    assert out.startswith("text:\nababab\n")


def test_a_stage_option_overrides_its_config(shell: Shell, x: str):
    words = ("run", "shop:double", "-i", x, "--set", "scale.factor=10", "--json")
    assert shell(*words).data["outputs"]["y"]["max"] == 50


def test_a_mistyped_stage_option_is_a_usage_error_with_the_nearest_name(shell: Shell, tmp_path: Path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 32)).save(photo)
    result = shell("run", "faces", "-i", f"image={photo}", "--set", "propose.thresold=0.5", code=2)
    assert "thresold" in result.err
    assert "Did you mean 'threshold'?" in result.err


# list, env


def test_list_shows_what_is_there_and_what_is_broken(shell: Shell):
    out = shell("list").out
    (line,) = (line for line in out.splitlines() if line.startswith("acme-double"))
    assert line.split() == ["acme-double", "twice", "as", "much", "acme", "acme", "0.3"]
    assert "ruin is broken: " in out
    assert "no_such_library_for_ruin" in out
    assert "cpu" in out


def test_list_as_json(shell: Shell):
    data = shell("list", "--json").data
    assert data.keys() == {"pipelines", "stages", "backends", "plugins"}
    rows = {row["name"]: row for row in data["plugins"]}
    assert rows["acme"] == {
        "name": "acme",
        "distribution": "acme",
        "version": "0.3",
        "status": "loaded",
        "error": None,
    }
    assert rows["ruin"]["status"] == "broken"
    assert "no_such_library_for_ruin" in rows["ruin"]["error"]
    (stage,) = (row for row in data["stages"] if row["plugin"] == "acme")
    assert stage["target"] == "shop:Scale"


def test_env_names_versions_and_devices(shell: Shell):
    data = shell("env", "--json").data
    assert data["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert "cpu" in data["devices"]
    assert torch.__version__.split("+")[0] in shell("env").out


def test_env_warns_of_two_owners_of_the_import_name(shell: Shell, folder: Path):
    meta = folder / "orchestrator_core-5.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: orchestrator-core\nVersion: 5.0\n")
    (meta / "RECORD").write_text("orchestrator/core/__init__.py,,\n")
    done = shell("env", "--json")
    assert "'orchestrator-core', 'stage-orchestrator'" in done.data["warnings"][0]
    assert done.err.startswith("warning: ")

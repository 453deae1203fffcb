"""Results of fake operations that another process kept are those of torch, whatever became of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator.isolation import CachedFakeMode, fake_mode, result_file, save_results
from orchestrator.isolation.result_file import FOLDER_VARIABLE, ResultFile, cache_folder
from tests.planner.test_cached_mode import OPERATIONS, run

SHAPE, DTYPE = (3, 4), torch.float32


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the cache that nobody used yet, for a process that remembers nothing."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    begin_process(monkeypatch)
    return tmp_path / "cache"


def begin_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what a new process would not know."""
    monkeypatch.setattr(CachedFakeMode, "_results", {})
    monkeypatch.setattr(CachedFakeMode, "_result_file", ResultFile())


def only_file(folder: Path) -> Path:
    (path,) = (folder / "shapes").iterdir()
    return path


def results_of(
    mode_of: Any, names: Iterable[str] = ("linear of three dims", "largest", "cut", "two parts")
) -> Any:
    return {name: run(mode_of(), OPERATIONS[name], SHAPE, DTYPE) for name in names}


def test_results_of_another_process_are_those_of_torch(folder: Path, monkeypatch: pytest.MonkeyPatch):
    names = OPERATIONS.keys() - {"looked up"}
    expected = results_of(FakeTensorMode, names)
    assert results_of(fake_mode, names) == expected
    save_results()
    begin_process(monkeypatch)
    computed = []
    inner = FakeTensorMode.dispatch

    def dispatch(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        computed.append(func)
        return inner(self, func, *args, **kwargs)

    monkeypatch.setattr(FakeTensorMode, "dispatch", dispatch)
    assert results_of(fake_mode, names) == expected
    # What is written in place is never remembered.
    assert {str(func) for func in computed} <= {"aten.add_.Tensor", "aten.detach.default"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[: len(text) // 2],
        lambda text: re.sub(r"(?<=\[)\d+", "-5", text),
        lambda text: re.sub(r"(?<=\[)\d+", "1e400", text),
        lambda text: text.replace("float32", "float31"),
        lambda text: text.replace("_fake_device", "fake_mode"),
        lambda text: text.replace("cpu", "nowhere"),
        lambda text: re.sub(r",\d+,\{", ",7,{", text),
        lambda text: re.sub(r" .*", " " + "[" * 100_000, text),
        lambda text: text.replace("[", "é"),
        lambda text: text.replace("\n", "\0"),
    ],
    ids=range(11),
)
def test_a_damaged_file_is_as_good_as_none(damage: Any, folder: Path, monkeypatch: pytest.MonkeyPatch):
    expected = results_of(FakeTensorMode)
    results_of(fake_mode)
    save_results()
    path = only_file(folder)
    path.write_text(damage(path.read_text()), encoding="utf-8")
    begin_process(monkeypatch)
    assert results_of(fake_mode) == expected


def test_nothing_is_read_or_written_where_somebody_else_can_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    folder.mkdir()
    folder.chmod(0o777)
    results_of(fake_mode)
    save_results()
    assert not list((folder / "shapes").glob("*"))
    # A line that another user left there is not looked at.
    folder.chmod(0o755)
    results_of(fake_mode)
    begin_process(monkeypatch)
    results_of(fake_mode)
    save_results()
    folder.chmod(0o777)
    assert ResultFile()._lines is None
    assert result_file._read() == {}
    assert only_file(folder).read_text()


def test_no_folder_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    begin_process(monkeypatch)
    monkeypatch.chdir(tmp_path)
    results_of(fake_mode)
    save_results()
    assert cache_folder() is None
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_stops_no_plan(folder: Path, monkeypatch: pytest.MonkeyPatch):
    folder.write_text("a file where the folder should be")
    pipeline = Pipeline("p")
    pipeline.output("y", pipeline.add("s", nn.Linear(4, 2).eval())(pipeline.input("x", TensorSpec((3, 4)))))
    assert dict(pipeline.plan().calls[0].outputs)["output"].dims == (3, 2)


def test_a_full_file_is_begun_anew(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(result_file, "LIMIT_BYTES", 20_000)
    for width in range(4, 24):
        with fake_mode():
            torch.nn.functional.layer_norm(torch.empty(2, width) @ torch.empty(width, width), (width,))
        save_results()
    assert 0 < only_file(folder).stat().st_size <= 20_000
    begin_process(monkeypatch)
    assert results_of(fake_mode) == results_of(FakeTensorMode)


def test_a_plan_keeps_what_it_learned_and_says_the_same_with_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def planned() -> str:
        pipeline = Pipeline("p")
        x = pipeline.input("x", TensorSpec((Dim("n", buckets=(4, 9), batch=True), 4), pad=0))
        block = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Conv1d(1, 2, 3)).eval()
        pipeline.output(
            "y", pipeline.add("s", lambda x: block[3](block[2](block[1](block[0](x)))[:, None]))(x)
        )
        return pipeline.plan().to_json()

    first = planned()
    keys = [line.split(" ", 1) for line in only_file(folder).read_text().splitlines()]
    assert keys
    assert all(re.fullmatch("[0-9a-f]{32}", key) and json.loads(text) for key, text in keys)
    begin_process(monkeypatch)
    assert planned() == first
    # Nothing was learned the second time.
    assert len(only_file(folder).read_text().splitlines()) == len(keys)

"""Entry points of one module on a device that compiles: one artifact, one set of weights, results as by hand."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import CompileError, Pipeline
from orchestrator.store import ArtifactStore
from orchestrator_neuron.emulated import load as emulated_load
from orchestrator_neuron.emulated.backend import EmulatedBackend
from tests.kit import linear, refuses, spec
from tests.planner.test_applications import EMULATED, Holder, Made, Speaker, Tied, new, size_of, speaker, two


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each weight that is put on a rank."""
    sizes: list[int] = []
    upload = emulated_load.upload

    def count(device: Any, rank: int, value: torch.Tensor, what: str, **more: Any) -> Any:
        sizes.append(value.nbytes)
        return upload(device, rank, value, what, **more)

    monkeypatch.setattr(emulated_load, "upload", count)
    return sizes


def talk(model: Speaker, prompt: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """What the pipeline of a speaker gives, by hand."""
    totals = []
    with torch.no_grad():
        state = model.prefill(prompt)
        for _ in range(steps):
            state, total = model.decode(state)
            totals.append(total)
    return torch.stack(totals)


@pytest.mark.parametrize("device", ["cpu", EMULATED])
def test_prefill_and_decode_of_one_module_give_what_they_give_by_hand(device: str):
    model = Speaker()
    with speaker(model).plan(device).load() as session:
        for _ in range(2):
            prompt = torch.randn(1, 4)
            torch.testing.assert_close(session(prompt=prompt)["totals"], talk(model, prompt))


def test_one_artifact_holds_all_programs_and_its_weights_go_up_once(tmp_path: Path, uploads: list[int]):
    model = Speaker()
    plan = speaker(model).plan(EMULATED, options={"tp_degree": 2}).compile(tmp_path)
    (entry,) = ArtifactStore(tmp_path).entries()
    assert entry.about["stage"] == "prefill + talk/decode"
    assert entry.about["programs"] == [program.name for program in plan.programs]
    with plan.load() as session:
        prompt = torch.randn(1, 4)
        torch.testing.assert_close(session(prompt=prompt)["totals"], talk(model, prompt))
    assert sum(uploads) == 2 * size_of(model)


def test_weights_that_change_are_those_of_the_next_load_and_nothing_is_compiled(tmp_path: Path):
    model = Speaker()
    plan = speaker(model).plan(EMULATED).compile(tmp_path)
    keys = [entry.key for entry in ArtifactStore(tmp_path).entries()]
    with torch.no_grad():
        model.body.weight.mul_(-2)
    prompt = torch.randn(1, 4)
    with plan.load() as session:
        torch.testing.assert_close(session(prompt=prompt)["totals"], talk(model, prompt))
    assert [entry.key for entry in ArtifactStore(tmp_path).entries()] == keys


def test_a_part_that_is_shared_no_more_is_compiled_anew(tmp_path: Path):
    part, x = linear(4, 4), torch.randn(1, 4)
    one, other = Holder(part), Holder(part)
    plan = two(one, other).plan(EMULATED).compile(tmp_path)
    other.part = linear(4, 4, 9)
    with torch.no_grad(), plan.load() as session:
        torch.testing.assert_close(session(x=x)["y"], other(one(x)))
    assert len(ArtifactStore(tmp_path).entries()) == 2


def _tied() -> tuple[Any, Any]:
    part = linear(4, 4)
    return part, Tied(part.weight)


def _parts() -> tuple[Any, Any]:
    part = linear(4, 4)
    return Holder(part), Holder(part)


def _part() -> tuple[Any, Any]:
    whole = Holder(linear(4, 4))
    return whole, whole.part


def _wrappers() -> tuple[Any, Any]:
    part = linear(4, 4)
    return Made(part), Made(part)


def _wrapper_of_module() -> tuple[Any, Any]:
    part = linear(4, 4)
    return Made(part), part


SHARING = (_tied, _parts, _part, _wrappers, _wrapper_of_module)


@pytest.mark.parametrize("make", SHARING, ids=[make.__name__.strip("_") for make in SHARING])
def test_modules_that_share_weights_are_one_artifact(make: Any, tmp_path: Path, uploads: list[int]):
    one, other = make()
    x = torch.randn(1, 4)
    plan = two(one, other).plan(EMULATED).compile(tmp_path)
    with torch.no_grad(), plan.load() as session:
        torch.testing.assert_close(session(x=x)["y"], other(one(x)))
    assert len(ArtifactStore(tmp_path).entries()) == 1
    assert sum(uploads) == dict(plan.weights)[EMULATED]


def test_weights_in_a_narrow_dtype_stay_shared(tmp_path: Path, uploads: list[int]):
    model = Speaker()
    plan = speaker(model).plan(EMULATED, options={"torch_dtype": "bfloat16"})
    with plan.load() as session:
        prompt = torch.randn(1, 4)
        torch.testing.assert_close(session(prompt=prompt)["totals"], talk(model, prompt), rtol=0.1, atol=0.1)
    assert sum(uploads) == size_of(model) // 2 == dict(plan.weights)[EMULATED]


class Secretive(nn.Module):
    """Its entry points hand each other a tensor that the pipeline does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.part = linear(4, 4)
        self.seen = torch.zeros(1, 4)
        self.table: torch.Tensor | None = None

    def remember(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.part(x)
        return x

    def recall(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.seen

    def cached(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.arange(4.0)
        return self.part(x) + self.table


def test_what_one_entry_point_leaves_for_another_is_refused():
    model = Secretive().eval()
    error = refuses(
        CompileError,
        ("'one'", "'other'", "'seen'", "as an output and an input"),
        lambda: two(model.remember, model.recall).plan(EMULATED).load(),
    )
    assert error.attribute == "seen"


def test_a_table_that_the_first_of_them_fills_is_no_handover():
    model = Secretive().eval()
    x = torch.randn(1, 4)
    with torch.no_grad():
        reference = model.cached(model.cached(x))
    model.table = None
    with two(model.cached, model.cached).plan(EMULATED).load() as session:
        torch.testing.assert_close(session(x=x)["y"], reference)


def test_a_bucketed_entry_point_is_compiled_for_each_bucket(tmp_path: Path):
    model = Speaker()
    pipeline: Pipeline = new("buckets")
    start = pipeline.add("prefill", model.prefill)(pipeline.input("prompt", spec("n", 4, pad=0)))
    pipeline.output("y", pipeline.add("again", model.prefill)(start))
    plan = pipeline.plan(EMULATED, sizes={"n": (1, 2)}).compile(tmp_path)
    (entry,) = ArtifactStore(tmp_path).entries()
    assert len(list(entry.path.glob("*.safetensors"))) == 4
    with torch.no_grad(), plan.load() as session:
        for size in (1, 2):
            prompt = torch.randn(size, 4)
            reference = model.prefill(model.prefill(prompt))
            torch.testing.assert_close(session(prompt=prompt)["y"], reference)


def test_a_compile_that_is_killed_goes_on_with_the_next_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log = tmp_path / "log"

    def compiler(data: bytes) -> bytes:
        with log.open("a") as file:
            file.write(f"{hashlib.sha256(data).hexdigest()}\n")
        if len(log.read_text().splitlines()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return data

    monkeypatch.setattr(EmulatedBackend, "COMPILER", staticmethod(compiler))
    model, store = Speaker(), tmp_path / "store"
    plan = speaker(model).plan(EMULATED)
    assert len(plan.programs) == 3
    refuses(CompileError, ("killed", "'prefill + talk/decode'"), lambda: plan.compile(store))
    assert ArtifactStore(store).entries() == ()
    compiled = plan.compile(store)
    *first, again, last = log.read_text().splitlines()
    assert len(first) == 2
    assert again == last
    (entry,) = ArtifactStore(store).entries()
    assert not ArtifactStore(store).verify()
    assert not list(store.glob("artifacts/*/??/.*"))
    assert not list(entry.path.glob(".*"))
    prompt = torch.randn(1, 4)
    with compiled.load() as session:
        torch.testing.assert_close(session(prompt=prompt)["totals"], talk(model, prompt))

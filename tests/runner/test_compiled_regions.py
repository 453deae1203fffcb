"""Compiled regions: the results of eager stages; chosen, stored and refused as the plan says."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
from torch import Tensor, nn

from orchestrator import CompileError, Dim, Pipeline, Plan, PlanError, TensorSpec
from orchestrator.errors import PlanOptionError
from orchestrator.runner.compiled import load as compiled_load
from orchestrator.runner.compiled.build import RegionBuilder
from orchestrator.runner.compiled.package import BuildReport

ROOT = Path(__file__).parents[2]


class Step(nn.Module):
    """A step with a cache that it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cache.index_copy_(0, place, x[:1])
        return torch.tanh(self.linear(x) + cache.sum(0)), cache, place + 1


class Noise(nn.Module):
    """Draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def looped() -> Pipeline:
    """A loop whose cache is updated in place, and whose other carry has two sizes."""
    torch.manual_seed(0)
    rows = Dim("rows", buckets=(1, 2))
    ports = {
        "x": TensorSpec((rows, 8)),
        "cache": TensorSpec((4, 8)),
        "place": TensorSpec((1,), torch.int64),
    }
    body = Pipeline("body")
    step = body.add("step", Step().eval(), outputs=tuple(ports), aliases={"cache": "cache"})
    values = step(**{name: body.input(name, spec) for name, spec in ports.items()})
    half = body.add("half", lambda x: x.to(torch.float64).mul(0.5).to(torch.float32))(values["x"])
    for name in ports:
        body.output(name, half if name == "x" else values[name])
    pipeline = Pipeline("looped")
    x = pipeline.input("x", TensorSpec((rows, 8), pad=0))
    cache = pipeline.add("empty", lambda scale: scale * torch.ones(4, 8))(
        pipeline.input("scale", TensorSpec((1,)))
    )
    carry = {"x": x, "cache": cache, "place": torch.zeros(1, dtype=torch.int64)}
    results = pipeline.loop("loop", body, carry=carry, max_steps=3, outputs=("x", "cache"))
    for name in ("x", "cache"):
        pipeline.output(name, results[name])
    pipeline.example_inputs = lambda sizes: request(sizes["rows"])
    return pipeline


def request(rows: int) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows)), "scale": torch.ones(1)}


def by_hand(pipeline: Pipeline, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    step, x, cache, place = Step().eval(), inputs["x"], torch.ones(4, 8), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(3):
            x, cache, place = step(x, cache, place)
            x = x * 0.5
    return {"x": x, "cache": cache}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the programs of the loop's body, one for each size."""
    path = tmp_path_factory.mktemp("store")
    plan = looped().plan(compile={"loop": "require"}).compile(path)
    assert [region.calls for region in plan.compiled] == [("loop/step", "loop/half")]
    return path


def test_a_compiled_loop_gives_what_its_stages_give(store: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline = looped()
    plan = pipeline.bind(Plan.from_json((store / "plan.json").read_text()))
    assert "loop/step + loop/half" in str(plan)
    assert "2 combinations of sizes" in str(plan)

    def run(self: Any, module: Any, *_: Any) -> Any:
        raise AssertionError("a stage of a compiled region ran by itself")

    with plan.compile(store).load() as session:
        monkeypatch.setattr(Step, "forward", run)
        results = {rows: session(**request(rows)) for rows in (1, 2)}
        with session.trace() as trace:
            session(**request(2))
        names = {span.name for span in trace.spans if span.name.startswith("loop/")}
    monkeypatch.undo()
    assert names == {"loop/step"}
    for rows, result in results.items():
        for name, reference in by_hand(pipeline, request(rows)).items():
            torch.testing.assert_close(result[name], reference)


def test_a_second_process_loads_without_the_compiler(store: Path):
    code = (
        "import sys; from tests.runner.test_compiled_regions import looped, request\n"
        f"session = looped().plan(compile={{'loop': 'require'}}).compile({str(store)!r}).load()\n"
        "session(**request(2))\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_results_outside_of_the_tolerance_run_eagerly_or_are_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
):
    report = BuildReport(error=3e-6)
    assert report.is_within(0.0)
    monkeypatch.setattr(compiled_load, "read_report", lambda _: report)
    plan = looped().plan(compile={"loop": "aot"}, tolerance=1e-6).compile(store)
    assert not plan.compiled
    assert "differ from eager ones" in plan.notes[-1]
    with pytest.raises(CompileError, match="differ from eager ones"):
        looped().plan(compile={"loop": "require"}, tolerance=1e-6).compile(store)


def test_a_program_of_another_torch_is_not_taken(store: Path, monkeypatch: pytest.MonkeyPatch):
    def build(self: RegionBuilder, *_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RegionBuilder, "build", build)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(CompileError, match="disk is full"):
        looped().plan(compile={"loop": "aot"}).compile(store)


def pipeline_of(stage: Any, **how: Any) -> Pipeline:
    pipeline = Pipeline("one")
    pipeline.output("y", pipeline.add("stage", stage, **how)(pipeline.input("x", TensorSpec((2, 3)))))
    return pipeline


def test_what_draws_random_numbers_runs_eagerly_or_is_refused(tmp_path: Path):
    plan = pipeline_of(Noise().eval()).plan(compile="aot").compile(tmp_path)
    assert not plan.compiled
    assert any("'stage'" in note and "aten.rand" in note and "random numbers" in note for note in plan.notes)
    assert any("example" in note for note in plan.notes)
    with plan.load() as session:
        assert session(x=torch.zeros(2, 3))["y"].shape == (2, 3)
    with pytest.raises(CompileError, match=r"'stage'.*aten\.rand"):
        pipeline_of(Noise().eval()).plan(compile="require").compile(tmp_path)


def test_a_compiler_that_fails_leaves_the_stage_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def compile_nothing(*_: Any, **__: Any) -> None:
        raise RuntimeError("the C++ compiler failed")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_nothing)
    plan = pipeline_of(nn.Linear(3, 3).eval()).plan(compile="aot").compile(tmp_path)
    assert not plan.compiled
    assert any("cannot be compiled" in note for note in plan.notes)
    with pytest.raises(CompileError, match="'stage' cannot be compiled"):
        pipeline_of(nn.Linear(3, 3).eval()).plan(compile={"stage": "require"}).compile(tmp_path)


def test_what_compile_names_must_be_there_and_can_be_compiled():
    pipeline = pipeline_of(nn.Linear(3, 3).eval())
    for option, problem in (
        ("jit", "compile takes"),
        ({"stag": "aot"}, "Did you mean 'stage'"),
        ({"stage": "fast"}, "compile takes"),
        (3, "compile takes"),
    ):
        with pytest.raises(PlanOptionError, match=problem):
            pipeline.plan(compile=option)  # type: ignore[arg-type]
    for tolerance in (0, -1.0, float("nan"), "1"):
        with pytest.raises(PlanOptionError, match="tolerance"):
            pipeline.plan(compile="aot", tolerance=tolerance)  # type: ignore[arg-type]
    host = pipeline_of(lambda x: x, device="host", outputs={"y": TensorSpec((2, 3))})
    assert not host.plan(compile="require").compiled
    with pytest.raises(PlanOptionError, match="runs on the host"):
        host.plan(compile={"stage": "require"})


def test_a_plan_that_compiles_what_is_no_run_is_refused():
    plan = looped().plan(compile="aot")
    assert looped().bind(Plan.from_json(plan.to_json())) == plan
    region = plan.compiled[0]
    for calls in ((), ("empty", "loop/half"), ("loop/half", "loop/step"), ("no",)):
        wrong = replace(plan, compiled=(replace(region, calls=calls),))
        with pytest.raises(PlanError, match="wrong"):
            looped().bind(wrong)

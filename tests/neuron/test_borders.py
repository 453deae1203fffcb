"""What crosses the border of the device: parts that ranks hold, pads, 64-bit integers, constants, nothing at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator import CompileError, Dim, InputError, Pipeline, Plan, PlanError, StageError, TensorSpec
from orchestrator.adapter import Adapter
from orchestrator.plan.steps import AdaptStep, iter_steps
from orchestrator.planner.verify.steps import verify
from orchestrator.testing import run_reference

pytestmark = pytest.mark.usefixtures("shared_store")

DEVICE = "neuron-emulated"


def one(stage: object, spec: TensorSpec, **add: object) -> Pipeline:
    pipeline = Pipeline("p")
    pipeline.output("y", pipeline.add("stage", stage, **add)(pipeline.input("x", spec)))
    return pipeline


def test_parts_of_ranks_are_joined_before_they_are_cut_back(tmp_path: Path):
    whole, after = nn.Linear(4, 8), nn.Linear(8, 2)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    config = {
        "checkpoint": tmp_path,
        "sharded": {"output": 1},
        "shard_weights": {"weight": 0, "bias": 0},
    }
    pipeline = Pipeline("p")
    part = pipeline.add("part", nn.Linear(4, 4), config=config)
    y = part(pipeline.input("x", TensorSpec((Dim("b", buckets=(2, 4), batch=True), 4), pad=0)))
    pipeline.output("y", y)
    pipeline.output("z", pipeline.add("after", after)(y))
    plan = pipeline.plan(DEVICE, options={"tp_degree": 2})
    with plan.load() as session:
        for size in (4, 2, 3, 1, 9):
            x = torch.randn(size, 4)
            results = session(x=x)
            torch.testing.assert_close(results["y"], whole(x).detach())
            torch.testing.assert_close(results["z"], after(whole(x)).detach())
        stats = session.stats
        for name in ("uploads", "upload_bytes", "downloads", "download_bytes"):
            assert stats["measured"][DEVICE][name] == stats[name]
    assert plan.summary["downloads"] == 2 + 1


def test_a_plan_that_cuts_a_fixed_dim_is_refused():
    """Edited in every place that speaks of it, so that only the rule itself is broken."""
    plan = one(nn.Linear(4, 4), TensorSpec((Dim("b", buckets=(2, 4)), 4), pad=0)).plan(DEVICE)
    cut = Adapter("cut", ("b", 2))

    def change(adapter: Adapter | None) -> Adapter | None:
        return cut if adapter is not None and adapter.kind == "cut" else adapter

    (cut_value,) = (
        step.outputs[0] for step in iter_steps(plan.steps, AdaptStep) if step.adapter.kind == "cut"
    )
    values = [
        replace(value, spec=TensorSpec(("b", 2))) if index == cut_value else value
        for index, value in enumerate(plan.values)
    ]
    edges = [replace(edge, adapters=tuple(map(change, edge.adapters))) for edge in plan.edges]
    steps = [
        replace(step, adapter=change(step.adapter)) if isinstance(step, AdaptStep) else step
        for step in plan.steps
    ]
    broken_plan = replace(plan, values=tuple(values), edges=tuple(edges), steps=tuple(steps))
    with pytest.raises(PlanError, match="which is no cut"):
        verify(broken_plan)


def test_a_pad_that_the_device_cannot_hold_is_refused_when_planning():
    pipeline = Pipeline("p")
    first = pipeline.add("first", lambda a: a + 1)
    second = pipeline.add("second", lambda a: a * 1, inputs={"a": TensorSpec((4, 3), pad=-1e9)})
    pipeline.output("y", second(first(pipeline.input("x", TensorSpec((2, 3))))))
    with pytest.raises(PlanError, match=r"first.output -> second.a.*-1000000000.0.*float16"):
        pipeline.plan(DEVICE, options={"torch_dtype": "float16"})
    with pipeline.plan(DEVICE).load() as session:
        assert session(x=torch.ones(2, 3))["y"][3, 0] == -1e9


def test_an_integer_of_a_request_that_32_bits_do_not_hold_is_refused():
    pipeline = one(lambda a: a + 1, TensorSpec((2,), torch.int64))
    with pipeline.plan(DEVICE).load() as session:
        with pytest.raises((StageError, InputError), match=r"int32.*'x'.*1099511627776"):
            session(x=torch.tensor([2**40, 1]))
        assert session(x=torch.tensor([2**30, -1]))["y"].tolist() == [2**30 + 1, 0]


def test_a_constant_that_32_bits_do_not_hold_is_refused_when_planning():
    pipeline = Pipeline("p")
    add = pipeline.add("add", lambda a, b: a + b)
    pipeline.output("y", add(pipeline.input("x", TensorSpec((2,), torch.int64)), torch.tensor([2**40, 1])))
    with pytest.raises(PlanError, match=r"add.b.*1099511627776"):
        pipeline.plan(DEVICE)


def test_a_tuple_that_holds_nothing_is_named():
    pipeline = Pipeline("p")
    first, _ = pipeline.add("s", lambda x: (x, None), outputs=("a", "b"))(
        pipeline.input("x", TensorSpec((2,)))
    )
    pipeline.output("y", first)
    for device in ("cpu", DEVICE):
        with pytest.raises(PlanError, match=r"'s'.*a tuple that holds a NoneType"):
            pipeline.plan(device)


def test_a_value_without_elements_passes():
    pipeline = one(lambda a: a[:0], TensorSpec((2, 3)))
    inputs = {"x": torch.ones(2, 3)}
    with pipeline.plan(DEVICE).load() as session:
        assert session(**inputs)["y"].shape == run_reference(pipeline.freeze(), inputs)["y"].shape == (0, 3)


@pytest.mark.parametrize("values", [(2.0, 2.0), (2.0, 3.0), (2, 2.0), (True, 1)], ids=str)
def test_equal_constants_share_a_program_and_others_do_not(values: tuple[object, object]):
    pipeline = Pipeline("p")
    scale = pipeline.add("scale", lambda x, s: x * s)
    x = pipeline.input("x", TensorSpec((2, 3)))
    for number, value in enumerate(values):
        pipeline.output(f"y{number}", scale(x, value))
    plan = pipeline.plan(DEVICE)
    assert len(plan.programs) == len(set(map(repr, values)))
    inputs = {"x": torch.randn(2, 3)}
    with plan.load() as session:
        for name, value in run_reference(pipeline.freeze(), inputs).items():
            torch.testing.assert_close(session(**inputs)[name], value)


def test_a_plan_whose_constants_were_equal_does_not_fit_others():
    def build(second: float) -> Pipeline:
        pipeline = Pipeline("p")
        scale = pipeline.add("scale", lambda x, s: x * s)
        x = pipeline.input("x", TensorSpec((2, 3)))
        pipeline.output("a", scale(x, 2.0))
        pipeline.output("b", scale(x, second))
        return pipeline

    plan = Plan.from_json(build(2.0).plan(DEVICE).to_json())
    assert build(2.0).bind(plan) == plan
    with pytest.raises(PlanError, match="constant"):
        build(3.0).bind(plan)


def test_a_float_that_an_integer_port_cannot_hold_is_refused():
    pipeline = one(
        lambda a: a + 1, TensorSpec((2,)), inputs={"a": TensorSpec((2,), torch.int64, allow_cast=True)}
    )
    with pipeline.plan(DEVICE).load() as session:
        with pytest.raises(StageError, match=r"int32.*3000000000"):
            session(x=torch.tensor([3e9, 1.0]))
        assert session(x=torch.tensor([3.7, -1.0]))["y"].tolist() == [4, 0]


def test_places_of_adapters_are_no_option_of_a_stage():
    with pytest.raises(PlanError, match=r"'adapters' of stage 'stage'"):
        one(nn.Linear(4, 4), TensorSpec((2, 4)), config={"adapters": "host"}).plan(DEVICE)


def test_loading_leaves_room_for_requests():
    """A tensor that a function closes over is compiled in; only loading sees what it takes."""
    eye = torch.eye(64)

    def add(x: torch.Tensor) -> torch.Tensor:
        return x + eye

    pipeline = one(add, TensorSpec((64, 64)))
    plan = pipeline.plan(DEVICE)
    memory = sum(size for _, size in plan.buffers) + plan.summary["peak_bytes"][DEVICE]
    with pytest.raises(CompileError, match="nothing was loaded"):
        pipeline.plan(DEVICE, memory=memory + 100).load()
    with pipeline.plan(DEVICE, memory=memory + 64 * 64 * 4).load() as session:
        assert session(x=torch.zeros(64, 64))["y"].sum() == 64

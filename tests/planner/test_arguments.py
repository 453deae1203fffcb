"""Arguments that are no sizes, devices or pads, and errors that travel."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import (
    CompileError,
    Dim,
    GraphError,
    InputError,
    Pipeline,
    Plan,
    PlanError,
    StageError,
    TensorSpec,
)


def small(**spec: object) -> Pipeline:
    pipeline = Pipeline("small")
    x = pipeline.input("x", TensorSpec(("b", 4), **spec))
    pipeline.output("y", pipeline.add("s", nn.Linear(4, 2))(x))
    return pipeline


@pytest.mark.parametrize("sizes", [5, "b", [8]])
def test_sizes_is_a_dict(sizes: object):
    with pytest.raises(PlanError, match="sizes is a dict"):
        small().plan(sizes=sizes)
    with pytest.raises(PlanError, match="Sizes are a dict"):
        small().plan(sizes={"b": 8}).summary_for(sizes)


def test_a_torch_device_is_a_device_string():
    plan = small().plan(placement={"s": torch.device("cpu")}, sizes={"b": 8})
    assert [group.device for group in plan.groups] == ["cpu"]


@pytest.mark.parametrize(
    ("dtype", "pad"), [(torch.uint8, -1), (torch.int8, 300), (torch.int64, 0.5), (torch.bool, 2)]
)
def test_a_pad_is_a_value_of_its_dtype(dtype: torch.dtype, pad: float):
    with pytest.raises(GraphError, match="is no value of"):
        TensorSpec(("b",), dtype, pad=pad)


@pytest.mark.parametrize(
    ("dtype", "pad"), [(torch.uint8, 255), (torch.bool, 1), (torch.int64, 2.0), (torch.half, -1)]
)
def test_pads_that_fit_are_taken(dtype: torch.dtype, pad: float):
    assert TensorSpec(("b",), dtype, pad=pad).pad == pad


def test_a_plan_is_pickled_as_data():
    plan = small().plan(sizes={"b": 8})
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    with pytest.raises(PlanError, match="bind"):
        again.load()


def test_the_error_of_a_closed_session_is_pickled():
    session = small().plan(sizes={"b": 8}).load()
    session.close()
    with pytest.raises(InputError) as caught:
        session(x=torch.zeros(8, 4))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_a_sparse_tensor_is_refused():
    with small().plan(sizes={"b": 8}).load() as session, pytest.raises(InputError, match="dense"):
        session(x=torch.zeros(8, 4).to_sparse())


def test_the_outputs_that_cannot_be_joined_are_named():
    pipeline = Pipeline("sum")
    x = pipeline.input("x", TensorSpec((Dim("b", buckets=(2, 4), batch=True), 4)))
    pipeline.output("whole", x)
    pipeline.output("total", pipeline.add("sum", lambda x: x.sum(0))(x))
    with pipeline.plan().load() as session, pytest.raises(InputError, match="'total'") as caught:
        session(x=torch.zeros(5, 4))
    assert (caught.value.dim, caught.value.size) == ("b", 5)


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_be_told_is_a_stage_error_all_the_same():
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise MuteError

    pipeline = Pipeline("mute")
    x = pipeline.input("x", TensorSpec((2,)))
    stage = pipeline.add("s", fail, device="host", outputs={"output": TensorSpec((2,))})
    pipeline.output("y", stage(x))
    with pipeline.plan().load() as session, pytest.raises(StageError, match="MuteError") as caught:
        session(x=torch.zeros(2))
    assert isinstance(caught.value.__cause__, MuteError)


def test_a_plan_read_from_a_file_is_bound_by_name_and_shape():
    plan = small().plan(sizes={"b": 8})
    other = Pipeline("small")
    other.output("y", other.add("s", nn.Linear(4, 3))(other.input("x", TensorSpec(("b", 4)))))
    with pytest.raises(PlanError, match="does not fit"):
        other.bind(Plan.from_json(plan.to_json()))


@pytest.mark.parametrize("plan", [None, 5, "{}"])
def test_only_a_plan_is_bound_or_compared(plan: object):
    with pytest.raises(PlanError, match="Plan"):
        small().bind(plan)
    with pytest.raises(PlanError, match="plan"):
        small().plan(sizes={"b": 8}).diff(plan)


def test_a_config_is_a_dict():
    with pytest.raises(GraphError, match="dict of options"):
        Pipeline("p").add("s", nn.Linear(2, 2), config=5)


def test_any_python_value_may_pass():
    pipeline = Pipeline("any")
    stage = pipeline.add("s", lambda x: [x], device="host", outputs={"output": Any})
    pipeline.output("y", stage(pipeline.input("x", Any)))
    with pipeline.plan().load() as session:
        assert session(x=3)["y"] == [3]


@pytest.mark.parametrize("path", [None, 5])
def test_artifacts_go_into_a_folder(path: object, tmp_path: Path):
    plan = small().plan(sizes={"b": 8})
    file = tmp_path / "file"
    file.write_text("not a folder")
    for place in (path, file):
        with pytest.raises(CompileError, match="folder"):
            plan.compile(place)
    assert file.read_text() == "not a folder"


def test_a_plan_does_not_hang_on_the_autocast_of_its_planner():
    plain = small().plan(sizes={"b": 8})
    with torch.autocast("cpu", torch.bfloat16):
        assert small().plan(sizes={"b": 8}) == plain

"""Dtypes that a stage cannot take are found while planning, also where torch's fake kernels let them pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator import Pipeline, PlanError, TensorSpec

HALF = torch.float16


def plan(stage, *specs):
    pipeline = Pipeline("dtypes")
    values = [pipeline.input(f"x{place}", spec) for place, spec in enumerate(specs)]
    pipeline.output("y", pipeline.add("stage", stage)(*values))
    return pipeline.plan(device="cpu")


@pytest.mark.parametrize(
    ("stage", "dims", "dtype"),
    [
        (nn.Linear(4, 4), (2, 4), torch.int64),
        (nn.Linear(4, 4), (2, 4), HALF),
        (nn.Linear(4, 4), (2, 3, 4), torch.float64),
        (nn.Linear(4, 4).half(), (2, 4), torch.float32),
        (nn.Linear(4, 4, bias=False), (2, 4), torch.bfloat16),
        (nn.Conv2d(4, 4, 1), (2, 4, 3, 3), torch.float64),
        (nn.ConvTranspose1d(4, 4, 1), (2, 4, 4), torch.float64),
        (nn.GRUCell(4, 4), (2, 4), torch.float64),
        (nn.LayerNorm(4), (2, 4), torch.float64),
        (nn.GroupNorm(2, 4), (2, 4), torch.float64),
    ],
)
def test_a_dtype_that_weights_do_not_go_with_is_refused(stage, dims, dtype):
    with pytest.raises(PlanError, match=r"'stage\.\w+' gets .*" + str(dtype).removeprefix("torch.")):
        plan(stage, TensorSpec(dims, dtype))


def test_two_inputs_of_a_product_are_of_one_dtype():
    with pytest.raises(PlanError, match="one dtype"):
        plan(lambda a, b: a @ b, TensorSpec((2, 4)), TensorSpec((4, 2), torch.float64))


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [
        (nn.Linear(4, 4).to(torch.bfloat16), torch.bfloat16),
        (nn.LayerNorm(4), torch.bfloat16),
        (lambda x: x + torch.ones(4), torch.int64),
    ],
)
def test_what_torch_permits_is_planned_and_runs(stage, dtype):
    with plan(stage, TensorSpec((2, 4), dtype)).load() as session:
        session(x0=torch.ones(2, 4, dtype=dtype))


def test_planning_works_under_inference_mode_and_still_sees_writes():
    with torch.inference_mode():
        plan(nn.Linear(4, 4), TensorSpec((2, 4)))
        with pytest.raises(PlanError, match="writes into its input"):
            plan(lambda x: x.add_(1), TensorSpec((2, 4)))

"""Memory on a device that compiles: output buffers of every program, and the budget of a logical core."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Pipeline, Plan, PlanError, Residency
from tests.kit import Double, linear, refuses, spec
from tests.planner.devices import DEVICE, edge_of, on, programs_of, ranked
from tests.planner.replay import stale_reads


def large(elements: int, dtype: torch.dtype = torch.int8, calls: int = 1) -> Pipeline:
    """One stage, called once or more, whose values are of a size."""
    pipeline = ranked()
    value, stage = pipeline.input("x", spec(elements, dtype=dtype)), pipeline.add("stage", Double())
    for _ in range(calls):
        value = stage(value)
    pipeline.output("y", value)
    return pipeline


@pytest.mark.parametrize(("cores", "budget"), [(1, 12 * 10**9), (2, 24 * 10**9)])
def test_a_logical_core_has_a_budget_without_being_given_one(cores: int, budget: int):
    """Half of it is the input, half the output buffer."""
    plan = on(large(budget // 2), logical_nc_config=cores)
    assert plan.budget == ((DEVICE, budget),)
    refuses(PlanError, "more memory", lambda: on(large(budget // 2 + 1), logical_nc_config=cores))
    assert on(large(budget // 2 + 1), logical_nc_config=cores, memory=budget + 2)
    assert on(large(8), memory={DEVICE: 100}).budget == ((DEVICE, 100),)


def test_the_default_is_two_physical_cores():
    assert on(large(8)).budget == ((DEVICE, 24 * 10**9),)


def test_a_budget_that_is_too_small_has_a_column_for_buffers():
    pipeline = ranked()
    inner = pipeline.add("a", linear(4, 4))(pipeline.input("x", spec(2, 4)))
    pipeline.output("y", pipeline.add("b", linear(4, 4))(inner))
    error = refuses(
        PlanError,
        (
            "'p' needs more memory than its budget on neuron-emulated (bytes, one rank)",
            "weights  constants  buffers  values at peak  needed  budget",
            "160          0       64              32     256     255",
            "compile fewer buckets",
            "tp_degree",
            "placement=",
            "residency=",
            "memory=",
        ),
        lambda: on(pipeline, memory=255),
    )
    assert error.table == ((DEVICE, 160, 0, 64, 32, 256, 255),)
    assert on(pipeline, memory=256).budget == ((DEVICE, 256),)


def test_every_bucket_and_every_twin_has_a_buffer_of_its_own():
    pipeline = ranked()
    value, stage = pipeline.input("x", spec("b", 4, pad=0)), pipeline.add("stage", Double())
    pipeline.output("y", stage(stage(value)))
    plan = on(pipeline, sizes={"b": (2, 8, 16)})
    assert programs_of(plan) == ["stage", "stage[route 1]"]
    assert dict(plan.buffers) == {DEVICE: 2 * (2 + 8 + 16) * 16}
    assert plan.summary["peak_bytes"] == {DEVICE: 16 * 16}
    assert "832 B of output buffers" in str(plan)


def test_where_second_programs_do_not_fit_values_are_copied_out():
    both = large(1000, calls=2)
    needed = 3000  # the input, and two buffers
    assert programs_of(on(both, memory=needed)) == ["stage", "stage[route 1]"]
    plan = on(both, memory=needed - 1)
    assert programs_of(plan) == ["stage"]
    assert edge_of(plan, "stage.output -> stage#2.x").residency is Residency.HOST
    assert plan.notes == (
        "No program is compiled a second time: its output buffers would not fit the memory budget.",
    )
    assert stale_reads(plan) == []
    assert both.bind(Plan.from_json(plan.to_json())) == plan
    error = refuses(PlanError, "more memory", lambda: on(both, memory=1999))
    assert error.table[0][3] == 1000


def test_integers_of_64_bits_take_half_the_memory():
    plan = on(large(100, torch.int64))
    assert dict(plan.buffers) == {DEVICE: 400}
    assert plan.summary["peak_bytes"] == {DEVICE: 400}

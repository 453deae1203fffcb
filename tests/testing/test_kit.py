"""The rest of the kit: fixtures, comparisons, running by hand, and what a foreign project sees of it."""

from __future__ import annotations

import pytest
import torch

import orchestrator.testing
from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator.testing import Record, assert_same, run_reference, stages
from orchestrator.testing.pytest_plugin import make_plugins

#: Some tests run pytest in itself.
pytest_plugins = ("pytester",)

PLUGINS = make_plugins()


def test_every_name_is_there_and_listed():
    assert sorted(orchestrator.testing.__all__) == orchestrator.testing.__all__
    for name in orchestrator.testing.__all__:
        assert getattr(orchestrator.testing, name).__doc__
    assert set(orchestrator.testing.__all__) <= set(dir(orchestrator.testing))
    with pytest.raises(AttributeError, match="NullBackends"):
        _ = orchestrator.testing.NullBackends


def test_fixtures(null_record, isolated_plugins, assert_same):
    assert isinstance(null_record, Record)
    assert {owner.plugin for owner in isolated_plugins.plugins} == {"core", "testing"}
    assert assert_same is orchestrator.testing.assert_same
    assert {"toy.double", "toy.crops"} <= set(isolated_plugins.registry.stages)


def test_toys_are_used_by_name(isolated_plugins):
    pipeline = Pipeline("by name", plugins=isolated_plugins)
    x = pipeline.input("x", TensorSpec((2, 4)))
    crops = pipeline.add("crops", "toy.crops", device="host", config={"width": 3})(x)
    pipeline.output("y", pipeline.add("linear", "toy.linear", config={"features_in": 3, "seed": 1})(crops))
    with pipeline.plan().load() as session:
        assert session(x=torch.full((2, 4), 5.5))["y"].shape == (5, 4)
        assert session(x=torch.zeros(2, 4))["y"].shape == (0, 4)


def test_a_seeded_layer_is_the_same_each_time_and_leaves_the_random_state():
    before = torch.get_rng_state()
    one, other = stages.SeededLinear(3, 5, seed=4), stages.SeededLinear(3, 5, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weight, other.weight)
    assert not torch.equal(one.weight, stages.SeededLinear(3, 5).weight)


@pytest.mark.parametrize(
    ("result", "reference", "what"),
    [
        pytest.param({"a": 1}, {"a": 2}, r"\['a'\] is 1, expected 2", id="value"),
        pytest.param({"a": 1}, {"b": 1}, r"has \['a'\], expected \['b'\]", id="names"),
        pytest.param([1], [1, 2], "has 1 parts", id="length"),
        pytest.param({"a": (torch.zeros(2),)}, {"a": (torch.zeros(3),)}, r"\['a'\]\[0\] is", id="shape"),
        pytest.param(torch.zeros(2), torch.zeros(2, dtype=torch.int64), "int64", id="dtype"),
        pytest.param(torch.zeros(2), torch.full((2,), 1e-9), "differs", id="elements"),
        pytest.param("x", torch.zeros(2), "expected a tensor", id="no tensor"),
    ],
)
def test_differences_are_found(result, reference, what):
    with pytest.raises(AssertionError, match=what):
        assert_same(result, reference)


def test_equal_results_pass():
    value = {"a": [torch.tensor([1.0, float("nan")])], "b": (torch.zeros(0, 3), "x")}
    assert_same(value, {"a": [value["a"][0].clone()], "b": (torch.zeros(0, 3), "x")})
    assert_same(torch.zeros(2), torch.full((2,), 1e-9), exact=False)


def test_by_hand_fits_values_to_fixed_ports():
    pipeline = Pipeline("fits", plugins=PLUGINS)
    x = pipeline.input("x", TensorSpec((Dim("batch", buckets=(2, 4)), 4)))
    first = {"width": 6, "pad": "repeat_first"}
    pipeline.output("wider", pipeline.add("wider", stages.FixedWidth(first))(x))
    pipeline.output("narrower", pipeline.add("narrower", stages.FixedWidth({"width": 3}))(x))
    row = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    results = run_reference(pipeline.freeze(), {"x": row})
    assert results["wider"].tolist() == [[2.0, 3.0, 4.0, 5.0, 2.0, 2.0]]
    assert results["narrower"].tolist() == [[2.0, 3.0, 4.0]]


def test_by_hand_runs_every_form_of_stage():
    pipeline = stages.diamond(plugins=PLUGINS)
    rows = pipeline.add("rows", stages.Rows(), device="host")
    values = {name: pipeline.input(name, TensorSpec(("batch", 4))) for name in ("p", "q")}
    pipeline.output("rows", rows(values["p"]))
    pipeline.output("same", values["q"])
    inputs = {name: torch.ones(3, 4) for name in ("x", "p", "q")}
    results = run_reference(pipeline.freeze(), inputs)
    features = stages.SeededLinear(4, 6)(inputs["x"])
    left, right = features[:, :3] * 2, features[:, 3:]
    assert torch.equal(results["y"], torch.cat([left + 1, right], 1) + features)
    assert torch.equal(results["total"], left.sum(1, keepdim=True))
    assert results["rows"] == 3
    assert results["same"] is inputs["q"]


def test_a_forgotten_case_is_an_error_that_says_so():
    with pytest.raises(NotImplementedError, match="fixture `case`"):
        orchestrator.testing.StageContract.case.__wrapped__(None)  # type: ignore[attr-defined]


def test_a_request_of_python_values_needs_its_maker():
    case = orchestrator.testing.StageCase(stages.Rows, {"x": str}, host=True)
    with pytest.raises(TypeError, match="values="):
        case.request({})


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        pytest.param("lambda x: x * torch.rand(())", "test_it_can_be_repeated", id="random"),
        pytest.param("Writes()", "test_planning_leaves_no_trace", id="leaves a trace"),
        pytest.param("lambda x: x / len(x)", "test_padding_does_not_change_what_is_kept", id="padding"),
    ],
)
def test_the_suite_finds_stages_that_break_it(pytester, broken, test):
    pytester.makepyfile(
        f"""
        import copy, pytest, torch
        from orchestrator import Dim, TensorSpec
        from orchestrator.testing import StageCase, StageContract

        class Writes(torch.nn.Module):
            seen = []

            def __deepcopy__(self, memo):
                self.copies = getattr(self, "copies", 0) + 1
                return copy.copy(self)

            def forward(self, x):
                return x + 1

        class TestBroken(StageContract):
            @pytest.fixture
            def case(self):
                ports = {{"x": TensorSpec((Dim("batch", buckets=(2, 4)), 4), pad=0)}}
                return StageCase(lambda: {broken}, ports)
        """
    )
    result = pytester.runpytest_inprocess("-k", test, "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1, deselected=10)


def test_a_project_of_its_own_can_subclass_the_suites(pytester):
    pytester.makepyfile(
        """
        import pytest
        from orchestrator import TensorSpec
        from orchestrator.testing import BackendCase, BackendContract, NullBackend, StageCase, StageContract
        from orchestrator.testing.stages import Double

        class TestMine(StageContract):
            @pytest.fixture
            def case(self):
                return StageCase(Double, {"x": TensorSpec((2, 3))})

        class TestDevice(BackendContract):
            @pytest.fixture
            def case(self):
                return BackendCase(NullBackend, "null:3", {"compute": True}, absent="null:9")

        def test_fixture(null_record):
            assert null_record.calls == []
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed", "skipped"}
    assert outcomes["skipped"] == 2


def test_an_unknown_toy_is_not_guessed(isolated_plugins):
    pipeline = Pipeline("p", plugins=isolated_plugins)
    with pytest.raises(Exception, match=r"toy\.double"):
        pipeline.add("x", "toy.duoble")
    with pytest.raises(GraphError):
        pipeline.freeze()

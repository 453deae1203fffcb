"""What a user's editor and type checker see of the main journey, and what there is to be seen."""

from __future__ import annotations

import inspect
import sys
from typing import ClassVar

import pytest
import torch

import orchestrator
import orchestrator.backend
from orchestrator import Dim, GraphError, HostStage, InputError, Pipeline, Plan, Session, TensorSpec
from orchestrator.pipeline import StageHandle, SubPipelineHandle, Value, Values
from tests.kit import refuses

ROW = TensorSpec(("batch", 4))


def rows() -> Pipeline:
    pipeline = Pipeline("rows")
    value = pipeline.add("double", lambda x: x * 2, inputs=("x",))(pipeline.input("x", ROW))
    pipeline.output("y", value)
    return pipeline


def test_a_pipeline_shows_what_is_documented_and_nothing_else():
    names = {name for name in dir(Pipeline("p")) if not name.startswith("_")}
    assert names == {
        *("name", "example_inputs", "input", "add", "loop", "map", "when", "output"),
        *("freeze", "graph", "validate", "plan", "bind", "check"),
    }


@pytest.mark.parametrize(
    "method",
    [
        *(
            Pipeline.add,
            Pipeline.loop,
            Pipeline.map,
            Pipeline.when,
            Pipeline.freeze,
            Pipeline.plan,
            Pipeline.bind,
        ),
        *(
            StageHandle.__call__,
            SubPipelineHandle.__call__,
            Plan.load,
            Plan.compile,
            Session.run,
            Session.stream,
        ),
    ],
    ids=lambda method: method.__qualname__,
)
def test_a_method_of_the_main_journey_says_what_it_returns(method):
    assert inspect.signature(method).return_annotation not in ("Any", "object", inspect.Signature.empty)


def test_all_of_plan_but_the_device_goes_by_keyword():
    kinds = {name: item.kind.name for name, item in inspect.signature(Pipeline.plan).parameters.items()}
    assert {name for name, kind in kinds.items() if kind != "KEYWORD_ONLY"} == {"self", "device"}


def test_several_outputs_are_a_value_that_no_port_takes():
    pipeline = Pipeline("halves")
    halves = pipeline.add("split", lambda x: (x, x), outputs=("a", "b"))(pipeline.input("x", ROW))
    assert isinstance(halves, Values)
    first, second = halves
    assert isinstance(first, Value)
    assert (halves["a"], halves[1], halves[:]) == (first, second, (first, second))
    refuses(GraphError, "pick one of ['a', 'b']", lambda: pipeline.output("y", halves))


def test_a_frozen_graph_is_the_same_one_until_something_is_added():
    pipeline = rows()
    graph = pipeline.freeze()
    assert pipeline.freeze() is pipeline.graph is pipeline.validate() is graph
    pipeline.output("again", pipeline.add("triple", lambda x: x * 3)(pipeline.input("z", ROW)))
    assert pipeline.freeze() is not graph
    assert (graph.outputs, pipeline.freeze().outputs) == (("y",), ("y", "again"))


def test_what_breaks_a_rule_is_refused_each_time_until_it_is_mended():
    pipeline = rows()
    triple = pipeline.add("triple", lambda x: x * 3)
    for _ in range(2):
        refuses(GraphError, "never called", pipeline.freeze)
    pipeline.output("z", triple(pipeline.input("z", ROW)))
    assert pipeline.freeze().order == ("double", "triple")


def test_adding_a_stage_costs_the_same_however_many_there_are():
    pipeline, calls = Pipeline("long"), [0]
    value = pipeline.input("x", ROW)

    def count(_frame: object, event: str, _argument: object) -> None:
        calls[0] += event in ("call", "c_call")

    costs = []
    for number in range(2000):
        calls[0] = 0
        sys.setprofile(count)
        try:
            value = pipeline.add(f"stage{number}", torch.neg, inputs=("x",))(value)
        finally:
            sys.setprofile(None)
        costs.append(calls[0])
    assert max(costs[1900:]) <= max(costs[10:110])


@pytest.mark.parametrize("listens", [False, True])
def test_a_session_called_by_position_says_how_it_is_called(listens: bool):
    x = torch.ones(2, 4)
    with rows().plan(sizes={"batch": (2,)}).load() as session:
        refuses(InputError, "session(x=...)", lambda: session(x))
        session(x=x)
        for arguments in ((x,), ({"x": x},), (x, x)):
            if listens:
                with session.trace():
                    refuses(InputError, "by name", lambda arguments=arguments: session(*arguments))
            refuses(InputError, "by name", lambda arguments=arguments: session(*arguments))
        refuses(InputError, "session.run(inputs)", lambda: session({"x": x}))
        refuses(InputError, "by name", lambda: session(x, x=x))
        assert torch.equal(session(x=x)["y"], session.run({"x": x})["y"])


def test_all_that_a_backend_needs_is_in_one_place():
    names = orchestrator.backend.__all__
    assert {"Capabilities", "CompilingBackend", "EagerBackend", "Link", "Adapter", "Stage", "Program"} <= {
        *names
    }
    assert all(getattr(orchestrator.backend, name) is not None for name in names)
    assert orchestrator.backend.Backend is orchestrator.Backend


def test_a_host_stage_is_a_class_of_the_core():
    class Longest(HostStage):
        inputs: ClassVar = {"x": ROW}
        outputs: ClassVar = {"y": int}

        def forward(self, x: torch.Tensor) -> int:
            return int(x.argmax())

    pipeline = Pipeline("longest")
    stage = pipeline.add("longest", Longest(), device="host")
    pipeline.output("y", stage(pipeline.input("x", TensorSpec((Dim.dynamic("batch"), 4)))))
    with pipeline.plan().load() as session:
        assert session(x=torch.tensor([[0.0, 0, 1, 0]])) == {"y": 2}
    with pytest.raises(NotImplementedError, match="forward"):
        HostStage().forward()

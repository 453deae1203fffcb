"""The builder: names, wiring, and every way to wire wrongly."""

from __future__ import annotations

import pytest
import torch

from orchestrator import GraphError, PluginError, TensorSpec
from orchestrator.pipeline import Value
from tests.kit import Double, batch, chain, host, linear, new, refuses, spec


def split(x):
    return x[:1], x[1:]


def add(left, right):
    return left + right


def test_two_stages_cannot_share_a_name():
    pipeline = new("twins")
    pipeline.add("enc", Double())
    error = refuses(GraphError, ("'twins'", "'enc'", "unique"), lambda: pipeline.add("enc", Double()))
    assert error.stage == "enc"


def test_a_stage_and_an_inlined_pipeline_cannot_share_a_name():
    pipeline = new()
    pipeline.add("enc", chain(Double()))
    refuses(GraphError, "'enc'", lambda: pipeline.add("enc", Double()))
    other = new()
    other.add("enc", Double())
    refuses(GraphError, "'enc'", lambda: other.add("enc", chain(Double())))


def test_two_inputs_or_two_outputs_cannot_share_a_name():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    pipeline.output("y", x)
    assert refuses(GraphError, "'x' already", lambda: pipeline.input("x", spec(2))).input == "x"
    assert refuses(GraphError, "'y' already", lambda: pipeline.output("y", x)).output == "y"


@pytest.mark.parametrize("name", ["", " x", "a.b", "a/b", "a#2", "a[0]", "a->b", 3, None])
def test_names_leave_out_the_marks_of_edges(name: object):
    pipeline = new()
    refuses(GraphError, "", lambda: pipeline.input(name, spec(2)))
    refuses(GraphError, "", lambda: pipeline.add(name, Double()))
    value = pipeline.input("x", spec(2))
    refuses(GraphError, "", lambda: pipeline.output(name, value))


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_pipeline_has_a_name(name: object):
    refuses(GraphError, "non-empty", lambda: new(name))


def test_an_input_is_a_spec_or_a_type():
    refuses(GraphError, ("TensorSpec", "(2, 3)"), lambda: new().input("x", (2, 3)))


def test_a_port_cannot_be_fed_twice_in_one_call():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    stage = pipeline.add("add", add)
    error = refuses(GraphError, ("'add.left'", "fed twice"), lambda: stage(x, left=x))
    assert (error.stage, error.port) == ("add", "left")


def test_a_port_that_is_not_fed_is_named():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    error = refuses(GraphError, ("'add.right'", "never fed"), lambda: pipeline.add("add", add)(x))
    assert (error.stage, error.port) == ("add", "right")


def test_too_many_values_are_refused():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    refuses(GraphError, ("takes 2 values (left, right)", "with 3"), lambda: pipeline.add("add", add)(x, x, x))


def test_an_unknown_port_is_offered_the_nearest():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    error = refuses(GraphError, "Did you mean 'right'?", lambda: pipeline.add("add", add)(x, rihgt=x))
    assert (error.stage, error.port) == ("add", "rihgt")


def test_an_unknown_registered_stage_is_offered_the_nearest():
    refuses(PluginError, "Did you mean 'toy.double'?", lambda: new().add("d", "toy.duoble"))


def test_a_stage_that_is_never_called_is_named():
    pipeline = new("idle")
    pipeline.output("y", pipeline.input("x", spec(2)))
    pipeline.add("lazy", Double())
    error = refuses(GraphError, ("'lazy'", "never called"), pipeline.validate)
    assert (error.stage, error.pipeline) == ("lazy", "idle")


def test_a_value_of_another_pipeline_is_refused():
    ours, theirs = new("ours"), new("theirs")
    stranger = theirs.input("z", spec(2))
    refuses(GraphError, ("'theirs'", "'ours'", "as a stage"), lambda: ours.add("d", Double())(stranger))
    refuses(GraphError, ("'theirs'", "'ours'"), lambda: ours.output("y", stranger))


def test_a_call_that_failed_leaves_nothing_behind():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    stage = pipeline.add("add", add)
    stranger = new("q").input("z", spec(2))
    refuses(GraphError, "", lambda: stage(torch.zeros(2), stranger))
    pipeline.output("y", stage(x, 1.0))
    with pipeline.plan().load() as session:
        assert torch.equal(session(x=torch.ones(2))["y"], torch.full((2,), 2.0))


def test_an_output_takes_one_value():
    pipeline = new()
    parts = pipeline.add("split", split, outputs=("head", "tail"))(pipeline.input("x", spec(3)))
    error = refuses(GraphError, ("one value", "'head', 'tail'"), lambda: pipeline.output("y", parts))
    assert (error.where, error.ports) == ("output 'y'", ["head", "tail"])
    refuses(GraphError, "one value", lambda: pipeline.add("d", Double())(parts))
    refuses(GraphError, "a value of the pipeline", lambda: pipeline.output("z", torch.zeros(2)))


def test_several_outputs_are_a_tuple_that_also_takes_names():
    pipeline = new()
    parts = pipeline.add("split", split, outputs=("head", "tail"))(pipeline.input("x", spec(3)))
    head, tail = parts
    assert isinstance(head, Value)
    assert (parts["tail"].port, parts[0].port, tail.port) == ("tail", "head", "tail")
    refuses(GraphError, "Did you mean 'head'?", lambda: parts["heads"])


def test_one_value_is_no_tuple():
    pipeline = new()
    value = pipeline.add("split", split)(pipeline.input("x", spec(3)))
    error = refuses(GraphError, "outputs=('a', 'b')", lambda: list(value))
    assert error.call == "split"


def test_a_dict_gives_ports_by_key():
    pipeline = new()
    outputs = pipeline.add("d", lambda x: {"one": x, "two": x * 2})(pipeline.input("x", spec(2)))
    pipeline.output("y", outputs["two"])
    with pipeline.plan().load() as session:
        assert torch.equal(session(x=torch.ones(2))["y"], torch.full((2,), 2.0))


def test_a_pipeline_hands_an_input_through():
    pipeline = new()
    x = pipeline.input("x", spec(batch("n"), 2, pad=0))
    pipeline.output("same", x)
    pipeline.output("twice", pipeline.add("d", Double())(x))
    with pipeline.plan(sizes={"n": (2, 4)}).load() as session:
        for size in (2, 3, 9):
            value = torch.randn(size, 2)
            result = session(x=value)
            assert torch.equal(result["same"], value)
            assert torch.equal(result["twice"], value * 2)


def test_one_value_may_be_several_outputs():
    pipeline = new()
    value = pipeline.add("d", Double())(pipeline.input("x", spec(batch("n"), pad=0)))
    pipeline.output("one", value)
    pipeline.output("two", value)
    with pipeline.plan(sizes={"n": 4}).load() as session:
        result = session(x=torch.ones(3))
        assert torch.equal(result["one"], result["two"])
        assert result["one"].shape == (3,)


def test_outputs_and_inputs_that_nobody_reads_are_no_harm():
    pipeline = new()
    x, _spare = (
        pipeline.input("x", spec(batch("n"), 3, pad=0)),
        pipeline.input("spare", spec(batch("n"), pad=0)),
    )
    _head, tail = pipeline.add("parts", lambda x: (x[:, :1], x[:, 1:]), outputs=("head", "tail"))(x)
    pipeline.output("y", tail)
    with pipeline.plan(sizes={"n": (2, 4)}).load() as session:
        for size in (2, 3, 11):
            value = torch.randn(size, 3)
            assert torch.equal(session(x=value, spare=torch.zeros(size))["y"], value[:, 1:])


def test_a_pipeline_may_have_no_input():
    pipeline = new()
    pipeline.output("y", pipeline.add("d", Double())(torch.ones(2)))
    with pipeline.plan().load() as session:
        assert torch.equal(session()["y"], torch.full((2,), 2.0))


def scale_by(x, *, factor, shift=0.0):
    return x * factor + shift


def test_constants_are_tensors_or_python_values():
    pipeline = new()
    x = pipeline.input("x", spec(2))
    pipeline.output("y", pipeline.add("s", scale_by)(x, factor=3, shift=torch.tensor([1.0, 2.0])))
    plan = pipeline.plan()
    assert {edge.source for edge in plan.edges} >= {"constant#1", "constant#2"}
    with plan.load() as session:
        assert session(x=torch.ones(2))["y"].tolist() == [4.0, 5.0]


def test_optional_and_keyword_ports_may_be_fed_or_not():
    x = torch.ones(2)
    for arguments, result in (({}, [2.0, 2.0]), ({"shift": 5.0}, [7.0, 7.0])):
        pipeline = new()
        pipeline.output(
            "y", pipeline.add("s", scale_by)(pipeline.input("x", spec(2)), factor=2.0, **arguments)
        )
        with pipeline.plan().load() as session:
            assert session(x=x)["y"].tolist() == result


def test_a_keyword_port_takes_a_value_too():
    pipeline = new()
    x, f = pipeline.input("x", spec(2)), pipeline.input("f", spec(2))
    pipeline.output("y", pipeline.add("s", scale_by)(x, factor=f))
    with pipeline.plan().load() as session:
        assert session(x=torch.ones(2), f=torch.tensor([3.0, 4.0]))["y"].tolist() == [3.0, 4.0]


def test_a_gap_in_optional_ports_is_bridged_by_name():
    def three(a, b=10.0, c=100.0):
        return a + b + c

    pipeline = new()
    x = pipeline.input("x", spec(1))
    pipeline.output("y", pipeline.add("t", three)(x, c=x))
    with pipeline.plan().load() as session:
        assert session(x=torch.ones(1))["y"].tolist() == [12.0]


def test_python_types_travel_between_host_stages_only():
    pipeline = new()
    prompt = pipeline.input("prompt", str)
    length = host(pipeline, "length", lambda prompt: len(prompt), count=int)(prompt)
    pipeline.output("count", length)
    with pipeline.plan().load() as session:
        assert session(prompt="seven..") == {"count": 7}


def test_a_spec_of_a_device_stage_is_a_tensor():
    pipeline = chain(Double(), takes=str)
    with pytest.raises(Exception, match="never meets a device"):
        pipeline.plan()


def test_what_a_pipeline_is_shows_in_its_repr():
    pipeline = chain(linear(2, 2), Double())
    assert repr(pipeline) == "<Pipeline 'p': 2 stages, 2 calls>"
    assert repr(pipeline.input("z", TensorSpec((2,)))) == "<Value z>"

"""Stages: ports are read from signatures, declared ones fit them, wrappers have the shape of NxD Inference's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator import Dim, GraphError, ModelWrapper
from orchestrator.stage import make_stage
from tests.kit import Double, chain, linear, new, refuses, spec


def plain(a, b, c=None, *, d, e=1):
    return a


def ports(target: object, **arguments: object) -> list[tuple[str, bool, bool]]:
    stage = make_stage("s", target, **arguments)
    return [(port.name, port.optional, port.keyword) for port in stage.inputs]


def test_ports_are_the_parameters_of_a_function():
    assert ports(plain) == [
        ("a", False, False),
        ("b", False, False),
        ("c", True, False),
        ("d", False, True),
        ("e", True, True),
    ]


def test_ports_of_a_module_are_those_of_forward():
    assert ports(nn.Bilinear(2, 3, 4)) == [("input1", False, False), ("input2", False, False)]


@pytest.mark.parametrize(
    ("target", "by_name"), [(torch.relu, False), (lambda *args: args, False), (lambda a, **more: a, True)]
)
def test_what_has_no_readable_ports_has_to_name_them(target: object, by_name: bool):
    error = refuses(GraphError, ("cannot be read", "inputs=('a', 'b')"), lambda: make_stage("s", target))
    assert error.stage == "s"
    assert ports(target, inputs=("a", "b")) == [("a", False, by_name), ("b", False, by_name)]


def test_declared_names_rename_positional_parameters_in_order():
    assert ports(lambda x, y: x, inputs=("left", "right")) == [
        ("left", False, False),
        ("right", False, False),
    ]


def test_a_declared_port_that_forward_lacks_is_refused_with_the_nearest():
    error = refuses(
        GraphError,
        ("'imag'", "Did you mean 'image'?"),
        lambda: make_stage("s", lambda image: image, inputs=("imag", "b")),
    )
    assert (error.stage, error.port) == ("s", "imag")


@pytest.mark.parametrize("target", [5, None, object(), torch.zeros(2)])
def test_a_stage_is_something_that_can_be_called(target: object):
    refuses(GraphError, "a stage is a module, a function, a ModelWrapper", lambda: make_stage("s", target))


@pytest.mark.parametrize("target", [nn.ReLU, ModelWrapper])
def test_a_class_is_not_the_object(target: type):
    refuses(GraphError, f"{target.__name__}(...)", lambda: make_stage("s", target))


def test_a_host_stage_declares_what_it_gives():
    for outputs in (None, ("y",), {"y": None}):
        refuses(
            GraphError,
            "never runs while planning",
            lambda o=outputs: make_stage("s", plain, device="host", outputs=o),
        )


@pytest.mark.parametrize("keyword", ["inputs", "outputs"])
def test_ports_are_declared_by_name(keyword: str):
    for wrong in (spec(2), ("a", "a"), {"a": 3}, ("a.b",), (5,)):
        refuses(GraphError, "", lambda w=wrong: make_stage("s", Double(), **{keyword: w}))


class Tower(ModelWrapper):
    """A wrapper with everything as class attributes."""

    model_cls = nn.Linear
    config = {"in_features": 4, "out_features": 3}  # noqa: RUF012  # as wrappers of NxD Inference have it
    tag = "tower"
    inputs = {"pixels": spec("n", 4, pad=0)}  # noqa: RUF012
    outputs = {"features": spec("n", 3)}  # noqa: RUF012


def test_a_wrapper_builds_its_model_once_and_in_eval_mode():
    tower = Tower()
    model = tower.model
    assert tower.model is model
    assert not model.training
    assert (model.in_features, model.out_features) == (4, 3)
    assert Tower().model is not model


def test_a_wrapper_of_class_attributes_runs_by_its_declared_ports():
    tower = Tower()
    pipeline = new()
    features = pipeline.add("tower", tower)(pixels=pipeline.input("x", spec("n", 4, pad=0)))
    pipeline.output("y", features)
    plan = pipeline.plan(sizes={"n": (2, 4)})
    assert [str(edge) for edge in plan.edges] == ["x -> tower.pixels", "tower.features -> y"]
    with plan.load() as session:
        x = torch.randn(3, 4)
        assert torch.allclose(session(x=x)["y"], tower.model(x), atol=1e-6)


class Config:
    """A configuration that is an object, as those of Hugging Face are."""

    width = 4


class Configured(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear = nn.Linear(config.width, 2)

    def forward(self, x):
        return self.linear(x)


def test_a_config_that_is_no_mapping_is_passed_whole():
    assert ModelWrapper(Config(), Configured).model.linear.in_features == 4


def test_a_mapping_is_passed_whole_to_a_parameter_called_config():
    configs = []
    ModelWrapper({"a": 1}, lambda config: configs.append(config) or Double()).model  # noqa: B018
    assert configs == [{"a": 1}]


def test_the_constructor_wins_over_class_attributes():
    tower = Tower({"in_features": 4, "out_features": 7}, tag="wide")
    assert (tower.model.out_features, tower.tag, Tower.tag) == (7, "wide", "tower")


class Normalised(Tower):
    """A wrapper that does more than its model."""

    def forward(self, pixels):
        return self.model(pixels / 2) + 1


def test_a_wrapper_may_do_more_than_its_model():
    wrapper = Normalised()
    pipeline = new()
    pipeline.output("y", pipeline.add("n", wrapper)(pipeline.input("x", spec(2, 4))))
    x = torch.randn(2, 4)
    plan = pipeline.plan(sizes={"n": 2})  # no request decides n: the port takes the size that fits
    with plan.load() as session:
        assert torch.allclose(session(x=x)["y"], wrapper.model(x / 2) + 1, atol=1e-6)


class ByExample(ModelWrapper):
    """A wrapper that states its shapes by example."""

    model_cls = nn.Linear
    config = {"in_features": 4, "out_features": 3}  # noqa: RUF012

    def input_generator(self):
        return [(torch.zeros(2, 4),)]


def test_shapes_may_be_stated_by_example():
    assert chain(ByExample(), takes=spec(2, 4)).plan().edges[-1].spec == spec(2, 3)


def test_example_inputs_are_made_from_the_declared_ports():
    class Buckets(Tower):
        inputs = {"pixels": spec(Dim("n", (1, 8)), 4), "more": spec(2, dtype=torch.int64)}  # noqa: RUF012

    examples = Buckets().input_generator()
    assert [[(tuple(t.shape), t.dtype) for t in row] for row in examples] == [
        [((1, 4), torch.float32), ((2,), torch.int64)],
        [((8, 4), torch.float32), ((2,), torch.int64)],
    ]


def test_a_wrapper_without_a_model_says_what_to_set():
    refuses(GraphError, ("no model_cls", "override make_model or forward"), lambda: ModelWrapper().model)


class Making(ModelWrapper):
    def make_model(self):
        return linear(4, 3)


def test_a_wrapper_that_makes_its_model_itself_says_so():
    assert Making().makes_model
    assert ModelWrapper(model_cls=nn.Linear).makes_model
    assert not ModelWrapper().makes_model


def test_the_ports_of_a_wrapper_that_makes_its_model_are_read_from_the_model():
    assert [port.name for port in make_stage("s", Making()).inputs] == ["input"]


def test_a_wrapper_in_a_pipeline_is_built_by_nobody_but_the_load():
    builds = []

    class Slow(ModelWrapper):
        def make_model(self):
            builds.append(type(torch.empty(0)).__name__)
            return super().make_model()

    slow = Slow({"in_features": 4, "out_features": 3}, nn.Linear)
    plan = chain(slow, takes=spec(2, 4)).plan()
    assert slow._model is None
    assert "Tensor" not in [name for name in builds if name == "Parameter"]
    with plan.load() as session:
        x = torch.randn(2, 4)
        assert torch.equal(session(x=x)["y"], slow.model(x))


def test_one_stage_called_twice_is_one_set_of_weights():
    module = linear(4, 4)
    pipeline = new()
    stage = pipeline.add("enc", module)
    x = pipeline.input("x", spec(2, 4))
    pipeline.output("y", stage(stage(x)))
    plan = pipeline.plan()
    assert [call.name for call in plan.calls] == ["enc", "enc#2"]
    assert dict(plan.weights) == {"cpu": 4 * (16 + 4)}

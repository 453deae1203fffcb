"""Infer: what contradicts is found before anything runs, and both ports are named with shapes and dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import orchestrator_neuron
from orchestrator import Dim, ModelWrapper, Pipeline, PlanError, StageError, TensorSpec
from orchestrator.testing.pytest_plugin import make_plugins
from tests.kit import Double, chain, host, linear, new, refuses, spec


def at(target, takes, *, source=None, **plan):
    """Plans ``x -> s.x`` where the port declares ``takes``."""
    pipeline = new()
    x = pipeline.input("x", source or spec(2, 4))
    pipeline.output("y", pipeline.add("s", target, inputs={"x": takes})(x))
    return lambda: pipeline.plan(**plan)


@pytest.mark.parametrize(
    ("takes", "words"),
    [
        (spec(2, 5), ("too small", "[2, 5] float32", "pad=0")),
        (spec(2, 3), ("too large", "[2, 3] float32", "allow_slice=True")),
        (spec(2, 4, 1), ("Ranks differ (2 and 3)", "[2, 4, 1] float32")),
        (spec(8), ("Ranks differ (2 and 1)", "[8] float32")),
        (spec(2, 4, dtype=torch.float16), ("Dtypes differ", "[2, 4] float16", "allow_cast=True")),
        (spec(2, 4, dtype=torch.int64, pad=0), ("Dtypes differ", "int64")),
    ],
)
def test_a_contradiction_names_both_ports(takes, words):
    error = refuses(PlanError, ("'x' gives [2, 4] float32", "'s.x' takes", *words), at(Double(), takes))
    assert (error.edge, error.source, error.target) == ("x -> s.x", spec(2, 4), takes)


def test_two_names_are_two_sizes():
    words = ("'b' and 'n'", "'x' gives [b, 4] float32", "'s.x' takes [n, 4] float32")
    refuses(PlanError, words, at(Double(), spec("n", 4), source=spec("b", 4), sizes={"b": 2, "n": 2}))


def test_a_contradiction_between_two_stages_names_their_ports():
    pipeline = new()
    wide = pipeline.add("wide", linear(4, 6))(pipeline.input("x", spec(2, 4)))
    pipeline.output("y", pipeline.add("narrow", Double(), inputs={"x": spec(2, 5)})(wide))
    refuses(PlanError, ("'wide.output' gives [2, 6]", "'narrow.x' takes [2, 5]"), pipeline.plan)


def test_a_stage_that_refuses_its_input_is_named_with_what_it_got_and_what_it_says():
    error = refuses(
        PlanError,
        ("Stage 'a'", "'a.input' gets [2, 4] float32 from 'x'", "It says: RuntimeError"),
        chain(nn.Linear(3, 3), takes=spec(2, 4)).plan,
    )
    assert (error.stage, error.call, error.inputs) == ("a", "a", {"input": spec(2, 4)})
    assert isinstance(error.__cause__, RuntimeError)


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * x.sum().item(),
    ],
)
def test_a_shape_that_hangs_on_contents_needs_a_bound(look):
    error = refuses(PlanError, ("'a'", "host"), chain(look).plan)
    assert error.stage == "a"


def test_a_stage_that_leaves_torch_cannot_be_inferred():
    refuses(PlanError, "'a'", chain(lambda x: torch.from_numpy(x.numpy() * 2)).plan)


def outputs(target, declared, takes=None, **plan):
    pipeline = new()
    values = pipeline.add("s", target, outputs=declared)(pipeline.input("x", takes or spec(2, 4)))
    pipeline.output("y", values if not isinstance(values, tuple) else values[0])
    return lambda: pipeline.plan(**plan)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"z": spec(2, 5)}, ("'s.z' is [2, 5] float32", "gives [2, 3] float32")),
        ({"z": spec(2, 3, 1)}, ("[2, 3, 1]", "gives [2, 3]")),
        ({"z": spec(2, 3, dtype=torch.float16)}, ("float16", "[2, 3] float32")),
        (("a", "b"), ("'a', 'b'", "one tensor")),
    ],
)
def test_an_output_that_differs_from_its_declaration_is_refused(declared, words):
    error = refuses(PlanError, ("Stage 's'", *words), outputs(linear(4, 3), declared))
    assert (error.stage, error.call) == ("s", "s")


def test_a_declared_name_has_to_hold_at_every_size():
    refuses(
        PlanError,
        ("'s.z' is [n] float32", "gives [5] float32"),
        outputs(lambda x: x.sum(0), {"z": spec("n")}, spec("n", 5), sizes={"n": (2, 5)}),
    )


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda x: (x, x), ("a tuple of 2", "outputs=('a', 'b', ...)")),
        (lambda x: 3, "gives a int"),
        (lambda x: None, "gives a NoneType"),
        (lambda x: (x, 3), "holds a int"),
        (lambda x: {"a": "text"}, "holds a str"),
    ],
)
def test_a_stage_gives_tensors_in_a_form_its_ports_have(target, words):
    assert refuses(PlanError, words, chain(target).plan).stage == "a"


def test_an_output_port_that_a_dict_lacks_is_offered_the_known_ones():
    pipeline = new()
    given = pipeline.add("s", lambda x: {"boxes": x, "scores": x})(pipeline.input("x", spec(2)))
    pipeline.output("y", given["boxs"])
    error = refuses(PlanError, ("'s.boxs'", "Did you mean 'boxes'?"), pipeline.plan)
    assert error.stage == "s"
    refuses(PlanError, "'a'", outputs(lambda x: {"b": x}, ("a",)))


def test_a_form_that_changes_with_the_size_is_refused():
    refuses(
        PlanError,
        ("another number, rank or dtype", "give it one form"),
        outputs(lambda x: x if x.shape[0] < 3 else x[0], None, spec("n", 4), sizes={"n": (2, 4)}),
    )


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x[0].zero_() + x,
        lambda x: torch.mul(x, 2, out=x),
        lambda x: x.view(-1).fill_(0).reshape(2, 4),
        lambda x: torch.relu_(x),
        lambda x: (x.__setitem__(0, 0), x)[1],
    ],
)
def test_a_stage_that_writes_into_its_input_is_refused(write):
    error = refuses(
        PlanError, ("writes into its input 'x'", "x.clone()"), chain(write, takes=spec(2, 4)).plan
    )
    assert (error.stage, error.port) == ("a", "x")


def test_an_in_place_module_is_refused():
    refuses(PlanError, "writes into its input 'input'", chain(nn.ReLU(inplace=True)).plan)


def test_a_stage_may_write_into_what_it_made_itself():
    assert chain(lambda x: x.clone().add_(1).mul_(2)).plan().calls[0].outputs == (("output", spec(2)),)


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(),
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)),
        nn.BatchNorm1d(4),
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4))),
    ],
)
def test_training_mode_with_dropout_or_batchnorm_is_refused(module):
    error = refuses(PlanError, ("training mode", ".eval()"), chain(module.train(), takes=spec(2, 4)).plan)
    assert error.stage == "a"
    chain(module.eval(), takes=spec(2, 4)).plan()


def test_training_mode_is_seen_in_a_wrapper_and_a_bound_method():
    wrapper = ModelWrapper({"p": 0.5}, nn.Dropout)
    wrapper.model.train()
    refuses(PlanError, "training mode", chain(wrapper).plan)


def test_training_mode_alone_is_no_fault():
    chain(nn.Linear(4, 4).train(), takes=spec(2, 4)).plan()


@pytest.mark.parametrize("value", [3, 2.5, True, None, "same", (1, 2)])
def test_python_constants_reach_the_stage_as_they_are(value):
    seen = []

    def look(x, given):
        assert (type(given), given) == (type(value), value)
        seen.append(given)
        return x * 1

    pipeline = new()
    pipeline.output("y", pipeline.add("look", look)(pipeline.input("x", spec(2)), value))
    with pipeline.plan().load() as session:
        session(x=torch.ones(2))
    assert [(type(item), item) for item in seen] == [(type(value), value)]


def test_a_python_type_never_meets_a_device():
    pipeline = new()
    given = host(pipeline, "h", lambda x: [1], boxes=list)(pipeline.input("x", spec(2)))
    pipeline.output("y", pipeline.add("d", Double())(given))
    error = refuses(PlanError, ("'h.boxes'", "list", "never meets a device"), pipeline.plan)
    assert error.edge == "h.boxes -> d.x"


def test_python_types_have_to_fit():
    pipeline = new()
    text = pipeline.input("x", str)
    count = pipeline.add("h", lambda n: n, device="host", inputs={"n": int}, outputs={"m": int})(text)
    pipeline.output("y", count)
    refuses(PlanError, ("'x' gives str", "'h.n' takes int"), pipeline.plan)


def test_a_subclass_or_object_fits_a_type():
    for takes in (object, int):
        pipeline = new()
        given = host(pipeline, "a", lambda x: True, flag=bool)(pipeline.input("x", spec(1)))
        stage = pipeline.add("b", lambda n: 1, device="host", inputs={"n": takes}, outputs={"m": int})
        pipeline.output("y", stage(given))
        assert pipeline.plan().load()(x=torch.zeros(1)) == {"y": 1}


class Opaque(ModelWrapper):
    """A program no fake tensor gets through."""

    opaque = True
    inputs = {"x": spec("n", 4, pad=0)}  # noqa: RUF012
    outputs = {"y": spec("n", 2)}  # noqa: RUF012

    def forward(self, x):
        return torch.from_numpy(x.numpy()[:, :2].copy())


def test_an_opaque_stage_is_taken_at_its_word_and_checked_at_each_call():
    plan = chain(Opaque(), takes=spec("n", 4, pad=0)).plan(sizes={"n": (2, 4)})
    assert plan.calls[0].is_declared
    x = torch.randn(3, 4)
    with plan.load() as session:
        assert torch.equal(session(x=x)["y"], x[:, :2])


def test_an_opaque_stage_declares_everything():
    class Silent(Opaque):
        outputs = ()

    pipeline = chain(Silent(), takes=spec("n", 4, pad=0))
    refuses(PlanError, "declare its outputs", lambda: pipeline.plan(sizes={"n": 2}))


def test_a_module_that_refuses_a_second_size_is_declared_by_its_author():
    def fixed(x):
        return x.reshape(3, 2, 4).sum(1)

    takes = spec("n", 4)
    error = refuses(
        PlanError,
        ("'n'", "trying a second size", "outputs={'output': TensorSpec(...)}"),
        outputs(fixed, None, takes, sizes={"n": 6}),
    )
    assert (error.stage, error.dim) == ("s", "n")
    plan = outputs(fixed, {"output": spec(3, 4)}, takes, sizes={"n": 6})()
    assert plan.calls[0].outputs == (("output", spec(3, 4)),)
    x = torch.randn(6, 4)
    assert torch.equal(plan.load()(x=x)["y"], fixed(x))


def test_several_buckets_need_no_second_size():
    def only(x):
        assert x.shape[0] in (2, 6)
        return x * 2

    plan = outputs(only, None, spec("n", 4, pad=0), sizes={"n": (2, 6)})()
    assert plan.edges[-1].spec == spec("n", 4)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (lambda x: torch.cat([x, x]), "2*n"),
        (lambda x: torch.cat([x, x[:1]]), "n+1"),
        (lambda x: x[1:], "n-1"),
        (lambda x: x[::2], "(n+1)//2"),
        (lambda x: x.reshape(-1), "4*n"),
        (lambda x: torch.zeros(7), "7"),
        (lambda x: x.sum(1), "n"),
    ],
)
def test_how_a_name_passes_through_is_found_by_trying(target, text):
    pipeline = new()
    x = pipeline.input("x", spec("n", 4))
    pipeline.output("y", pipeline.add("s", lambda v: v.sum())(pipeline.add("t", target)(x)))
    for sizes in ((3, 4, 8), 8)[: 1 if "//" in text else 2]:  # two points do not tell all roundings apart
        plan = pipeline.plan(sizes={"n": sizes})
        assert str(plan.calls[0].outputs[0][1].dims[0]) == text


def test_equal_numbers_are_not_mistaken_for_names():
    plan = outputs(linear(4, 4), None, spec("n", 4), sizes={"n": 4})()
    assert plan.edges[-1].spec.dims == ("n", 4)


def test_two_names_of_one_size_are_told_apart():
    plan = outputs(lambda x: x.transpose(0, 1), None, spec("a", "b"), sizes={"a": 4, "b": 4})()
    assert plan.edges[-1].spec.dims == ("b", "a")


def test_a_product_of_names_is_found():
    pipeline = new()
    flat = pipeline.add("flat", lambda x: x.reshape(-1))(pipeline.input("x", spec("a", "b", 3)))
    pipeline.output("y", pipeline.add("sum", lambda x: x.sum())(flat))
    assert str(pipeline.plan(sizes={"a": 4, "b": 5}).calls[0].outputs[0][1]) == "[3*a*b] float32"


def test_a_dim_of_any_size_runs_through_a_convolution():
    conv = nn.Conv2d(3, 4, 3, stride=2).eval()
    pipeline = chain(
        conv, Double(), takes=spec(Dim("n", batch=True), 3, Dim.dynamic("h"), Dim.dynamic("w"), pad=0)
    )
    plan = pipeline.plan(sizes={"n": (1, 2)})
    with plan.load() as session:
        for n, h, w in ((1, 37, 50), (2, 64, 64), (3, 9, 200)):
            x = torch.randn(n, 3, h, w)
            assert torch.allclose(session(x=x)["y"], conv(x) * 2, atol=1e-5)
        assert session.stats["requests"] == 3


def test_a_port_may_name_a_dim_that_nobody_decides():
    """A fixed value goes into the bucket that holds it; no request has to say a size."""
    module = linear(4, 3)
    for size, bucket in ((2, 2), (3, 4)):
        pipeline = new()
        stage = pipeline.add("s", module, inputs={"input": spec(Dim("n", (2, 4)), 4, pad=0)})
        pipeline.output("y", stage(pipeline.input("x", spec(size, 4))))
        x = torch.randn(size, 4)
        with pipeline.plan().load() as session:
            result = session(x=x)["y"]
            assert result.shape == (bucket, 3)
            assert torch.equal(result[:size], module(x))
            assert session.stats["requests"] == 1


def test_an_optional_port_that_names_a_dim_may_stay_unfed():
    pipeline = new()
    stage = pipeline.add("s", lambda x, mask=None: x + 1, inputs={"x": None, "mask": spec(Dim("k", (2, 4)))})
    pipeline.output("y", stage(pipeline.input("x", spec(2))))
    with pipeline.plan().load() as session:
        assert session(x=torch.zeros(2))["y"].tolist() == [1.0, 1.0]


class Masked(torch.nn.Module):
    """Looks at its mask, unless it is being captured, as many models of the Transformers library do."""

    def __init__(self, honest: bool = True) -> None:
        super().__init__()
        self.honest = honest

    def forward(self, x, mask):
        if not torch.compiler.is_compiling() and bool(mask.all()):
            return x if self.honest else x[:1]
        return x * mask


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
def test_a_module_that_looks_at_a_mask_unless_it_is_captured(device):
    plugins = make_plugins()
    plugins.register(orchestrator_neuron)
    pipeline = Pipeline("p", plugins=plugins)
    x, mask = (pipeline.input(name, spec("b", 4, pad=0)) for name in ("x", "mask"))
    pipeline.output("y", pipeline.add("masked", Masked())(x, mask))
    plan = pipeline.plan(device, sizes={"b": (2, 4)})
    assert plan.call("masked").outputs == (("output", TensorSpec(("b", 4))),)
    with plan.load() as session:
        for mask in (torch.ones(3, 4), torch.tensor([[1.0, 0, 1, 0]] * 3)):
            given = torch.randn(3, 4)
            torch.testing.assert_close(session(x=given, mask=mask)["y"], given * mask)
    assert not torch.compiler.is_compiling()


def test_what_was_seen_of_a_captured_module_is_checked_at_each_call():
    pipeline = new()
    x, mask = (pipeline.input(name, spec(2, 4)) for name in ("x", "mask"))
    pipeline.output("y", pipeline.add("masked", Masked(honest=False))(x, mask))
    with pipeline.plan("cpu").load() as session:
        assert session(x=torch.ones(2, 4), mask=torch.zeros(2, 4))["y"].sum() == 0
        with pytest.raises(StageError, match=r"'masked.output' is \[2, 4\].*gave \[1, 4\]"):
            session(x=torch.ones(2, 4), mask=torch.ones(2, 4))

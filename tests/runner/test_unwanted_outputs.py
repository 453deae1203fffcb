"""Kinds K17 and K18: what a stage gives besides its outputs stays aside, and dicts may have any keys."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

import orchestrator_neuron
from orchestrator import Pipeline, PlanError
from orchestrator.testing.pytest_plugin import make_plugins
from tests.kit import COMPUTE, new, refuses, spec

X = torch.rand(2, 4)
DEVICES = [("cpu", None), ("neuron-emulated", {"tp_degree": 1})]


def pipeline_of(stage, names, outputs=None):
    plugins = make_plugins()
    plugins.register(orchestrator_neuron)
    pipeline = Pipeline("p", plugins=plugins)
    values = pipeline.add("s", stage, outputs=outputs)(pipeline.input("x", spec(2, 4)))
    single = len(outputs or names) == 1
    values = values if isinstance(values, tuple) else (values,)
    for position, name in enumerate(names):
        pipeline.output(
            f"o{name}", values[position] if outputs else values[0][name] if not single else values[0]
        )
    return pipeline


def results(stage, names, outputs=None, device="cpu", options=None):
    with pipeline_of(stage, names, outputs).plan(device=device, options=options).load() as session:
        results = session(x=X)
    return [results[f"o{name}"] for name in names]


def encoder(x):
    return OrderedDict(last_hidden_state=x + 1, hidden_states=(x, x + 1), cache=object(), nothing=None)


def decoder(x):
    return x + 1, [x], None, x * 2


@pytest.mark.parametrize(("device", "options"), DEVICES)
def test_named_outputs_are_taken_and_the_rest_is_ignored(device, options):
    (state,) = results(encoder, ["last_hidden_state"], ("last_hidden_state",), device, options)
    assert torch.allclose(state, X + 1)
    first, second = results(decoder, ["a", "b"], ("a", "b"), device, options)
    assert torch.allclose(first, X + 1)
    assert torch.allclose(second, X * 2)


@pytest.mark.parametrize(("device", "options"), DEVICES)
def test_keys_that_are_no_strings_name_ports(device, options):
    def pyramid(x):
        return {0: x + 1, 1: x * 2}

    low, high = results(pyramid, ["0", "1"], None, device, options)
    assert torch.allclose(low, X + 1)
    assert torch.allclose(high, X * 2)


@pytest.mark.parametrize(
    ("stage", "outputs", "words"),
    [
        (
            encoder,
            None,
            ("'hidden_states' is a tuple", "'cache' is a object", "outputs=('last_hidden_state',)"),
        ),
        (encoder, ("cache",), ("'cache' is a object", "outputs=")),
        (decoder, None, ("'1' is a list", "'2' is a NoneType", "outputs=('a', 'b')")),
        (decoder, ("a",), ("'1' is a list", "outputs=('a', 'b')")),
        (lambda x: {1: x, "1": x}, None, ("two keys that read '1'",)),
        (lambda x: (3, None), None, ("gives no tensor",)),
    ],
)
def test_what_is_no_tensor_is_named_with_the_way_out(stage, outputs, words):
    pipeline = new()
    values = pipeline.add("s", stage, outputs=outputs)(pipeline.input("x", spec(2, 4)))
    pipeline.output("y", values[0] if isinstance(values, tuple) else values)
    assert refuses(PlanError, ("Stage 's'", *words), pipeline.plan).stage == "s"


@pytest.mark.parametrize("device", ["host", "null:0"])
def test_declared_outputs_are_found_under_keys_that_are_no_strings(device):
    """Kind K18, where outputs are declared: on the host, and on a device that nobody looks into."""
    pipeline = new()
    outputs = {"0": spec(2, 4), "None": spec(2, 4)} if device == "host" else ("0", "None")
    values = pipeline.add("s", lambda x: {0: x + 1, None: x * 2, 2: x}, outputs=outputs, device=device)(
        pipeline.input("x", spec(2, 4))
    )
    pipeline.output("low", values[0])
    pipeline.output("high", values[1])
    with pipeline.plan(options=COMPUTE if device != "host" else {}).load() as session:
        results = session(x=X)
    assert torch.equal(results["low"], X + 1)
    assert torch.equal(results["high"], X * 2)

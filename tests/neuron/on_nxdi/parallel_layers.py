"""Stages of NxD's own parallel layers: planned, compiled at the plan's degree, and whole on the host."""

from __future__ import annotations

import tempfile

import pytest
import torch
from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.parallel_layers.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
)
from torch import nn

from on_nxdi.adopted import width_config
from on_nxdi.kit import RANKS, close, floats
from orchestrator import CompileError, Pipeline, PlanError
from orchestrator_neuron import from_nxdi
from orchestrator_neuron.nxdi.ranks import ranks_of_degree

OPTIONS = {"tp_degree": RANKS}


class Gathered(nn.Module):
    """All layers, joined inside; it has as many heads as NxDI's attention gives a rank."""

    def __init__(self, _config):
        super().__init__()
        self.table = ParallelEmbedding(6, 8, shard_across_embedding=True, dtype=torch.float32)
        self.up = ColumnParallelLinear(8, 16, gather_output=False, dtype=torch.float32)
        self.heads = 4 // parallel_state.get_tensor_model_parallel_size()
        self.down = RowParallelLinear(16, 8, input_is_parallel=True, dtype=torch.float32)

    def forward(self, x):
        x = x + self.table(torch.tensor([1, 4]))
        return self.down(torch.relu(self.up(x)).view(2, self.heads, 4).flatten(1))


def wrapped(kind, degree=RANKS):
    """A wrapper as NxD Inference wants it; its examples are of the shapes on one rank."""
    from neuronx_distributed_inference.models.model_wrapper import EncoderModelInstance, ModelWrapper

    class Wrapper(ModelWrapper):
        def input_generator(self):
            return [(torch.ones(2, 8),)]

        def get_model_instance(self):
            return EncoderModelInstance(self.model_cls, self.config)

    return Wrapper(config=width_config(tp_degree=degree), model_cls=kind, tag=kind.__name__)


def whole(kind):
    """The model of one rank that has it all."""
    with ranks_of_degree(1, 1):
        return kind(None).eval()


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def run(device, *stages, **inputs):
    """Runs stages, each with its checkpoint, one after the other."""
    pipeline = Pipeline("chain")
    value = pipeline.input("x", floats(2, 8))
    for number, (wrapper, weights) in enumerate(stages):
        value = pipeline.add(f"s{number}", from_nxdi(wrapper, checkpoint=weights))(value)
    pipeline.output("y", value)
    plan = pipeline.plan(device, options=OPTIONS)
    with plan.compile(tempfile.mkdtemp()).load() as session:
        return plan, session(**inputs)["y"]


def check_parallel_layers_are_planned_and_run():
    model, x = whole(Gathered), torch.randn(2, 8)
    for device in ("nxdi", "neuron-emulated"):
        plan, y = run(device, (wrapped(Gathered), state(model)), x=x)
        close(y, model(x))
        assert plan.summary["downloads"] == 1
    assert not torch.distributed.is_initialized()
    assert not parallel_state.model_parallel_is_initialized()


def check_host_model_and_a_state_of_the_process_spoil_no_compile():
    model, x = whole(Gathered), torch.randn(2, 8)
    wrapper = wrapped(Gathered)
    assert from_nxdi(wrapper).model.heads == 4
    parallel_state.set_tensor_model_parallel_size(1)
    try:
        close(run("nxdi", (wrapper, state(model)), x=x)[1], model(x))
        assert parallel_state.get_tensor_model_parallel_size() == 1
    finally:
        parallel_state.destroy_model_parallel()


def check_own_instance_builds_the_model():
    from neuronx_distributed.trace.model_builder import BaseModelInstance

    class OfWidth(nn.Linear):
        def __init__(self, width):
            super().__init__(width + 0, 4)

    wrapper = wrapped(OfWidth)
    type(wrapper).get_model_instance = lambda self: BaseModelInstance(
        module_cls=lambda: self.model_cls(8).eval(), input_output_aliases={}
    )
    model, x = nn.Linear(8, 4), torch.randn(2, 8)
    close(run("nxdi", (wrapper, state(model)), x=x)[1], model(x))


class PartsOut(nn.Module):
    def __init__(self, _config):
        super().__init__()
        self.up = ColumnParallelLinear(8, 16, bias=False, gather_output=False, dtype=torch.float32)

    def forward(self, x):
        return torch.relu(self.up(x))


class PartsIn(nn.Module):
    def __init__(self, _config):
        super().__init__()
        self.down = RowParallelLinear(16, 8, bias=False, input_is_parallel=True, dtype=torch.float32)

    def forward(self, h):
        return self.down(h)


def check_parts_stay_on_their_ranks_between_parallel_stages():
    one, two, x = whole(PartsOut), whole(PartsIn), torch.randn(2, 8)
    stages = [(wrapped(PartsOut), state(one)), (wrapped(PartsIn), state(two))]
    for device in ("nxdi", "neuron-emulated", "cpu"):
        plan, y = run(device, *stages, x=x)
        close(y, two(one(x)))
        assert plan.summary["downloads"] == (device != "cpu")
    # Read by a host, the parts of all ranks are joined.
    plan, y = run("nxdi", stages[0], x=x)
    close(y, one(x))
    assert plan.summary["downloads"] == RANKS


def check_memory_counts_a_ranks_share():
    for device, share in (("nxdi", RANKS), ("neuron-emulated", 1)):
        plan, _ = run(device, (wrapped(PartsOut), state(whole(PartsOut))), x=torch.ones(2, 8))
        assert dict(plan.weights) == {device: 8 * 16 * 4 // share}


def check_parts_that_no_stage_gives_are_refused():
    weights = state(whole(PartsIn))
    pipeline = Pipeline("alone")
    down = pipeline.add("down", from_nxdi(wrapped(PartsIn), checkpoint=weights))
    pipeline.output("y", down(pipeline.input("h", floats(2, 16))))
    with pytest.raises(
        PlanError, match=r"'down\.h' takes on each rank a part .* dim 1, but 'h' gives \[2, 16\]"
    ):
        pipeline.plan("nxdi", options=OPTIONS)


def check_a_degree_that_does_not_divide():
    pipeline = Pipeline("odd")
    up = pipeline.add("up", from_nxdi(wrapped(PartsOut, degree=3)))
    pipeline.output("y", up(pipeline.input("x", floats(2, 8))))
    with pytest.raises(
        PlanError, match=r"'up' cannot be built for 3 ranks.*16 is not divisible by 3.*tp_degree"
    ):
        pipeline.plan("nxdi", options={"tp_degree": 3, "world_size": 3})


def check_where_weights_come_from_is_said():
    x = torch.ones(2, 8)
    for checkpoint, text in (
        (None, "drawn at random, others each time that it is loaded, since"),
        ("random", "drawn at random, others each time that it is loaded."),
        ("some/folder", "the checkpoint 'some/folder'."),
        (state(whole(Gathered)), "a state_dict."),
    ):
        pipeline = Pipeline("source")
        stage = pipeline.add("m", from_nxdi(wrapped(Gathered), checkpoint=checkpoint))
        pipeline.output("y", stage(pipeline.input("x", floats(2, 8))))
        for device in ("nxdi", "neuron-emulated"):
            notes = " ".join(pipeline.plan(device, options=OPTIONS).notes)
            assert f"Weights of 'm': {text}" in notes
    # A device that knows no checkpoint says it, too, when the model is made.
    with pytest.warns(UserWarning, match="drawn at random"):
        run("cpu", (wrapped(Gathered), None), x=x)
    with pytest.raises(CompileError, match=r"'missing\.safetensors', does not exist"):
        run("nxdi", (wrapped(Gathered), "missing.safetensors"), x=x)

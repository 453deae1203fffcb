"""Stages of NxD's own parallel layers: planned, compiled at the plan's degree, and whole on the host."""

from __future__ import annotations

import tempfile

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
from orchestrator import Pipeline
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


def wrapped(kind, width=8):
    """A wrapper as NxD Inference wants it; its examples are of the shapes on one rank."""
    from neuronx_distributed_inference.models.model_wrapper import EncoderModelInstance, ModelWrapper

    class Wrapper(ModelWrapper):
        def input_generator(self):
            return [(torch.ones(2, width),)]

        def get_model_instance(self):
            return EncoderModelInstance(self.model_cls, self.config)

    return Wrapper(config=width_config(), model_cls=kind, tag=kind.__name__)


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
        value = pipeline.add(f"s{number}", from_nxdi(wrapper), config={"checkpoint": weights})(value)
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

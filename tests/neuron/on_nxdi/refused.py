"""What is refused, and what is said about it: the failures that NxD Inference shows late or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from on_nxdi.adopted import (
    ScaledLinear,
    guide,
    guide_applications,
    guide_config,
    guide_pipeline,
    own_wrapper,
    width_config,
)
from on_nxdi.kit import RANKS, application, backend, close, floats, load_programs, program, stage
from orchestrator import Pipeline, TensorSpec
from orchestrator.errors import CompileError, GraphError, PlanError
from orchestrator_neuron import from_nxdi
from orchestrator_neuron.nxdi.backend import NxdiBackend


def check_equal_input_shapes_in_one_application():
    device = backend()
    net = stage("net", nn.Linear(4, 4))
    ports = ({"input": floats(2, 4)}, {"output": floats(2, 4)})
    with pytest.raises(
        CompileError, match=r"'net' of .* and .* 'twice' of .* take inputs of the same shapes"
    ):
        device.build(
            application(net, program("net", *ports), program("twice", *ports)), Path(tempfile.mkdtemp())
        )


def check_one_shape_for_two_sizes_is_compiled_once():
    from orchestrator_neuron.versions import versions_of

    one = program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)}, sizes=({"n": 1}, {"n": 2}))
    assert versions_of(one) == ({"n": 1},)


def check_position_arguments_that_became_flags():
    from neuronx_distributed_inference.models.model_wrapper import ModelWrapper

    def make(sixth):
        return ModelWrapper(width_config(), ScaledLinear, "tag", None, None, sixth)

    with pytest.warns(UserWarning, match="sixth parameter"):
        user_stage = from_nxdi(make({"factor": 3.0}))
    assert user_stage.model.factor == 3.0
    with pytest.raises(GraphError, match="pipeline_execution is 'yes', not a bool"):
        from_nxdi(make("yes"))


def check_modes_without_ranked_values():
    for mode in ("async_mode", "on_cpu"):
        with pytest.raises(GraphError, match=mode):
            from_nxdi(own_wrapper(width_config(**{mode: True})))
    device, net = backend(), stage("net", nn.Linear(4, 4))
    one = program("net", {"input": floats(2, 4)}, {"output": floats(2, 4)})
    os.environ["NXD_CPU_MODE"] = "1"
    try:
        with pytest.raises(CompileError, match="NXD_CPU_MODE"):
            backend()
        with pytest.raises(CompileError, match="NXD_CPU_MODE"):
            device.build(application(net, one), Path(tempfile.mkdtemp()))
    finally:
        del os.environ["NXD_CPU_MODE"]


def check_default_bfloat16_against_float32_examples():
    from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig

    config = InferenceConfig(NeuronConfig(tp_degree=RANKS), width=4)
    with pytest.raises(GraphError, match=r"states no torch_dtype.*torch\.bfloat16.*torch\.float32"):
        from_nxdi(own_wrapper(config))


def check_examples_that_are_no_tensors():
    wrapper = own_wrapper(width_config())
    kind = type(wrapper)
    for row, text in ([(None,), "is None"], [(3,), "is 3"], [torch.ones(2, 4), "a tuple of tensors"]):
        kind.input_generator = lambda self, row=row: [row]
        with pytest.raises(GraphError, match=text):
            from_nxdi(wrapper)


def check_things_that_are_no_wrappers():
    classes = guide()
    for thing in (nn.Linear(2, 2), "vision", classes.VisionModel):
        with pytest.raises(GraphError, match="from_nxdi takes"):
            from_nxdi(thing)
    with pytest.raises(GraphError, match="needs the InferenceConfig"):
        from_nxdi(classes.VisionModelWrapper)


def check_application_with_several_submodels():
    classes = guide()
    _, (theirs, _) = guide_applications(classes, guide_config(classes))
    theirs.models.append(theirs.models[0])
    with pytest.raises(GraphError, match="submodels of one tag"):
        from_nxdi(theirs)
    theirs.models.clear()
    with pytest.raises(GraphError, match="has no submodel"):
        from_nxdi(theirs)


def check_state_on_the_device():
    from neuronx_distributed_inference.models.model_wrapper import EncoderModelInstance

    class Stateful(EncoderModelInstance):
        def get(self, bucket_rank, **kwargs):
            return self.module, {next(self.module.parameters()): 1}

    wrapper = own_wrapper(width_config())
    type(wrapper).get_model_instance = lambda self: Stateful(self.model_cls, self.config)
    one = program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)})
    with pytest.raises(CompileError, match="keeps state on the device"):
        backend().build(application(stage("net", from_nxdi(wrapper)), one), Path(tempfile.mkdtemp()))


def check_state_in_attributes():
    class Counts(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind, self.inner = kind, nn.Module()
            self.inner.register_buffer("total", torch.zeros(4))
            self.inner.runs = 0

        def forward(self, x):
            if self.kind == "runs":
                self.inner.runs += 1
            elif self.kind == "total":
                self.inner.total = self.inner.total + x[0]
            return x + self.inner.total

    one = program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)})
    for kind in ("runs", "total"):
        with pytest.raises(CompileError, match=rf"'net' .*each run changes 'inner\.{kind}'.*keeps no state"):
            backend().build(application(stage("net", Counts(kind)), one), Path(tempfile.mkdtemp()))


def _plan(user_stage, width=4, batch=2, **options):
    pipeline = Pipeline("one")
    x = pipeline.input("x", TensorSpec((batch, width)))
    pipeline.output("y", pipeline.add("net", user_stage)(x))
    return pipeline.plan(device="nxdi", options={"tp_degree": RANKS, **options})


def check_config_against_plan():
    with pytest.raises(PlanError, match=r"world_size=4, but the plan has 2"):
        _plan(from_nxdi(own_wrapper(width_config(world_size=4))))
    with pytest.raises(PlanError, match="local_ranks_size=1"):
        _plan(from_nxdi(own_wrapper(width_config(local_ranks_size=1))))
    with pytest.raises(PlanError, match=r"logical_nc_config=1, but the plan has 2"):
        _plan(from_nxdi(own_wrapper(width_config(logical_nc_config=1))))
    with pytest.raises(PlanError, match="does not divide the world size"):
        _plan(from_nxdi(own_wrapper(width_config(tp_degree=4, world_size=2))))
    for degree in ("pp_degree", "ep_degree"):
        with pytest.raises(PlanError, match=rf"{degree}=2.* takes a multiple of 4 ranks, but the plan has 2"):
            _plan(from_nxdi(own_wrapper(width_config(world_size=2, **{degree: 2}))))


def check_edge_that_does_not_fit_the_example():
    with pytest.raises(PlanError, match=r"\[2, 5\].*\[2, 4\]"):
        _plan(from_nxdi(own_wrapper(width_config())), width=5)


def check_application_fed_other_shapes():
    classes = guide()
    _, (theirs, text) = guide_applications(classes, guide_config(classes))
    stages = [from_nxdi(item, inputs=names) for item, names in ((theirs, None), (text, None))]
    with pytest.raises(PlanError, match=r"\[3, 3, 224, 224\]"):
        guide_pipeline(*stages, batch=3).plan(device="nxdi", options={"tp_degree": RANKS})


def check_versions_that_are_not_known():
    import neuronx_distributed_inference

    from orchestrator_neuron.nxdi import packages

    before = neuronx_distributed_inference.__version__
    neuronx_distributed_inference.__version__ = "0.7.1"
    try:
        with pytest.warns(UserWarning, match=r"neuronx-distributed-inference is 0\.7\.1"):
            backend()
    finally:
        neuronx_distributed_inference.__version__ = before
    assert packages.versions()["neuronx-distributed-inference"] == before
    assert not any("neuronx-distributed" in note for note in packages.notes())


def check_stage_that_cannot_be_captured():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    one = program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)})
    with pytest.raises(CompileError, match="'net' cannot be compiled by NxD Inference"):
        backend().build(application(stage("net", Branches()), one), Path(tempfile.mkdtemp()))


def check_two_world_sizes_in_one_process():
    device = backend(tp_degree=2 * RANKS)
    net = stage("net", nn.Linear(4, 4))
    one = program("net", {"input": floats(2, 4)}, {"output": floats(2, 4)})
    with pytest.raises(CompileError, match=rf"loaded stages for {RANKS} ranks.*crashes"):
        device.load_application(application(net, one), Path(tempfile.mkdtemp()))


def check_parts_that_pass_for_the_whole():
    """Said to be gathered, and not: ranks differ when the stage is loaded, also where one of them alone is read."""
    device = backend()
    cut = {"checkpoint": {"weight": torch.randn(4, 4)}, "shard_weights": {"weight": 0}, "sharded": {}}
    net = stage("net", nn.Linear(4, 2, bias=False), config=cut)
    for to_host in (False, True):
        one = program("net", {"input": floats(2, 4)}, {"output": floats(2, 2)}, to_host=to_host)
        with pytest.raises(
            CompileError, match=r"'output' .*'net', \[2, 2\], differs between rank 0 and rank 1"
        ):
            load_programs(device, application(net, one))


def check_a_process_runs_a_share_of_the_ranks():
    """The second of two processes: its ranks get their parts of the weights, and rows are as many as they are."""
    whole = torch.randn(4 * RANKS, 4)
    cut = {"checkpoint": {"weight": whole}, "shard_weights": {"weight": 0}, "sharded": {}}
    net = stage("net", nn.Linear(4, 2, bias=False), config=cut)
    one = program("net", {"input": floats(2, 4)}, {"output": floats(2, 2)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NxdiBackend, "_loaded_world", None)
        patch.setattr("orchestrator_neuron.nxdi.backend.check_ranks", lambda *_: None)
        device = backend(tp_degree=2 * RANKS, local_ranks_size=RANKS, start_rank_id=RANKS)
        calls = load_programs(device, application(net, one))
        x = torch.randn(2, 4)
        close(device.gather(calls["net"](device.upload(x))[0], 1), x @ whole[2 * RANKS :].T)


def check_a_forward_that_computes_on_the_host_is_told_at_load():
    wrapper = own_wrapper(width_config())
    type(wrapper).forward = lambda self, x: self._forward(x.unsqueeze(0))
    net = stage("net", from_nxdi(wrapper))
    one = program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)})
    with pytest.raises(
        CompileError, match=r"'net' cannot be run by NxD Inference: AttributeError: .*'unsqueeze'"
    ):
        load_programs(backend(), application(net, one))

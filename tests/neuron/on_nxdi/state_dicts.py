"""Weights on the way to the device: awkward names, ties, dtypes, checkpoints, parts for each rank."""

from __future__ import annotations

import gc
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from on_nxdi.adopted import width_config
from on_nxdi.kit import RANKS, application, backend, close, floats, load_programs, program, stage
from orchestrator import Pipeline, TensorSpec
from orchestrator.errors import CompileError
from orchestrator.program import ProgramInput
from orchestrator_neuron import from_nxdi


class Awkward(nn.Module):
    """Names that NxD Inference would strip or rename, a tied weight, buffers that are saved and that are not."""

    def __init__(self):
        super().__init__()
        self.model = nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"model": nn.Linear(4, 4)})
        self.weight_scale = nn.Parameter(torch.full((4,), 3.0))
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.model.weight
        self.register_buffer("shift", torch.arange(4.0))
        self.register_buffer("factor", torch.tensor(2.0), persistent=False)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))

    def forward(self, x):
        x = self.head(self.inner["model"](self.model(x))) * self.weight_scale + self.shift
        return x[:, self.order] * self.factor


def _run(target, x, config=None, dtype=torch.float32, options=None):
    device = backend(**(options or {}))
    item = stage("net", target, config=config)
    takes, gives = TensorSpec(tuple(x.shape), dtype), TensorSpec((x.shape[0], 4), dtype)
    name = item.inputs[0].name
    calls = load_programs(device, application(item, program("net", {name: takes}, {"output": gives})))
    return device.download(calls["net"](device.upload(x.to(dtype)))[0])


def check_awkward_names_keep_their_weights():
    net, x = Awkward(), torch.randn(2, 4)
    close(_run(net, x), net(x))


def check_buckets_and_programs_share_weights():
    device = backend()
    net = stage("net", Awkward())
    one = program("net", {"x": floats("n", 4)}, {"output": floats("n", 4)}, sizes=({"n": 1}, {"n": 3}))
    two = program(
        "net~2", {"x": floats("n", 4)}, {"output": floats("n", 4)}, sizes=({"n": 1}, {"n": 3}), route=1
    )
    calls = load_programs(device, application(net, one, two))
    for call in calls.values():
        for size in (1, 3):
            x = torch.randn(size, 4)
            close(device.download(call(device.upload(x))[0]), net.module()(x))


def check_checkpoint_of_that_name():
    net, x = Awkward(), torch.randn(2, 4)
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    weights = {name: tensor.clone() + 1 for name, tensor in net.state_dict().items() if name != "head.weight"}
    weights["order"] -= 1
    save_file(weights, path)
    twin = Awkward()
    twin.load_state_dict({**weights, "head.weight": weights["model.weight"]})
    close(_run(net, x, config={"checkpoint": str(path)}), twin(x))


def check_bfloat16():
    net, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(2, 8)
    result = _run(net, x, dtype=torch.bfloat16, options={"torch_dtype": torch.bfloat16})
    assert result.dtype is torch.bfloat16
    close(result.float(), net(x), tolerance=0.05)


def check_int64_is_converted_in_the_program():
    device = backend()
    net = stage("embed", nn.Embedding(10, 4))
    spec = TensorSpec((2, 3), torch.int32)
    one = program("embed", {"input": spec}, {"output": floats(2, 3, 4)})
    takes = (ProgramInput("input", spec, (), torch.int64),)
    calls = load_programs(device, application(net, replace(one, inputs=takes)))
    ids = torch.randint(0, 10, (2, 3))
    close(device.download(calls["embed"](device.upload(ids.to(torch.int32)))[0]), net.module()(ids))


def check_each_rank_holds_its_part():
    whole = nn.Linear(4, 4 * RANKS)
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    save_file(whole.state_dict(), path)
    cut = {"checkpoint": str(path), "sharded": {"output": 1}, "shard_weights": {"weight": 0, "bias": 0}}
    device = backend()
    part = stage("part", nn.Linear(4, 4), config=cut)
    calls = load_programs(
        device, application(part, program("part", {"input": floats(2, 4)}, {"output": floats(2, 4)}))
    )
    x = torch.randn(2, 4)
    close(device.gather(calls["part"](device.upload(x))[0], 1), whole(x))


def check_checkpoint_that_does_not_fit_is_told_before_loading():
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    save_file({"weight": torch.zeros(3, 4), "other": torch.zeros(1)}, path)
    with pytest.raises(CompileError) as excinfo:
        _run(nn.Linear(4, 4), torch.randn(2, 4), config={"checkpoint": str(path)})
    for word in ("missing", "'bias'", "unexpected", "'other'", "shape", "'weight'"):
        assert word in str(excinfo.value)


class Tied(nn.Module):
    """Two layers with one weight, of which a checkpoint holds one name."""

    def __init__(self, config):
        super().__init__()
        self.shared = nn.Linear(config.width, config.width, bias=False)
        self.again = nn.Linear(config.width, config.width, bias=False)
        self.again.weight = self.shared.weight

    def forward(self, x):
        return self.again(self.shared(x))


def check_tied_weights_of_an_application_off_the_device():
    from neuronx_distributed_inference.models.application_base import NeuronApplicationBase
    from neuronx_distributed_inference.models.model_wrapper import EncoderModelInstance, ModelWrapper

    class TiedWrapper(ModelWrapper):
        def input_generator(self):
            return [(torch.ones(2, 4),)]

        def get_model_instance(self):
            return EncoderModelInstance(self.model_cls, self.config)

    for name in ("shared.weight", "again.weight"):

        class TiedApplication(NeuronApplicationBase):
            def __init__(self, *args):
                super().__init__(*args)
                self.models.append(TiedWrapper(config=self.config, model_cls=Tied, tag="m"))

            def forward(self, x):
                return self.models[0].forward(x)

            @classmethod
            def get_state_dict(cls, _path, _config, name=name):
                return {name: torch.eye(4) * 2}

        pipeline = Pipeline("tied")
        tied = pipeline.add("m", from_nxdi(TiedApplication(tempfile.mkdtemp(), width_config())))
        pipeline.output("y", tied(pipeline.input("x", floats(2, 4))))
        with pipeline.plan("neuron-emulated", options={"tp_degree": RANKS}).load() as session:
            assert torch.equal(session(x=torch.ones(2, 4))["y"], torch.full((2, 4), 4.0))


def check_host_keeps_no_weights_after_loading():
    device = backend()
    net = nn.Linear(4, 4)
    net.mark = CopyMark()
    references = CopyMark.copies
    item = application(stage("net", net), program("net", {"input": floats(2, 4)}, {"output": floats(2, 4)}))
    calls = load_programs(device, item)
    gc.collect()
    assert [reference() for reference in references if reference() not in (None, net.mark)] == []
    assert calls


class CopyMark:
    """Every copy of it is known."""

    copies: ClassVar[list] = []

    def __init__(self):
        self.copies.append(weakref.ref(self))

    def __deepcopy__(self, memo):
        return CopyMark()

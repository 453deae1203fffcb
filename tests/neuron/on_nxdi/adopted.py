"""Stages written for NxD Inference: the founding guide's own classes, and a wrapper that overrides everything."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from neuronx_distributed.parallel_layers import layers, parallel_state
from safetensors.torch import save_file
from torch import nn

from on_nxdi.kit import (
    RANKS,
    application,
    backend,
    close,
    count_traffic,
    floats,
    load_programs,
    program,
    stage,
)
from orchestrator import CompileError, Pipeline, TensorSpec
from orchestrator.adapter import Adapter
from orchestrator.program import ProgramInput
from orchestrator_neuron import from_nxdi
from orchestrator_neuron.ranked import is_ranked


def guide():
    """The classes of the guide, from its text, to the letter."""
    default = Path(os.environ["ORCHESTRATOR_NXDI_HARNESS"]).parent / "guide-fpem.rst"
    text = Path(os.environ.get("ORCHESTRATOR_NXDI_GUIDE", default)).read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", text)
    names: dict = {}
    for block in blocks:
        if "class " in block:
            exec(textwrap.dedent(block), names)
    return SimpleNamespace(**names)


def guide_config(classes, batch=4, ranks=RANKS):
    return classes.InferenceConfig(
        classes.NeuronConfig(batch_size=batch, torch_dtype=torch.float32, tp_degree=ranks),
        vision_embedding_size=512,
        text_input_size=256,
        text_embedding_size=512,
        output_size=1024,
    )


def guide_pipeline(vision, text, batch=4):
    pipeline = Pipeline("guide")
    image = pipeline.input("image", TensorSpec((batch, 3, 224, 224)))
    words = pipeline.input("text", TensorSpec((batch, 256)))
    features = pipeline.add("vision", vision)(image)
    pipeline.output("logits", pipeline.add("fusion", text)(features, words))
    return pipeline


def guide_applications(classes, config):
    """The applications of the guide, each with a checkpoint, and their models on the host."""
    models, applications = [], []
    for kind, own in (
        (classes.VisionModel, classes.VisionModelApp),
        (classes.TextModel, classes.TextModelApp),
    ):
        folder = tempfile.mkdtemp()
        models.append(kind(config).eval())
        save_file(models[-1].state_dict(), f"{folder}/model.safetensors")
        applications.append(own(folder, config))
    return models, applications


def check_ports_and_shapes_come_from_the_wrapper():
    classes = guide()
    user_stage = from_nxdi(classes.TextModelWrapper, config=guide_config(classes))
    assert user_stage.inputs == {"vision_features": floats(4, 512), "text_input": floats(4, 256)}
    assert user_stage.neuron_options == {"tp_degree": RANKS}


def _run_by_hand(vision, text, device):
    one = program("vision", {"x": floats(4, 3, 224, 224)}, {"output": floats(4, 512)})
    takes = {"vision_features": floats(4, 512), "text_input": floats(4, 256)}
    two = program("fusion", takes, {"output": floats(4, 1024)}, to_host=True)
    calls = load_programs(
        device, application(stage("vision", vision), one), application(stage("fusion", text), two)
    )
    image, words = torch.randn(4, 3, 224, 224), torch.randn(4, 256)
    with count_traffic() as counts:
        (features,) = calls["vision"](device.upload(image))
        assert is_ranked(features)
        (logits,) = calls["fusion"](features, device.upload(words))
    close(logits, text.model(vision.model(image), words))
    assert (counts.up, counts.down, counts.down_bytes) == (2 * RANKS, 1, logits.nbytes)


def check_wrappers_of_the_guide_by_hand():
    classes = guide()
    config = guide_config(classes)
    kinds = (classes.VisionModelWrapper, classes.TextModelWrapper)
    _run_by_hand(*(from_nxdi(kind, config=config) for kind in kinds), backend())


def check_applications_of_the_guide_by_hand():
    classes = guide()
    models, applications = guide_applications(classes, guide_config(classes))
    vision, text = map(from_nxdi, applications)
    _run_by_hand(vision, text, backend())
    for user_stage, model in zip((vision, text), models, strict=True):
        close(
            user_stage.model.fc.weight if user_stage is vision else user_stage.model.fusion.weight,
            model.fc.weight if user_stage is vision else model.fusion.weight,
        )
    assert not backend().foldable(stage("vision", vision))


class ScaledLinear(nn.Module):
    def __init__(self, config, factor=1.0):
        super().__init__()
        self.linear = nn.Linear(config.width, config.width)
        self.factor = factor

    def forward(self, x):
        return self.linear(x) * self.factor


def own_wrapper(config, **more):
    """A wrapper that overrides all that NxD Inference lets one override; it counts its calls."""
    from neuronx_distributed_inference.models.model_wrapper import EncoderModelInstance, ModelWrapper

    # A class for each wrapper: what a check counts or replaces on it is no other check's.
    class OwnWrapper(ModelWrapper):
        calls = 0

        def input_generator(self):
            return [(torch.ones(2, self.config.width),)]

        def get_model_instance(self):
            return EncoderModelInstance(self.model_cls, self.config, **self.model_init_kwargs)

        def forward(self, *args):
            type(self).calls += 1
            return self._forward(*self.convert_int64_to_int32(*args))

    return OwnWrapper(
        config=config, model_cls=ScaledLinear, tag="a/b.c", model_init_kwargs={"factor": 3.0}, **more
    )


def width_config(**more):
    from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig

    options = {"batch_size": 2, "torch_dtype": torch.float32, "tp_degree": RANKS, **more}
    return InferenceConfig(NeuronConfig(**options), width=4)


def check_own_forward_and_instance_are_used():
    wrapper = own_wrapper(width_config())
    user_stage = from_nxdi(wrapper)
    device = backend()
    net = stage("net", user_stage)
    calls = load_programs(
        device, application(net, program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)}))
    )
    # Loading has run it, to compare its ranks.
    type(wrapper).calls = 0
    x = torch.randn(2, 4)
    close(device.download(calls["net"](device.upload(x))[0]), user_stage.model(x))
    assert user_stage.model.factor == 3.0
    assert type(wrapper).calls == 1
    # The user's object is as it was.
    assert (wrapper.tag, wrapper.model, wrapper.pipeline_execution) == ("a/b.c", None, False)


def check_folded_adapters_go_around_a_users_forward():
    from dataclasses import replace

    wrapper = own_wrapper(width_config())
    user_stage = from_nxdi(wrapper)
    device = backend()
    plain = program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)})
    with_pad = replace(plain, inputs=(ProgramInput("x", floats(1, 4), (Adapter("pad", (2, 4), rule=0),)),))
    calls = load_programs(device, application(stage("net", user_stage), with_pad))
    x = torch.randn(1, 4)
    result = device.download(calls["net"](device.upload(x))[0])
    close(result, user_stage.model(torch.cat([x, torch.zeros(1, 4)])))
    assert type(wrapper).calls == 0


class Parallel(nn.Module):
    """Has NxD's parallel layer on the device, and a plain one elsewhere, as models of NxD Inference do."""

    def __init__(self, config):
        super().__init__()
        if parallel_state.model_parallel_is_initialized():
            kind = layers.ColumnParallelLinear
            self.linear = kind(config.width, 8, bias=False, gather_output=False, dtype=torch.float32)
            # What it draws its part from; a real trace drops it, as it does all that no output needs.
            self.linear.__dict__.pop("master_weight", None)
            self.linear._parameters.pop("master_weight", None)
        else:
            self.linear = nn.Linear(config.width, 8, bias=False)

    def forward(self, x):
        return self.linear(x)


def check_parallel_layers_cut_their_weights():
    wrapper = own_wrapper(width_config())
    wrapper.model_cls, wrapper.model_init_kwargs = Parallel, {}
    user_stage = from_nxdi(wrapper)
    device = backend()
    x, one = torch.randn(2, 4), program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)})
    net = stage("net", user_stage)
    calls = load_programs(device, application(net, one))
    (parts,) = calls["net"](device.upload(x))
    assert parts.shape == (2, 8 // RANKS)
    close(device.gather(parts, device.sharded(net)["output"]), user_stage.model(x))
    # Without examples nothing says that it is a part, which would pass for the whole.
    del type(wrapper).input_generator
    one = program("net", {"x": floats(2, 4)}, {"output": floats(2, 8)})
    with pytest.raises(
        CompileError, match=r"'output' .* is \[2, 4\] on each rank, but .* for \[2, 8\].*'sharded'"
    ):
        load_programs(device, application(stage("net", from_nxdi(wrapper)), one))


def check_bfloat16_of_a_users_config_is_in_force():
    user_stage = from_nxdi(own_wrapper(width_config(torch_dtype=torch.bfloat16)), inputs=("x",))
    device = backend()
    net = stage("net", user_stage)
    assert device.held_dtype(net, torch.float32) is torch.bfloat16
    spec = TensorSpec((2, 4), torch.bfloat16)
    calls = load_programs(device, application(net, program("net", {"x": spec}, {"output": spec})))
    x = torch.randn(2, 4)
    value = device.download(calls["net"](device.upload(x.bfloat16()))[0])
    assert value.dtype is torch.bfloat16
    close(value.float(), user_stage.model(x), tolerance=0.05)


def check_key_is_that_of_the_content():
    keys = []
    for factor in (3.0, 3.0, 4.0):
        wrapper = own_wrapper(width_config())
        wrapper.model_init_kwargs = {"factor": factor}
        net = stage("net", from_nxdi(wrapper))
        one = program("net", {"x": floats(2, 4)}, {"output": floats(2, 4)})
        keys.append(backend().key(application(net, one)))
    assert keys[0] == keys[1] != keys[2]


def check_key_of_an_application_survives_its_loading():
    classes = guide()
    _, (theirs, _) = guide_applications(classes, guide_config(classes))
    device = backend()
    item = application(
        stage("vision", from_nxdi(theirs)),
        program("vision", {"x": floats(4, 3, 224, 224)}, {"output": floats(4, 512)}),
    )
    before = device.key(item)
    with contextlib.redirect_stdout(io.StringIO()):
        load_programs(device, item)
    assert device.key(item) == before


def check_a_model_class_that_is_a_function():
    """What it takes is read from the model that it builds."""
    wrapper = own_wrapper(width_config())
    wrapper.model_cls, wrapper.model_init_kwargs = lambda config: nn.Linear(config.width, 3), {}
    net = stage("net", from_nxdi(wrapper))
    assert [port.name for port in net.inputs] == ["input"]
    device = backend()
    calls = load_programs(
        device, application(net, program("net", {"input": floats(2, 4)}, {"output": floats(2, 3)}))
    )
    x = torch.randn(2, 4)
    close(device.download(calls["net"](device.upload(x))[0]), net.wrapper.model(x))


def check_application_with_int64_examples():
    from neuronx_distributed_inference.models.application_base import NeuronApplicationBase

    class Lookup(nn.Module):
        def __init__(self, _config):
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids):
            assert ids.dtype is torch.int64
            return self.table(ids).gather(1, ids[..., None].clamp(0, 2))

    wrapper = own_wrapper(width_config())
    wrapper.model_cls, wrapper.model_init_kwargs, wrapper.tag = Lookup, {}, "lookup"
    type(wrapper).input_generator = lambda self: [(torch.ones(2, 3, dtype=torch.int64),)]

    class LookupApplication(NeuronApplicationBase):
        def __init__(self, *args):
            super().__init__(*args)
            self.models.append(wrapper)

        def forward(self, ids):
            return self.models[0].forward(ids)

        @classmethod
        def get_state_dict(cls, _path, _config):
            return {"table.weight": torch.arange(36.0).view(9, 4)}

    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    pipeline = Pipeline("lookup")
    user_stage = from_nxdi(LookupApplication(tempfile.mkdtemp(), width_config()))
    pipeline.output(
        "y", pipeline.add("m", user_stage)(pipeline.input("ids", TensorSpec((2, 3), torch.int64)))
    )
    plan = pipeline.plan("nxdi", options={"tp_degree": RANKS})
    with plan.compile(tempfile.mkdtemp()).load() as session:
        assert torch.equal(session(ids=ids)["y"], user_stage.model(ids))

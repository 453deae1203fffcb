"""Applications made by hand: two stages with an edge on the device, buckets, routes, adapters, several outputs."""

from __future__ import annotations

from dataclasses import replace

import torch
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
from orchestrator import TensorSpec
from orchestrator.adapter import Adapter
from orchestrator.program import ProgramInput, ProgramOutput
from orchestrator_neuron.ranked import is_ranked
from orchestrator_stages.demos.vision_text import FusionStage, VisionStage

IMAGE, TEXT = (3, 224, 224), 256


def check_value_between_two_stages_stays_on_the_device():
    device = backend()
    vision, fusion = stage("vision", VisionStage()), stage("fusion", FusionStage())
    sizes = ({"batch": 4}, {"batch": 8})
    calls = load_programs(
        device,
        application(
            vision,
            program(
                "vision", {"image": floats("batch", *IMAGE)}, {"output": floats("batch", 512)}, sizes=sizes
            ),
        ),
        application(
            fusion,
            program(
                "fusion",
                {"vision": floats("batch", 512), "text": floats("batch", TEXT)},
                {"output": floats("batch", 1024)},
                sizes=sizes,
                to_host=True,
            ),
        ),
    )
    for size in (8, 4):
        image, text = torch.randn(size, *IMAGE), torch.randn(size, TEXT)
        with count_traffic() as counts:
            (features,) = calls["vision"](device.upload(image))
        # What the guide to pipeline execution asks one to confirm: a list of lists, on the device.
        assert isinstance(features, list)
        assert [len(row) for row in features] == [1] * RANKS
        assert is_ranked(features)
        assert features.shape == (size, 512)
        assert (counts.up, counts.up_bytes, counts.down) == (RANKS, RANKS * image.nbytes, 0)
        with count_traffic() as counts:
            (logits,) = calls["fusion"](features, device.upload(text))
        close(logits, fusion.module()(vision.module()(image), text))
        assert device.download(logits) is logits
        assert (counts.up, counts.up_bytes) == (RANKS, RANKS * text.nbytes)
        assert (counts.down, counts.down_bytes) == (1, logits.nbytes)


def check_second_route_keeps_the_first_value_and_a_rerun_does_not():
    device = backend()
    double = stage("double", nn.Linear(4, 4))
    ports = ({"input": floats(2, 4)}, {"output": floats(2, 4)})
    one, two = program("double", *ports), program("double~2", *ports, route=1)
    with count_traffic() as counts:
        calls = load_programs(device, application(double, one, two))
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    with count_traffic() as counts:
        (a,) = calls["double"](device.upload(first))
        (b,) = calls["double~2"](device.upload(second))
    # What tells the programs apart went up when they were loaded.
    assert counts.up == 2 * RANKS
    close(device.download(a), double.module()(first))
    close(device.download(b), double.module()(second))
    calls["double"](device.upload(second))
    close(device.download(a), double.module()(second))


def check_folded_adapters_and_several_outputs():
    device = backend()
    split = stage("split", Split(), outputs=("low", "high"))
    pad = Adapter("pad", (6, 4), rule=0)
    one = program("split", {"x": floats(6, 8)}, {"low": floats(4, 4)}, returns="tuple", ports=("low", "high"))
    takes = (ProgramInput("x", floats(5, 8), (Adapter("slice", (4, 8)),), torch.float32),)
    gives = (
        ProgramOutput("low", floats(4, 4)),
        ProgramOutput("low", floats(6, 4), (pad,)),
        ProgramOutput("high", TensorSpec((4, 4), torch.float16), (Adapter("cast", dtype=torch.float16),)),
    )
    calls = load_programs(device, application(split, replace(one, inputs=takes, outputs=gives)))
    x = torch.randn(5, 8)
    low, padded_value, high = calls["split"](device.upload(x))
    close(device.download(low), x[:4, :4] * 2)
    close(device.download(padded_value), torch.cat([x[:4, :4] * 2, torch.zeros(2, 4)]))
    close(device.download(high), x[:4, 4:].half())


def check_weightless_program():
    device = backend()
    takes = (ProgramInput("value", floats("n", 4), (Adapter("pad", (8, 4), rule=1),)),)
    made_of = program("pad~1", {}, {"value": floats(8, 4)}, sizes=({"n": 3}, {"n": 5}))
    calls = load_programs(device, application(None, replace(made_of, inputs=takes)))
    for size in (3, 5):
        x = torch.randn(size, 4)
        with count_traffic() as counts:
            (padded_value,) = calls["pad~1"](device.upload(x))
        assert counts.down == 0
        close(device.download(padded_value), torch.cat([x, torch.ones(8 - size, 4)]))


def check_what_the_host_does():
    device = backend()
    value = torch.arange(24.0).reshape(6, 4)
    handle = device.upload(value)
    with count_traffic() as counts:
        part = device.part(handle, 0, 2, 3)
    assert (counts.up, counts.down) == (0, 0)
    close(device.download(part), value[2:5])
    close(device.download(device.part(handle, 1, 1, 2)), value[:, 1:3])
    close(device.download(device.join([part, part], 0)), torch.cat([value[2:5]] * 2))
    close(
        device.download(device.adapt(Adapter("pad", (8, 4), rule=7))(handle, {})),
        torch.cat([value, torch.full((2, 4), 7.0)]),
    )
    close(device.download(device.copy(handle, "nxdi")), value)
    close(device.gather(handle, 0), torch.cat([value] * RANKS))
    assert device.empty((2, 3), torch.int32).shape == (2, 3)
    # A view that is not one block of memory arrives as one.
    close(device.download(device.upload(value.t())), value.t())


class Split(nn.Module):
    def forward(self, x):
        low, high = x.chunk(2, dim=1)
        return low * 2, high

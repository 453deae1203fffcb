"""Wrappers as they are written for NxD Inference, in a pipeline; needs NxD Inference, and for `nxdi` a device."""

from __future__ import annotations

import torch
from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig
from neuronx_distributed_inference.models.encoder_base import NeuronEncoderBase
from neuronx_distributed_inference.models.model_wrapper import ModelWrapper
from torch import nn

from orchestrator import Pipeline, TensorSpec
from orchestrator_neuron import from_nxdi

BATCH, LENGTH, CLASSES = 4, 16, 8


class Encoder(NeuronEncoderBase):
    """The first model."""

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(LENGTH, config.width)

    def forward(self, x):
        """Returns features of the config's width."""
        return self.linear(x)


class Judge(NeuronEncoderBase):
    """The second model."""

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(2 * config.width, CLASSES)

    def forward(self, features, text):
        """Returns scores."""
        return self.linear(torch.cat([features, text], dim=1))


class EncoderWrapper(ModelWrapper):
    """Overrides neither get_model_instance nor forward, and sets no flag."""

    def __init__(self, config):
        super().__init__(config=config, model_cls=Encoder, tag="encoder")

    def input_generator(self):
        """Returns one row of example inputs."""
        return [(torch.randn(BATCH, LENGTH),)]


class JudgeWrapper(ModelWrapper):
    """Likewise."""

    def __init__(self, config):
        super().__init__(config=config, model_cls=Judge, tag="judge")

    def input_generator(self):
        """Returns one row of example inputs."""
        return [(torch.randn(BATCH, self.config.width), torch.randn(BATCH, self.config.width))]


def make(ranks: int = 2) -> Pipeline:
    """Returns a pipeline of both wrappers."""
    neuron = NeuronConfig(batch_size=BATCH, torch_dtype=torch.float32, tp_degree=ranks)
    config = InferenceConfig(neuron, width=32)
    pipeline = Pipeline("adopted")
    x = pipeline.input("x", TensorSpec((BATCH, LENGTH)))
    text = pipeline.input("text", TensorSpec((BATCH, config.width)))
    encoder = pipeline.add("encoder", from_nxdi(EncoderWrapper, config=config))
    judge = pipeline.add("judge", JudgeWrapper(config))
    pipeline.output("scores", judge(features=encoder(x), text=text))
    return pipeline


def main(device: str = "nxdi", ranks: int = 2) -> torch.Tensor:
    """Compiles and runs one request."""
    plan = make(ranks).plan(device=device, options={"tp_degree": ranks})
    with plan.compile("build/").load() as session:
        return session(x=torch.rand(BATCH, LENGTH), text=torch.rand(BATCH, 32))["scores"]


if __name__ == "__main__":
    main()

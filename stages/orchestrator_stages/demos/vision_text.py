"""The pipeline ``vision-text``: an image encoder feeds a fusion model, which also reads a text vector.

It is the smallest pipeline with the question that this project is about: should the image features,
``[batch, hidden]``, stay on the accelerator between the two models? The models are toys with random
weights, always the same for the same ``seed``; the sizes are those of the guide to pipeline execution in
NxD Inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, ModelWrapper, Pipeline, TensorSpec
from orchestrator_stages.seeding import seeded

IMAGE = (3, 224, 224)
TEXT = 256
FEATURES = 512
CLASSES = 1024


class VisionModel(nn.Module):
    """Encodes images: a convolution, an average over all pixels, a linear layer.

    Args:
        hidden: Length of the feature vector.
        channels: Channels of the convolution.
        seed: Seed of the weights.
    """

    def __init__(self, hidden: int = FEATURES, channels: int = 64, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.convolution = nn.Conv2d(IMAGE[0], channels, kernel_size=3, padding=1)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.project = nn.Linear(channels, hidden)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the features ``[batch, hidden]`` of ``image`` ``[batch, 3, 224, 224]``."""
        features: Tensor = self.project(self.pool(self.convolution(image)).flatten(1))
        return features


class FusionModel(nn.Module):
    """Projects a text vector and judges it together with image features.

    Args:
        hidden: Length of the image features, and of the projected text.
        text: Length of the text vector.
        classes: Length of the result.
        seed: Seed of the weights.
    """

    def __init__(
        self, hidden: int = FEATURES, text: int = TEXT, classes: int = CLASSES, seed: int = 1
    ) -> None:
        super().__init__()
        with seeded(seed):
            self.embed = nn.Linear(text, hidden)
            self.fuse = nn.Linear(2 * hidden, classes)

    def forward(self, vision: Tensor, text: Tensor) -> Tensor:
        """Returns ``[batch, classes]`` for ``vision`` ``[batch, hidden]`` and ``text`` ``[batch, 256]``."""
        logits: Tensor = self.fuse(torch.cat([vision, self.embed(text)], dim=1))
        return logits


class VisionStage(ModelWrapper):
    """Stage ``vision-text.vision``: ``image`` to ``output`` ``[batch, hidden]``.

    Args:
        config: Arguments of :class:`VisionModel` by name.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(dict(config or {}), VisionModel, tag="vision")
        self.inputs = {"image": TensorSpec(("batch", *IMAGE), pad=0)}
        self.outputs = {"output": TensorSpec(("batch", self.config.get("hidden", FEATURES)))}


class FusionStage(ModelWrapper):
    """Stage ``vision-text.fusion``: ``vision`` and ``text`` to ``output`` ``[batch, classes]``.

    Args:
        config: Arguments of :class:`FusionModel` by name.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(dict(config or {}), FusionModel, tag="fusion")
        self.inputs = {
            "vision": TensorSpec(("batch", self.config.get("hidden", FEATURES)), pad=0),
            "text": TensorSpec(("batch", self.config.get("text", TEXT)), pad=0),
        }
        self.outputs = {"output": TensorSpec(("batch", self.config.get("classes", CLASSES)))}


def example_inputs(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns ``image`` and ``text`` at the size of ``batch``, random and the same each time."""
    batch = sizes["batch"]
    with seeded(2):
        return {"image": torch.randn(batch, *IMAGE), "text": torch.randn(batch, TEXT)}


def vision_text(*, batch: int | Sequence[int] = 32, hidden: int = FEATURES) -> Pipeline:
    """Builds the pipeline: ``image`` ``[batch, 3, 224, 224]`` and ``text`` ``[batch, 256]`` to ``logits``.

    Args:
        batch: The batch size it is compiled for, or several. A smaller request is padded, a larger one is
            run in chunks; no row looks at another, so neither changes a result.
        hidden: Length of the image features.
    """
    size = Dim("batch", buckets=batch, batch=True)
    pipeline = Pipeline("vision-text")
    pipeline.example_inputs = example_inputs
    image = pipeline.input("image", TensorSpec((size, *IMAGE), pad=0))
    text = pipeline.input("text", TensorSpec((size, TEXT), pad=0))
    vision = pipeline.add("vision", VisionStage({"hidden": hidden}))
    fusion = pipeline.add("fusion", FusionStage({"hidden": hidden}))
    pipeline.output("logits", fusion(vision(image), text))
    return pipeline

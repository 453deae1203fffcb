"""The host's part of the result: PIL images, and Stable Diffusion's safety checker."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from orchestrator import HostStage, TensorSpec
from orchestrator_stages.diffusion.decoders import Pixels


class Pictures(HostStage):
    """Host stage: ``pixels`` ``[images, height, width, 3]``, uint8, to a list of PIL images."""

    def __init__(self) -> None:
        super().__init__(tag="pictures")
        self.inputs = {"pixels": None}
        self.outputs = {"images": list}

    def forward(self, pixels: Tensor) -> list[Image.Image]:
        """Makes the images of one request."""
        return [Image.fromarray(one.numpy()) for one in pixels]


class SafetyCheck(HostStage):
    """Host stage: blackens what a safety checker takes for unsafe, as diffusers does.

    Takes ``pictures`` ``[images, 3, height, width]``, 0 to 1. Gives ``pictures`` again, and ``flagged``, a list
    with a bool for each image.

    Args:
        checker: The checker, which runs on the CPU.
        extractor: Makes what it looks at of PIL images.
        spec: The pictures.
    """

    def __init__(self, checker: Any, extractor: Any, spec: TensorSpec) -> None:
        super().__init__(tag="safety_checker")
        self.checker = checker
        self.extractor = extractor
        self.inputs = {"pictures": None}
        self.outputs = {"pictures": spec, "flagged": list}

    def forward(self, pictures: Tensor) -> tuple[Tensor, list[bool]]:
        """Checks the images of one request."""
        images = Pictures()(Pixels()(pictures))
        model_input = self.extractor(images, return_tensors="pt").pixel_values.to(pictures.dtype)
        _, flags = self.checker(images=torch.zeros_like(pictures), clip_input=model_input)
        unsafe = torch.tensor(flags, dtype=torch.bool)[:, None, None, None]
        return torch.where(unsafe, torch.zeros_like(pictures), pictures), [bool(one) for one in flags]

"""Draw the words' boxes into the photo, for people."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from orchestrator import HostStage
from orchestrator_stages.demos.faces.letterbox import PHOTO


class AnnotateWords(HostStage):
    """Host stage: ``photo`` and its ``words`` to ``annotated``, a new picture of the same size.

    Args:
        box: Colour of the boxes, as Pillow understands colours.
        line: Width of a line in pixels; ``None`` suits it to the photo.
    """

    def __init__(self, box: str = "#ff1744", line: int | None = None) -> None:
        super().__init__(tag="annotate")
        self.box = box
        self.line = line
        self.inputs = {"photo": PHOTO, "words": list}
        self.outputs = {"annotated": PHOTO}

    def forward(self, photo: Tensor, words: list[dict[str, Any]]) -> Tensor:
        """Draws into a copy of one photo."""
        if not words:
            return photo.clone()
        image = Image.fromarray(photo.contiguous().numpy())
        draw = ImageDraw.Draw(image)
        for word in words:
            draw.rectangle(
                word["box"], outline=self.box, width=self.line or max(2, round(min(image.size) / 200))
            )
        return torch.from_numpy(np.array(image))

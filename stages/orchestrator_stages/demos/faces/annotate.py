"""Draw the faces into the photo, for people."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from orchestrator import HostStage
from orchestrator_stages.demos.faces.letterbox import PHOTO


class AnnotateFaces(HostStage):
    """Host stage: ``photo`` and its ``faces`` to ``annotated``, a new picture of the same size.

    Args:
        box: Colour of the boxes, as Pillow understands colours.
        landmark: Colour of the landmarks.
        line: Width of a line in pixels; ``None`` suits it to the photo.
    """

    def __init__(self, box: str = "#00e676", landmark: str = "#ff1744", line: int | None = None) -> None:
        super().__init__(tag="annotate")
        self.box = box
        self.landmark = landmark
        self.line = line
        self.inputs = {"photo": PHOTO, "faces": list}
        self.outputs = {"annotated": PHOTO}

    def forward(self, photo: Tensor, faces: list[dict[str, Any]]) -> Tensor:
        """Draws into a copy of one photo."""
        if not faces:
            return photo.clone()
        image = Image.fromarray(photo.contiguous().numpy())
        draw = ImageDraw.Draw(image)
        line = self.line or max(2, round(min(image.size) / 200))
        for face in faces:
            draw.rectangle(face["box"], outline=self.box, width=line)
            for x, y in face["landmarks"]:
                draw.ellipse((x - line, y - line, x + line, y + line), fill=self.landmark)
        return torch.from_numpy(np.array(image))

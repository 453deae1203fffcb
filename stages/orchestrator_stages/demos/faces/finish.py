"""The host step after ``ONet``: judged candidates to faces in pixels of the photo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orchestrator import HostStage, TensorSpec
from orchestrator_stages.demos.faces.boxes import shift_boxes, strongest
from orchestrator_stages.demos.faces.letterbox import PhotoFrame
from orchestrator_stages.demos.faces.refine import CANDIDATES

LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""Names of the five landmarks in order; left and right are those of the picture."""


class Finish(HostStage):
    """Host stage: keeps the faces that ``ONet`` believes in and maps them back to the photo.

    Takes the ``frame``, the ``boxes`` of the candidates, and what ``ONet`` says of each: ``scores``
    ``[candidates]``, ``offsets`` ``[candidates, 4]`` and ``landmarks`` ``[candidates, 10]``. Gives
    ``faces``, a list ready for JSON, best face first. Each is a dict::

        {"box": [left, top, right, bottom], "score": 0.9995,
         "landmarks": [[x, y], ...], "landmark_names": ["left_eye", ...]}

    in pixels of the photo to 2 decimals. A box is clipped to the photo; a landmark is not, since it may lie
    beyond the edge of a photo that cuts a face.

    Args:
        threshold: Lowest score of a face.
        overlap: A face goes if it and a better one share more than this part of the smaller of the two.
    """

    def __init__(self, threshold: float = 0.7, overlap: float = 0.7) -> None:
        super().__init__(tag="finish")
        self.threshold = threshold
        self.overlap = overlap
        self.inputs = {
            "frame": PhotoFrame,
            "boxes": TensorSpec((CANDIDATES, 4)),
            "scores": TensorSpec((CANDIDATES,)),
            "offsets": TensorSpec((CANDIDATES, 4)),
            "landmarks": TensorSpec((CANDIDATES, 10)),
        }
        self.outputs = {"faces": list}

    def forward(
        self, frame: PhotoFrame, boxes: Tensor, scores: Tensor, offsets: Tensor, landmarks: Tensor
    ) -> list[dict[str, Any]]:
        """Finishes the faces of one picture."""
        # Landmarks are parts of the square that the network saw, so they are placed before the boxes are moved to fit;
        # all are mapped to the photo last, and only boxes are clipped to it.
        sure = scores >= self.threshold
        squares, scores = boxes[sure], scores[sure]
        sides = (squares[:, 2:] - squares[:, :2])[:, None]
        points = squares[:, None, :2] + sides * landmarks[sure].reshape(len(squares), 2, 5).mT
        boxes = shift_boxes(squares, offsets[sure])
        survivors = strongest(boxes, scores, self.overlap, "smaller")
        edge = torch.tensor([frame.photo_width, frame.photo_height])
        corners = torch.minimum(
            frame.to_photo(boxes[survivors].reshape(len(survivors), 2, 2)).clamp(min=0), edge
        )
        rows = zip(
            corners.tolist(),
            scores[survivors].tolist(),
            frame.to_photo(points[survivors]).tolist(),
            strict=True,
        )
        return [_face(*row) for row in rows]


def _face(corners: list[list[float]], score: float, points: list[list[float]]) -> dict[str, Any]:
    return {
        "box": [round(edge, 2) for corner in corners for edge in corner],
        "score": round(score, 6),
        "landmarks": [[round(x, 2), round(y, 2)] for x, y in points],
        "landmark_names": list(LANDMARKS),
    }

"""The host step between ``PNet`` and ``RNet``: score maps of all levels to crops that may hold a face."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.demos.faces.boxes import crops, shift_boxes, square_boxes, strongest, visible
from orchestrator_stages.demos.faces.letterbox import PhotoFrame
from orchestrator_stages.demos.faces.nets import STRIDE, WINDOW
from orchestrator_stages.demos.faces.pyramid import level_names, level_sides

BUCKETS = (8, 16, 32, 64, 128)
"""Numbers of crops that the networks are compiled for; more than the last one runs in chunks."""

PROPOSALS = Dim("proposals", buckets=BUCKETS, batch=True)
"""How many crops ``RNet`` judges: born here, when a request runs."""

SIDE = 24
"""Pixels along the side of a crop."""


class Propose(HostStage):
    """Host stage: keeps the likely windows of every level, moves them to fit, and cuts them out.

    Takes ``square``, its ``frame``, and for each level ``scores_...`` ``[1, h, w]`` and ``offsets_...``
    ``[1, 4, h, w]``. Gives ``crops`` ``[proposals, 3, 24, 24]``, float32, 0 to 255, and their ``boxes``
    ``[proposals, 4]``, which are squares.

    Args:
        sides: Sides of the levels, as :func:`~orchestrator_stages.demos.faces.pyramid.level_sides` gives them.
        threshold: Lowest score of a window that is kept.
        overlap: Windows of one level that overlap a better one by more than this are dropped.
        merge: The same over all levels together.
    """

    def __init__(
        self,
        sides: Sequence[int] = level_sides(),
        threshold: float = 0.6,
        overlap: float = 0.5,
        merge: float = 0.7,
    ) -> None:
        super().__init__(tag="propose")
        self.sides = tuple(sides)
        self.threshold = threshold
        self.overlap = overlap
        self.merge = merge
        # Ports in the order in which `forward` takes them: scores and offsets of the first level, of the second, ...
        maps = [f"{kind}_{level}" for level in level_names(self.sides) for kind in ("scores", "offsets")]
        self.inputs = {"square": None, "frame": PhotoFrame, **dict.fromkeys(maps)}
        self.outputs = {
            "crops": TensorSpec((PROPOSALS, 3, SIDE, SIDE), pad=0),
            "boxes": TensorSpec((PROPOSALS, 4), pad=0),
        }

    def level(self, scores: Tensor, offsets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the windows of one level that are kept: boxes in the picture, scores and offsets."""
        row, column = (scores[0] >= self.threshold).nonzero(as_tuple=True)
        corner = STRIDE * torch.stack([column, row], 1)
        boxes = torch.cat([corner, corner + WINDOW], 1) / scale
        strength, shift = scores[0, row, column], offsets[0, :, row, column].T
        survivors = strongest(boxes, strength, self.overlap)
        return boxes[survivors], strength[survivors], shift[survivors]

    def forward(self, square: Tensor, frame: PhotoFrame, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """Proposes crops; ``maps`` are scores and offsets of the first level, of the second, and so on."""
        scales = [side / square.shape[-1] for side in self.sides]
        levels = map(self.level, maps[::2], maps[1::2], scales)
        boxes, scores, offsets = (torch.cat(parts) for parts in zip(*levels, strict=True))
        survivors = strongest(boxes, scores, self.merge)
        boxes = square_boxes(shift_boxes(boxes[survivors], offsets[survivors]))
        boxes = boxes[visible(boxes, frame.height, frame.width)]
        return crops(square, boxes, SIDE, frame.height, frame.width), boxes

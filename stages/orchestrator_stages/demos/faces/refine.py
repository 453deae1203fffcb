"""The host step between ``RNet`` and ``ONet``: judged proposals to fewer and larger crops."""

from __future__ import annotations

from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.demos.faces.boxes import crops, shift_boxes, square_boxes, strongest, visible
from orchestrator_stages.demos.faces.letterbox import PhotoFrame
from orchestrator_stages.demos.faces.propose import BUCKETS, PROPOSALS

CANDIDATES = Dim("candidates", buckets=BUCKETS, batch=True)
"""How many crops ``ONet`` judges: born here, when a request runs."""

SIDE = 48
"""Pixels along the side of a crop."""


class Refine(HostStage):
    """Host stage: keeps the proposals that ``RNet`` believes in, moves them to fit, and cuts them out again.

    Takes ``square``, its ``frame``, the ``boxes`` of the proposals, and what ``RNet`` says of each:
    ``scores`` ``[proposals]`` and ``offsets`` ``[proposals, 4]``. Gives ``crops`` ``[candidates, 3, 48,
    48]``, float32, 0 to 255, and their ``boxes`` ``[candidates, 4]``, which are squares.

    Args:
        threshold: Lowest score of a proposal that is kept.
        overlap: Proposals that overlap a better one by more than this are dropped.
    """

    def __init__(self, threshold: float = 0.7, overlap: float = 0.7) -> None:
        super().__init__(tag="refine")
        self.threshold = threshold
        self.overlap = overlap
        # What comes in is as long as the proposals, what goes out as the candidates: this stage decides how many.
        self.inputs = {
            "square": None,
            "frame": PhotoFrame,
            "boxes": TensorSpec((PROPOSALS, 4)),
            "scores": TensorSpec((PROPOSALS,)),
            "offsets": TensorSpec((PROPOSALS, 4)),
        }
        self.outputs = {
            "crops": TensorSpec((CANDIDATES, 3, SIDE, SIDE), pad=0),
            "boxes": TensorSpec((CANDIDATES, 4), pad=0),
        }

    def forward(
        self, square: Tensor, frame: PhotoFrame, boxes: Tensor, scores: Tensor, offsets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refines the proposals of one picture."""
        sure = scores >= self.threshold
        boxes, scores, offsets = boxes[sure], scores[sure], offsets[sure]
        survivors = strongest(boxes, scores, self.overlap)
        boxes = square_boxes(shift_boxes(boxes[survivors], offsets[survivors]))
        boxes = boxes[visible(boxes, frame.height, frame.width)]
        return crops(square, boxes, SIDE, frame.height, frame.width), boxes

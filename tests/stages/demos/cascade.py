"""The face cascade written by hand: the same modules and functions called one after another.

It is what the pipeline is compared with, bit for bit, so it uses nothing of the orchestrator: no plan, no
padding, no chunks. `direct` leaves out the letterbox too: the photo itself is resized to every level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator_stages.demos.faces.annotate import AnnotateFaces
from orchestrator_stages.demos.faces.finish import Finish
from orchestrator_stages.demos.faces.letterbox import Letterbox, PhotoFrame
from orchestrator_stages.demos.faces.nets import WINDOW
from orchestrator_stages.demos.faces.propose import Propose
from orchestrator_stages.demos.faces.pyramid import Pyramid, level_sides
from orchestrator_stages.demos.faces.refine import Refine
from orchestrator_stages.demos.faces.trained import onet, pnet, rnet


@dataclass
class Seen:
    """What a run found: numbers of crops, and the results."""

    proposals: int
    candidates: int
    faces: list[dict[str, Any]]
    annotated: Tensor | None = None


@dataclass
class Cascade:
    """The networks, loaded once, and the options of a run."""

    size: int = 512
    min_face: float = 40
    factor: float = 0.709
    enlarge: float = 1.0
    nets: tuple[Any, Any, Any] = field(default_factory=lambda: (pnet().model, rnet().model, onet().model))

    @torch.no_grad()
    def __call__(self, photo: Tensor) -> Seen:
        sides = level_sides(self.size, self.min_face, self.factor)
        square, frame = Letterbox(self.size, self.enlarge)(photo)
        maps = [self.nets[0](level) for level in Pyramid(sides)(square).values()]
        flat = [tensor for one in maps for tensor in (one["scores"], one["offsets"])]
        crops, boxes = Propose(sides)(square, frame, *flat)
        seen = self.judge(square, frame, crops, boxes)
        seen.annotated = AnnotateFaces()(photo, seen.faces)
        return seen

    def judge(self, square: Tensor, frame: PhotoFrame, crops: Tensor, boxes: Tensor) -> Seen:
        """The second and third network, on crops that were proposed."""
        proposals, judged = len(crops), self.nets[1](crops)
        crops, boxes = Refine()(square, frame, boxes, judged["scores"], judged["offsets"])
        candidates, judged = len(crops), self.nets[2](crops)
        faces = Finish()(frame, boxes, judged["scores"], judged["offsets"], judged["landmarks"])
        return Seen(proposals, candidates, faces)

    @torch.no_grad()
    def direct(self, photo: Tensor) -> Seen:
        """The cascade on the photo as it is, with levels of its own proportions."""
        height, width = photo.shape[:2]
        picture = photo.permute(2, 0, 1)[None].float()
        shorter, scale, maps = min(height, width), WINDOW / self.min_face, []
        propose, levels = Propose(), []
        while shorter * scale >= WINDOW:
            rows, columns = round(height * scale), round(width * scale)
            level = functional.interpolate(picture, size=(rows, columns), mode="area")
            maps.append(self.nets[0](level))
            levels.append(scale)
            scale *= self.factor
        frame = PhotoFrame(height, width, height, width)
        propose.sides = tuple(scale * width for scale in levels)  # type: ignore[assignment]
        flat = [tensor for one in maps for tensor in (one["scores"], one["offsets"])]
        return self.judge(picture, frame, *propose(picture, frame, *flat))

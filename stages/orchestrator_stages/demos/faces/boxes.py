"""Geometry of boxes: what happens to them between two networks of the cascade.

A *box* is ``left, top, right, bottom`` in pixels of a picture whose first pixel covers 0 to 1, so that a
width is ``right - left`` without a correction. Boxes are rows of a float tensor ``[n, 4]``; n may be 0
everywhere.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Overlap = Literal["union", "smaller"]
"""What a shared area is measured against: the union of the two boxes, or the smaller one of them."""


def areas(boxes: Tensor) -> Tensor:
    """Returns the area of each box, ``[n]``; 0 where a box is inside out."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def overlaps(box: Tensor, boxes: Tensor, measure: Overlap = "union") -> Tensor:
    """Returns how much each of ``boxes`` shares with ``box`` ``[4]``: ``[n]``, 0 to 1, 0 for empty ones."""
    corner = torch.maximum(box[:2], boxes[:, :2])
    opposite = torch.minimum(box[2:], boxes[:, 2:])
    common = (opposite - corner).clamp(min=0).prod(1)
    own, others = areas(box[None]), areas(boxes)
    whole = own + others - common if measure == "union" else torch.minimum(own, others)
    return torch.where(whole > 0, common / whole, 0.0)


def strongest(boxes: Tensor, scores: Tensor, limit: float, measure: Overlap = "union") -> Tensor:
    """Suppresses duplicates: a box goes if a stronger one that stays overlaps it by more than ``limit``.

    One pass for each box that stays, each over all that are left: memory grows with n, not with its square.

    Args:
        boxes: ``[n, 4]``.
        scores: How strong each box is, ``[n]``.
        limit: From 0 to 1.
        measure: What an overlap is measured against.

    Returns:
        Indices of the boxes that stay, by falling score; of two equal scores the earlier box comes first.
    """
    left = scores.argsort(descending=True, stable=True)
    survivors = []
    while len(left):
        best, left = left[0], left[1:]
        survivors.append(best)
        left = left[overlaps(boxes[best], boxes[left], measure) <= limit]
    return torch.stack(survivors) if survivors else left


def shift_boxes(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Returns boxes whose sides are moved by ``offsets`` ``[n, 4]``, in units of each width and height."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * sides.repeat(1, 2)


def square_boxes(boxes: Tensor) -> Tensor:
    """Returns the squares that have the boxes' centres and longer sides."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)


def pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    """Returns boxes rounded to whole pixels and clipped to a picture, int64; some may be empty."""
    limit = torch.tensor([width, height, width, height])
    return torch.minimum(boxes.round().long().clamp(min=0), limit)


def visible(boxes: Tensor, height: int, width: int) -> Tensor:
    """Returns which boxes still cover a pixel of a picture of that size, bool ``[n]``."""
    return areas(pixels(boxes, height, width)) > 0


def crops(picture: Tensor, boxes: Tensor, side: int, height: int, width: int) -> Tensor:
    """Cuts boxes out of a picture and resizes them to squares of one size.

    A box that reaches over the edge is clipped first, and what is left of it fills its square.

    Args:
        picture: ``[1, 3, rows, columns]``, 0 to 255.
        boxes: ``[n, 4]``, each of them ``visible``.
        side: Pixels along the side of a crop.
        height: Rows of the picture that count; what lies below is beyond the edge.
        width: Columns of the picture that count.

    Returns:
        Crops ``[n, 3, side, side]``, float32, 0 to 255.
    """
    out = picture.new_empty((len(boxes), 3, side, side), dtype=torch.float32)
    for number, (left, top, right, bottom) in enumerate(pixels(boxes, height, width).tolist()):
        window = picture[:, :, top:bottom, left:right].to(torch.float32)
        out[number] = functional.interpolate(window, size=(side, side), mode="area")[0]
    return out

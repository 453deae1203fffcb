"""What pictures show: one to three shapes on a black or white ground, none over another.

A shape stands about in the middle of a cell of a grid, no two in one row or one column of it.
Lengths are in parts of a picture's side, places are ``(right, down)`` from its upper left corner.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.70, 0.20),
    "blue": (0.20, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.60, 0.20, 0.75),
    "orange": (0.98, 0.55, 0.10),
}
SIZES = {"small": 0.09, "large": 0.145}
"""The radius of a shape, of the circle around it."""

GROUNDS = {"black": 0.04, "white": 0.96}
CELLS = 3
"""Rows and columns of the grid."""

MOST = CELLS
"""Shapes of a picture, at most: one in each row and each column."""

JITTER = 0.01
"""How far from the middle of its cell a shape is at most, to the right as well as down."""

SHARES = (1, 2, 3)
"""How often a picture has one shape, two, and so on."""


@dataclass(frozen=True)
class Shape:
    """A shape.

    Attributes:
        kind: One of ``KINDS``.
        colour: One of ``COLOURS``.
        size: One of ``SIZES``.
        place: Its middle.
        radius: That of the circle around it, a little off that of its size.
        shade: Its red, green and blue, 0 to 1, a little off those of its colour.
    """

    kind: str
    colour: str
    size: str
    place: tuple[float, float]
    radius: float
    shade: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        ground: One of ``GROUNDS``.
        shapes: From left to right.
    """

    ground: str
    shapes: tuple[Shape, ...]


def random_scene(chance: random.Random) -> Scene:
    """Returns a scene; the same state of ``chance`` gives the same one."""
    ground = chance.choice(tuple(GROUNDS))
    count = chance.choices(range(1, MOST + 1), SHARES)[0]
    while True:
        shapes = [_random_shape(chance) for _ in range(count)]
        pairs = [(one, other) for index, one in enumerate(shapes) for other in shapes[:index]]
        if all(_are_apart(one, other) for one, other in pairs):
            return Scene(ground, tuple(sorted(shapes, key=lambda shape: shape.place)))


def _random_shape(chance: random.Random) -> Shape:
    """Returns a shape that lies within the picture."""
    size, colour = chance.choice(tuple(SIZES)), chance.choice(tuple(COLOURS))
    radius = SIZES[size] * chance.uniform(0.94, 1.06)
    cells = [cell for cell in range(CELLS) if radius + JITTER < (cell + 0.5) / CELLS < 1 - radius - JITTER]
    right, down = ((chance.choice(cells) + 0.5) / CELLS + chance.uniform(-JITTER, JITTER) for _ in range(2))
    red, green, blue = (min(max(part + chance.uniform(-0.04, 0.04), 0.0), 1.0) for part in COLOURS[colour])
    return Shape(chance.choice(KINDS), colour, size, (right, down), radius, (red, green, blue))


def _are_apart(one: Shape, other: Shape) -> bool:
    """Tells whether two shapes neither touch nor are level."""
    right, down = (abs(a - b) for a, b in zip(one.place, other.place, strict=True))
    return min(right, down) > 2 * JITTER and max(right, down) > one.radius + other.radius


def draw(scenes: Sequence[Scene], side: int) -> Tensor:
    """Returns pictures of the scenes, ``[n, 3, side, side]``, 0 to 1.

    Args:
        scenes: What they show.
        side: Their height and width in pixels.
    """
    # A place of the table holds a shape of each scene: a scene with fewer has shapes of a negative radius there.
    middles = torch.arange(side) / side + 0.5 / side
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    pictures = torch.tensor([GROUNDS[scene.ground] for scene in scenes])[:, None, None, None].repeat(
        1, 3, side, side
    )
    for place in range(max(len(scene.shapes) for scene in scenes)):
        shapes = [scene.shapes[place] if place < len(scene.shapes) else None for scene in scenes]
        table = torch.tensor(
            [
                (*shape.place, shape.radius, *shape.shade) if shape else (0.0, 0.0, -9.0, 0.0, 0.0, 0.0)
                for shape in shapes
            ]
        )
        kinds = torch.tensor([KINDS.index(shape.kind) if shape else 0 for shape in shapes])
        right, down, radius, *_ = table[:, :, None, None].unbind(1)
        outlines = torch.stack(_distances(x - right, y - down, radius), 1)
        distance = outlines[torch.arange(len(scenes)), kinds]
        # An edge is one pixel wide, so that a shape looks alike at every size of the picture.
        cover = (0.5 - distance * side).clamp(0, 1)[:, None]
        pictures = pictures * (1 - cover) + table[:, 3:, None, None] * cover
    return pictures


def _distances(x: Tensor, y: Tensor, radius: Tensor) -> tuple[Tensor, ...]:
    """Returns how far each pixel lies outside of the outline of each of ``KINDS``, in order; negative within."""
    width, height = x.abs(), y.abs()
    circle = (x * x + y * y).sqrt() - radius
    square = torch.maximum(width, height) - 0.8 * radius
    triangle = torch.maximum(0.866 * width - 0.5 * y - 0.5 * radius, y - 0.5 * radius)
    upright = torch.maximum(width - 0.33 * radius, height - radius)
    level = torch.maximum(height - 0.33 * radius, width - radius)
    return circle, square, triangle, torch.minimum(upright, level)

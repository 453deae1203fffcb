"""Photos for the face cascade, all from wheels that are installed for the tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torch.nn import functional

from tests.stages.demos.cascade import Cascade

FACES = 24


def _astronaut() -> Tensor:
    return torch.from_numpy(data.astronaut())


def _coffee() -> Tensor:
    return torch.from_numpy(data.coffee())


def patches(side: int) -> Tensor:
    """scikit-image's 200 grey patches as RGB `[200, 3, side, side]`, 0 to 255: 100 faces, then 100 others."""
    grey = torch.from_numpy(data.lfw_subset()).float()[:, None] * 255
    return functional.interpolate(grey, size=(side, side), mode="bicubic").clamp(0, 255).repeat(1, 3, 1, 1)


def _grid() -> Tensor:
    """The first 24 faces in 4 rows of 6, each 100 pixels wide."""
    rows = patches(100)[:FACES].unflatten(0, (4, 6))
    return rows.permute(0, 3, 1, 4, 2).reshape(400, 600, 3).round().to(torch.uint8)


def _montage() -> Tensor:
    """The astronaut four times: smaller, mirrored, turned and cropped."""
    photo = Image.fromarray(data.astronaut())
    picture = Image.new("RGB", (640, 480), (40, 60, 90))
    picture.paste(photo.resize((300, 300)), (10, 10))
    picture.paste(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((200, 200)), (320, 20))
    picture.paste(photo.rotate(12).resize((240, 240)), (40, 300))
    picture.paste(photo.crop((150, 0, 330, 220)).resize((150, 183)), (400, 260))
    return torch.from_numpy(np.array(picture))


def _plain(value: int, height: int, width: int) -> Callable[[], Tensor]:
    return lambda: torch.full((height, width, 3), value, dtype=torch.uint8)


def _noise(height: int, width: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)


PHOTOS: dict[str, Callable[[], Tensor]] = {
    "astronaut": _astronaut,
    "coffee": _coffee,
    "grid": _grid,
    "montage": _montage,
    "grey": _plain(128, 300, 400),
    "black": _plain(0, 300, 400),
    "white": _plain(255, 512, 512),
    "one pixel": _plain(77, 1, 1),
    "one row": _noise(1, 3000),
    "tall": _noise(5000, 3),
    "small": _noise(30, 20),
}
"""Name to a maker of the photo, `[h, w, 3]` uint8."""

FACELESS = ("coffee", "grey", "black", "white", "one pixel", "one row", "tall", "small")


@pytest.fixture(scope="session")
def cascade() -> Cascade:
    return Cascade()


@pytest.fixture(scope="session")
def photo() -> Callable[[str], Tensor]:
    made: dict[str, Tensor] = {}

    def get(name: str) -> Tensor:
        if name not in made:
            made[name] = PHOTOS[name]()
        return made[name].clone()

    return get

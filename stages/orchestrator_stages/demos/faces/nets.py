"""The three networks of the face cascade, from cheap and rough to dear and exact.

Each network looks at square windows of a photo and answers the same questions about a window: how likely is
it that it holds a face (``scores``, 0 to 1), and by how much should each side of the window move to fit the
face (``offsets``, four numbers in units of the window's width and height, in the order left, top, right,
bottom).

- ``PNet`` (proposals) slides over a whole picture: a window of 12 pixels every 2 pixels.
- ``RNet`` (refinement) looks at one crop of 24 pixels for each proposal.
- ``ONet`` (output) looks at crops of 48 pixels and finds five ``landmarks`` as well.

All of them take pixels from 0 to 255, RGB, and normalise them by themselves. The modules know nothing of
files; ``orchestrator_stages.demos.faces.trained`` fills them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WINDOW = 12
"""Pixels along the side of the window that ``PNet`` judges."""

STRIDE = 2
"""Pixels from one window of ``PNet`` to the next."""


def normalise(pixels: Tensor) -> Tensor:
    """Returns pixels from 0 to 255, of any dtype, as float32 from about -1 to 1."""
    return (pixels.to(torch.float32) - 127.5) / 128.0


def _block(
    channels_in: int, channels_out: int, kernel: int, pool: nn.Module | None = None
) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(channels_in, channels_out, kernel), nn.PReLU(channels_out)]
    return [*layers, pool] if pool is not None else layers


def _pool(kernel: int) -> nn.Module:
    return nn.MaxPool2d(kernel, 2, ceil_mode=True)


def _face_probability(logits: Tensor) -> Tensor:
    return logits.softmax(1)[:, 1]


class PNet(nn.Module):
    """Scores every window of a picture.

    ``image`` ``[1, 3, side, side]`` gives ``scores`` ``[1, h, w]`` and ``offsets`` ``[1, 4, h, w]``; cell
    ``(y, x)`` speaks of the window of ``WINDOW`` pixels whose corner is at ``(STRIDE * y, STRIDE * x)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_block(3, 10, 3, _pool(2)), *_block(10, 16, 3), *_block(16, 32, 3))
        self.face = nn.Conv2d(32, 2, 1)
        self.offsets = nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Score the windows of one picture."""
        features = self.features(normalise(image))
        return {"scores": _face_probability(self.face(features)), "offsets": self.offsets(features)}


class RNet(nn.Module):
    """Scores crops: ``crops`` ``[n, 3, 24, 24]`` gives ``scores`` ``[n]`` and ``offsets`` ``[n, 4]``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 28, 3, _pool(3)),
            *_block(28, 48, 3, _pool(3)),
            *_block(48, 64, 2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, 128),
            nn.PReLU(128),
        )
        self.face = nn.Linear(128, 2)
        self.offsets = nn.Linear(128, 4)

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        """Score a batch of crops."""
        features = self.features(normalise(crops))
        return {"scores": _face_probability(self.face(features)), "offsets": self.offsets(features)}


class ONet(nn.Module):
    """Scores crops and finds landmarks.

    ``crops`` ``[n, 3, 48, 48]`` gives ``scores`` ``[n]``, ``offsets`` ``[n, 4]`` and ``landmarks`` ``[n,
    10]``: five x, then five y, in units of the crop, in the order of
    ``orchestrator_stages.demos.faces.finish.LANDMARKS``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(3, 32, 3, _pool(3)),
            *_block(32, 64, 3, _pool(3)),
            *_block(64, 64, 3, _pool(2)),
            *_block(64, 128, 2),
            nn.Flatten(),
            nn.Linear(128 * 3 * 3, 256),
            nn.PReLU(256),
        )
        self.face = nn.Linear(256, 2)
        self.offsets = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        """Score a batch of crops and find their landmarks."""
        features = self.features(normalise(crops))
        return {
            "scores": _face_probability(self.face(features)),
            "offsets": self.offsets(features),
            "landmarks": self.landmarks(features),
        }

"""The host step between detector and reader: score maps to boxes, boxes to crops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from orchestrator import HostStage
from orchestrator_stages.demos.faces.letterbox import PHOTO, PhotoFrame
from orchestrator_stages.demos.scene_text.components import label_components
from orchestrator_stages.demos.scene_text.detector import CELL
from orchestrator_stages.demos.scene_text.reader import HEIGHT, STRIP

WIDTHS = (64, 128, 256, 512, 1024)
"""Widths in pixels of the crops that the reader is compiled for."""

SMALLEST = 10
"""Cells that a word takes at least."""


class Words(HostStage):
    """Host stage: finds the words of a photo and cuts them out.

    Takes the ``photo``, its ``frame`` and the detector's ``scores`` ``[1, 2, rows, columns]``. Gives ``crops``, one
    tensor ``[64, strips, 4]`` uint8 for each word: grey, of the smallest width that holds it, the rest filled with
    its last column; and ``boxes``, ``[left, top, right, bottom]`` for each in pixels of the photo.

    Args:
        widths: Widths in pixels of the crops; a wider word is squeezed into the largest.
        threshold: A word has a place that is a letter with at least this likelihood.
        letter: Places that are letters with more than this likelihood belong to a word.
        link: So do places that join letters with more than this likelihood.
        margin: How much is cut out above, below and beside a word, in heights of its box.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        threshold: float = 0.7,
        letter: float = 0.4,
        link: float = 0.4,
        margin: float = 0.05,
    ) -> None:
        super().__init__(tag="words")
        # How many crops there are, and of which widths, is decided by each photo: they leave as a list.
        self.widths = sorted(widths)
        self.threshold = threshold
        self.letter = letter
        self.link = link
        self.margin = margin
        self.inputs = {"photo": PHOTO, "frame": PhotoFrame, "scores": None}
        self.outputs = {"crops": list, "boxes": list}

    def forward(
        self, photo: Tensor, frame: PhotoFrame, scores: Tensor
    ) -> tuple[list[Tensor], list[list[int]]]:
        """Finds the words of one photo."""
        grey = Image.fromarray(photo.contiguous().numpy()).convert("L")
        maps = scores[0, :, : -(-frame.height // CELL), : -(-frame.width // CELL)]
        boxes = [in_photo(box, frame) for box in self.find_boxes(maps[0], maps[1])]
        return [self.crop(grey, box) for box in boxes], boxes

    def find_boxes(self, letters: Tensor, links: Tensor) -> Iterator[Tensor]:
        """Yields the box of each word, float ``[4]`` in pixels of the fitted photo."""
        labels = label_components((letters > self.letter) | (links > self.link))
        cells = labels.nonzero()
        numbers = labels[cells[:, 0], cells[:, 1]]
        cells_by_number = cells[numbers.argsort(stable=True)]
        ends = numbers.bincount(minlength=1).cumsum(0)
        for part in cells_by_number.tensor_split(ends[:-1])[1:]:
            strength = letters[part[:, 0], part[:, 1]]
            letter_cells = part[strength > self.letter]
            if len(part) >= SMALLEST and strength.max() >= self.threshold and len(letter_cells):
                yield _box(part, letter_cells)

    def crop(self, grey: Image.Image, box: Sequence[int]) -> Tensor:
        """Cuts out one word, ``[64, strips, 4]``."""
        # Scaled to the height of the reader first; the width then follows, and the last column fills up its bucket, so
        # that no edge appears that could be read as a letter.
        left, top, right, bottom = box
        edge = int(self.margin * (bottom - top))
        window = (
            max(0, left - edge),
            max(0, top - edge),
            min(grey.width, right + edge),
            min(grey.height, bottom + edge),
        )
        cut = grey.crop(window)
        width = min(math.ceil(cut.width * HEIGHT / cut.height), self.widths[-1])
        bucket = next(size for size in self.widths if size >= width)
        pixels = cut.resize((width, HEIGHT), Image.Resampling.BICUBIC)
        crop = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).reshape(HEIGHT, width)
        padded_crop = torch.cat([crop, crop[:, -1:].expand(HEIGHT, bucket - width)], 1)
        return padded_crop.reshape(HEIGHT, bucket // STRIP, STRIP)


def _box(part: Tensor, letter_cells: Tensor) -> Tensor:
    """The box around the letters of a word, larger than the marks that the detector leaves on their centres.

    Args:
        part: Row and column of all cells of the word, ``[n, 2]``.
        letter_cells: Those of its letters.
    """
    high, wide = (part.amax(0) - part.amin(0) + 1).tolist()
    grow = int(math.sqrt(len(part) * min(high, wide) / (high * wide)))
    around = torch.tensor([grow + 1, grow])  # beside a word there is another one, and soon
    first, last = letter_cells.amin(0) - around, letter_cells.amax(0) + around + 1
    return CELL * torch.cat([first.flip(0), last.flip(0)]).to(torch.float32)


def in_photo(box: Tensor, frame: PhotoFrame) -> list[int]:
    """Returns a box in whole pixels of the photo, clipped to it; it covers a pixel at least."""
    left, top, right, bottom = frame.to_photo(box.reshape(2, 2)).round().long().flatten().tolist()
    left, top = (
        min(max(value, 0), size - 1) for value, size in ((left, frame.photo_width), (top, frame.photo_height))
    )
    return [
        left,
        top,
        max(left + 1, min(right, frame.photo_width)),
        max(top + 1, min(bottom, frame.photo_height)),
    ]

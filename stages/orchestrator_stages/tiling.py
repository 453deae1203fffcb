"""Decode a large picture with a decoder that only fits a tile: cut, decode each tile, and blend them again.

    latents -> SplitTiles -> tiles -> (a decoder, over all tiles, with ``Pipeline.map``) -> BlendTiles -> picture

Tiles overlap, since a decoder knows less at the edge of its input. Where two overlap, one fades out
linearly while the other fades in. A decoder that looks at each place alone gives the same picture with tiles
and without, but for rounding; one that looks around gives a picture without seams, though not the same.

All tiles have one size, so one compiled program does for pictures of every size. The last tile of a row or a
column is flush with the edge and overlaps more; a picture smaller than a tile is filled up with its last row
and column, and cut back in the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator import HostStage, TensorSpec
from orchestrator.specs import AnyDim


class TileGrid(NamedTuple):
    """Where tiles came from.

    Attributes:
        pictures: How many.
        height: Their height before they were cut.
        width: Their width.
    """

    pictures: int
    height: int
    width: int


def corners(size: int, tile: int, overlap: int) -> list[int]:
    """Returns where the tiles begin along one side.

    Args:
        size: Length of the side.
        tile: Length of a tile.
        overlap: By how much two neighbours overlap at least, less than ``tile``.
    """
    last = max(0, size - tile)
    return [*range(0, last, tile - overlap), last]


def fades(size: int, tile: int, overlap: int) -> Tensor:
    """Returns the weights of the tiles along one side, ``[tiles, tile]``, float32.

    A tile counts 1 in its middle and fades towards a neighbour over their overlap. For each place the weights
    of all tiles there sum to 1.
    """
    begins = corners(size, tile, overlap)
    ramp = (torch.arange(overlap) + 0.5) / overlap if overlap else torch.ones(0)
    weights = torch.ones(len(begins), tile)
    weights[1:, :overlap] = ramp
    weights[:-1, tile - overlap :] *= ramp.flip(0)
    places = torch.tensor(begins)[:, None] + torch.arange(tile)
    total = torch.zeros(int(places.max()) + 1).index_add(0, places.flatten(), weights.flatten())
    return weights / total[places]


class _TileStage(HostStage):
    """What both stages know of tiles."""

    def __init__(self, tile: int | tuple[int, int], overlap: int | tuple[int, int], tag: str) -> None:
        super().__init__(tag=tag)
        self.tile = (tile, tile) if isinstance(tile, int) else tile
        self.overlap = (overlap, overlap) if isinstance(overlap, int) else overlap
        for side, margin in zip(self.tile, self.overlap, strict=True):
            if side < 1 or not 0 <= margin < side:
                raise ValueError(
                    f"A tile is at least 1 long and overlaps by less than its length, not {side} with {margin}."
                )


class SplitTiles(_TileStage):
    """Host stage: cuts pictures into tiles.

    Takes ``picture`` ``[count, channels, height, width]``. Gives ``tiles``, a list of ``[channels, *tile]``, row
    by row and picture by picture, and the ``frame`` that :class:`BlendTiles` needs.

    Args:
        tile: Side of a tile, or its height and width.
        overlap: By how much neighbours overlap at least.

    Raises:
        ValueError: The overlap is not smaller than the tile.
    """

    def __init__(self, tile: int | tuple[int, int], overlap: int | tuple[int, int]) -> None:
        super().__init__(tile, overlap, "split")
        self.inputs = {"picture": None}
        self.outputs = {"tiles": list, "frame": TileGrid}

    def forward(self, picture: Tensor) -> tuple[list[Tensor], TileGrid]:
        """Cuts the pictures of one request."""
        count, _, height, width = picture.shape
        padded_picture = self._pad(picture)
        begins = [
            corners(size, tile, overlap)
            for size, tile, overlap in zip((height, width), self.tile, self.overlap, strict=True)
        ]
        rows, columns = self.tile
        tiles = [
            one[:, top : top + rows, left : left + columns]
            for one in padded_picture
            for top, left in itertools.product(*begins)
        ]
        return tiles, TileGrid(count, height, width)

    def _pad(self, picture: Tensor) -> Tensor:
        down, right = (max(0, tile - size) for tile, size in zip(self.tile, picture.shape[2:], strict=True))
        if not down and not right:
            return picture
        return functional.pad(picture, (0, right, 0, down), mode="replicate")


class BlendTiles(_TileStage):
    """Host stage: puts decoded tiles together.

    Takes ``tiles``, a list of ``[channels, scale * height, scale * width]`` in the order of :class:`SplitTiles`, and
    its ``frame``. Gives ``picture`` ``[count, channels, scale * height, scale * width]``.

    Args:
        tile: As for :class:`SplitTiles`, before decoding.
        overlap: Likewise.
        scale: How much larger the decoder makes a tile.
        dims: Dims of the picture.
        dtype: Its element type, and that of the tiles.

    Raises:
        ValueError: The overlap is not smaller than the tile.
    """

    def __init__(
        self,
        tile: int | tuple[int, int],
        overlap: int | tuple[int, int],
        scale: int = 1,
        *,
        dims: Sequence[AnyDim],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(tile, overlap, "blend")
        self.scale = scale
        self.dtype = dtype
        self.inputs = {"tiles": list, "frame": TileGrid}
        self.outputs = {"picture": TensorSpec(tuple(dims), dtype, pad="repeat_first")}

    def forward(self, tiles: list[Tensor], frame: TileGrid) -> Tensor:
        """Blends the tiles of one request."""
        sides = [
            (size * self.scale, tile * self.scale, overlap * self.scale)
            for size, tile, overlap in zip((frame.height, frame.width), self.tile, self.overlap, strict=True)
        ]
        # Weights and corners by side; tiles stand row by row and picture by picture, as they were cut.
        (down, across), (rows, columns) = (fades(*side) for side in sides), (corners(*side) for side in sides)
        each = len(rows) * len(columns)
        if len(tiles) != frame.pictures * each:
            raise ValueError(
                f"{frame.pictures} pictures of {frame.height} x {frame.width} are {each} tiles each, but {len(tiles)} "
                f"tiles came; SplitTiles and BlendTiles take the same tile and overlap."
            )
        (height, tall, _), (width, wide, _) = sides
        shape = frame.pictures, tiles[0].shape[0] if tiles else 0, max(height, tall), max(width, wide)
        # Weights sum to 1 at each place, so the sum of the tiles is the picture; float32 however narrow the tiles are.
        picture = torch.zeros(shape, dtype=torch.float32)
        for number, tile in enumerate(tiles):
            row, column = divmod(number % each, len(columns))
            part = picture[
                number // each, :, rows[row] : rows[row] + tall, columns[column] : columns[column] + wide
            ]
            part += tile * (down[row][:, None] * across[column])
        return picture[:, :, :height, :width].to(self.dtype)

"""Pictures: PNG and JPEG files to tensors that fit an input, and back.

A picture is a uint8 tensor ``[height, width, 3]`` in RGB, or ``[height, width]`` in grey, upright (the
orientation that a camera noted in EXIF is applied). The dims of an input say in which *layout* it takes one:

    [height, width, 3]       channels last
    [3, height, width]       channels first
    [height, width]          grey, uint8 only: a matrix of floats is hardly a picture
    [n, ...]                 one of the first two in a batch of one

An input of uint8 gets the values as they are, one of floats gets them scaled to 0 .. 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from orchestrator.cli.report import JobError, UsageError
from orchestrator.specs import AnyDim, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["is_picture", "picture_layout", "read_picture", "write_picture"]

_CHANNELS = 3
_JPEG_SIDE = 65_500  # libjpeg's limit
_MEGA = 1_000_000
_BLOCK = 1 << 20
_SCAN = b"\xff\xda"

#: Pixels of a picture: Pillow's own bound, which any library may take away.
MOST_PIXELS = 178_956_970
#: Pixels times scans of a JPEG; an ordinary one has at most about ten scans.
MOST_WORK = 16 * MOST_PIXELS


@dataclass(frozen=True)
class PictureLayout:
    """How an input takes a picture.

    Attributes:
        has_batch: There is a batch dim in front.
        order: ``last``, ``first`` or ``grey``, as in the module's table.
        height: The dim of rows.
        width: The dim of columns.
    """

    has_batch: bool
    order: str
    height: AnyDim
    width: AnyDim


def picture_layout(spec: TensorSpec) -> PictureLayout | None:
    """Returns how an input takes a picture; None if it takes none."""
    if spec.dtype != torch.uint8 and not spec.dtype.is_floating_point:
        return None
    dims = spec.dims
    order_and_sides = _order_and_sides(dims)
    if order_and_sides is not None and (order_and_sides[0] != "grey" or spec.dtype == torch.uint8):
        return PictureLayout(False, *order_and_sides)
    inner_order = _order_and_sides(dims[1:])
    if inner_order is None or inner_order[0] == "grey" or (isinstance(dims[0], int) and dims[0] != 1):
        return None
    return PictureLayout(True, *inner_order)


def _order_and_sides(dims: tuple[AnyDim, ...]) -> tuple[str, AnyDim, AnyDim] | None:
    if len(dims) == 3 and dims[2] == _CHANNELS:
        return "last", dims[0], dims[1]
    if len(dims) == 3 and dims[0] == _CHANNELS:
        return "first", dims[1], dims[2]
    if len(dims) == 2:
        return "grey", dims[0], dims[1]
    return None


def read_picture(name: str, path: Path, spec: TensorSpec) -> torch.Tensor:
    """Reads a PNG or JPEG file for an input.

    Args:
        name: The input.
        path: The file.
        spec: The spec of the input.

    Raises:
        UsageError: The input takes no picture.
        JobError: The file holds none, or one of another size than the input's.
    """
    layout = picture_layout(spec)
    if layout is None:
        raise UsageError(
            f"The input {name!r} takes {spec}, which is no picture: one is [height, width, 3] or "
            f"[3, height, width], alone or in a batch of one, uint8 or floats. "
            f"Give a .npy or .safetensors file instead of {str(path)!r}."
        )

    def check(height: int, width: int, may_lie: bool = False) -> None:
        """Refuses a size that the input does not take; ``may_lie``: EXIF may yet swap rows and columns."""
        for size, dim, what in ((height, layout.height, "rows"), (width, layout.width, "columns")):
            if isinstance(dim, int) and dim != size and not (may_lie and dim in (height, width)):
                raise JobError(
                    f"The picture {str(path)!r} has {height} rows and {width} columns, but the input {name!r} "
                    f"takes {spec}, that is {dim} {what}. Resize it first."
                )

    # The header is checked before the pixels are decoded, the pixels once they are upright.
    pixels = _decode(path, layout.order == "grey", check)
    check(*pixels.shape[:2])
    if layout.order == "first":
        pixels = pixels.permute(2, 0, 1)
    if spec.dtype.is_floating_point:
        pixels = pixels.to(torch.float32).div_(255).to(spec.dtype)
    return (pixels[None] if layout.has_batch else pixels).contiguous()


def _decode(path: Path, grey: bool, check: Callable[[int, int, bool], None]) -> torch.Tensor:
    """The pixels of a file; its header is looked at first, and refused by ``check`` or the bounds of this module."""
    try:
        import numpy
        from PIL import Image
    except ImportError as error:
        raise JobError("Pictures need Pillow and numpy: pip install 'stage-orchestrator[files]'.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, or large but bearable sizes
            with Image.open(path, formats=("PNG", "JPEG")) as file:
                check(file.height, file.width, True)
                _check_work(path, file)
                file.load()
                picture = _upright(_eight_bit(file))
                pixels = numpy.array(picture.convert("L" if grey else "RGB"))
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // _MEGA
        raise JobError(
            f"{str(path)!r} has more than {limit} megapixels, which no ordinary picture has."
        ) from error
    except JobError:
        raise
    except Exception as error:  # a damaged file raises almost anything
        why = str(error).partition("\n")[0] or type(error).__name__
        raise JobError(f"{str(path)!r} cannot be read as a PNG or JPEG picture: {why}.") from error
    return torch.from_numpy(pixels)


def _check_work(path: Path, file: Image) -> None:
    """Bounds the work of decoding; a library may have taken Pillow's own bound away."""
    pixels = file.width * file.height
    if pixels > MOST_PIXELS:
        raise JobError(
            f"{str(path)!r} has more than {MOST_PIXELS // _MEGA} megapixels, which no ordinary picture has."
        )
    # A progressive JPEG paints all pixels once for each scan, and a scan may be a few bytes.
    if file.format != "PNG" and pixels * _scans(path) > MOST_WORK:
        raise JobError(
            f"{str(path)!r} paints {pixels // _MEGA} megapixels in {_scans(path)} scans, as no ordinary picture does."
        )


def _scans(path: Path) -> int:
    """Counts the scans of a JPEG: in compressed data a byte 255 is never followed by that of a mark."""
    count, last = 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            count += (last + block).count(_SCAN)
            last = block[-1:]
    return count


def _upright(picture: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF raises almost anything; the pixels are well, and as the camera held it
        return picture


def _eight_bit(picture: Image) -> Image:
    """Returns a picture of 8 bits a channel; Pillow clips a grey one of 16 bits instead of scaling it."""
    if not picture.mode.startswith("I"):
        return picture
    from PIL import Image

    eight_bit = Image.fromarray(_high_byte(picture))
    eight_bit.info = picture.info
    return eight_bit


def _high_byte(picture: Image) -> Any:
    import numpy

    return (numpy.asarray(picture) >> 8).astype(numpy.uint8)


def is_picture(value: torch.Tensor) -> bool:
    """Tells whether a tensor is a picture that a file can hold."""
    if value.dtype != torch.uint8 or not value.numel():
        return False
    return value.dim() == 2 or (value.dim() == 3 and value.shape[2] == _CHANNELS)


def write_picture(value: torch.Tensor, kind: str, file: BinaryIO) -> None:
    """Writes a picture to an open file.

    Args:
        value: A tensor that :func:`is_picture`.
        kind: ``png`` or ``jpg``.
        file: Where to.

    Raises:
        JobError: Pillow is not installed, or the format holds no picture of that size.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise JobError("Pictures need Pillow and numpy: pip install 'stage-orchestrator[files]'.") from error
    picture = Image.fromarray(value.numpy())
    if kind == "png":
        picture.save(file, "PNG")
    elif max(picture.size) <= _JPEG_SIDE:
        picture.save(file, "JPEG", quality=95)
    else:
        raise JobError(f"A picture of {list(value.shape)} cannot be a JPEG, whose sides end at {_JPEG_SIDE}.")

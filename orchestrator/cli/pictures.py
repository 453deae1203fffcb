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


@dataclass(frozen=True)
class Layout:
    """How an input takes a picture.

    Attributes:
        batched: There is a batch dim in front.
        order: ``last``, ``first`` or ``grey``, as in the module's table.
        height: The dim of rows.
        width: The dim of columns.
    """

    batched: bool
    order: str
    height: AnyDim
    width: AnyDim


def picture_layout(spec: TensorSpec) -> Layout | None:
    """Returns how an input takes a picture; None if it takes none."""
    if spec.dtype != torch.uint8 and not spec.dtype.is_floating_point:
        return None
    dims = spec.dims
    plain = _unbatched(dims)
    if plain is not None and (plain[0] != "grey" or spec.dtype == torch.uint8):
        return Layout(False, *plain)
    inner = _unbatched(dims[1:])
    if inner is None or inner[0] == "grey" or (isinstance(dims[0], int) and dims[0] != 1):
        return None
    return Layout(True, *inner)


def _unbatched(dims: tuple[AnyDim, ...]) -> tuple[str, AnyDim, AnyDim] | None:
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
        spec: What the input takes.

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
    pixels = _decode(path, grey=layout.order == "grey")
    height, width = pixels.shape[:2]
    for size, dim, what in ((height, layout.height, "rows"), (width, layout.width, "columns")):
        if isinstance(dim, int) and dim != size:
            raise JobError(
                f"The picture {str(path)!r} has {height} rows and {width} columns, but the input {name!r} "
                f"takes {spec}, that is {dim} {what}. Resize it first."
            )
    if layout.order == "first":
        pixels = pixels.permute(2, 0, 1)
    if spec.dtype.is_floating_point:
        pixels = (pixels.to(torch.float32) / 255).to(spec.dtype)
    return (pixels[None] if layout.batched else pixels).contiguous()


def _decode(path: Path, *, grey: bool) -> torch.Tensor:
    try:
        import numpy
        from PIL import Image
    except ImportError as error:
        raise JobError("Pictures need Pillow and numpy: pip install 'stage-orchestrator[files]'.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, or large but bearable sizes
            with Image.open(path, formats=("PNG", "JPEG")) as file:
                file.load()
                picture = _upright(_eight_bit(file))
                pixels = numpy.array(picture.convert("L" if grey else "RGB"))
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // _MEGA
        raise JobError(
            f"{str(path)!r} has more than {limit} megapixels, which no ordinary picture has."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise JobError(f"{str(path)!r} cannot be read as a PNG or JPEG picture: {error}.") from error
    return torch.from_numpy(pixels)


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

    scaled = Image.fromarray(_high_byte(picture))
    scaled.info = picture.info
    return scaled


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

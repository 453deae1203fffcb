"""Tensors in files: .npy and .safetensors, read as data within the bounds of the file's own size.

What a header says is compared with the bytes that are there before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from orchestrator.cli.report import JobError, UsageError

__all__ = ["FILES", "as_array", "read_all", "read_npy", "read_safetensors", "safetensors_of", "save_npy"]

#: What reading and writing files takes.
FILES = "pip install 'stage-orchestrator[files]'"
_NUMBERS = "biufc"
_MESSAGE_CHARACTERS = 200


def read_npy(path: Path) -> torch.Tensor:
    """Reads an array of numbers.

    Raises:
        JobError: The file holds none, or fewer than its header says.
    """
    try:
        import numpy
    except ImportError as error:
        raise JobError(f"{str(path)!r} needs numpy: {FILES}.") from error
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers in the form of old releases
            shape, fortran, dtype = _header(file)
            count = math.prod(shape)
            left = os.fstat(file.fileno()).st_size - file.tell()
            if dtype.kind not in _NUMBERS:
                raise ValueError(f"its elements are {dtype}")
            if min(shape, default=0) < 0 or count * dtype.itemsize > left:
                raise ValueError(
                    f"its header says {list(shape)} {dtype}, {count * dtype.itemsize:,} bytes, and {left:,} follow"
                )
            array = numpy.fromfile(file, dtype, count)
        array = array.reshape(shape, order="F" if fortran else "C")
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        return _sound(torch.from_numpy(native))
    except Exception as error:
        why = _first_line(error)
        raise JobError(f"{str(path)!r} cannot be read as a numpy array of numbers: {why}.") from error


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, Any]:
    from numpy.lib import format as npy

    start = file.read(2)
    file.seek(0)
    if start == b"PK":
        raise ValueError("it is an archive of several arrays (.npz)")
    version = npy.read_magic(file)
    octets = file.read(2 if version == (1, 0) else 4)
    length, left = int.from_bytes(octets, "little"), os.fstat(file.fileno()).st_size - file.tell()
    if length > left:
        raise ValueError(f"its header has {length:,} bytes, and {left:,} follow")
    file.seek(-len(octets), os.SEEK_CUR)
    # Version 3 differs from 2 in the names of fields alone, and an array of numbers has none.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


def _sound(tensor: torch.Tensor) -> torch.Tensor:
    """A boolean of a file may have any bits; one of torch has one of two."""
    return tensor.view(torch.uint8) != 0 if tensor.dtype is torch.bool else tensor


def read_safetensors(path: Path, key: str) -> torch.Tensor:
    """Reads the one tensor of a file, or the one with a key.

    Raises:
        UsageError: There are several, or none with that key.
        JobError: The file cannot be read.
    """
    with _open(path) as file:
        keys = sorted(file.keys())
        tensor_key = key or (keys[0] if len(keys) == 1 else "")
        if tensor_key not in keys:
            text = ", ".join(repr(item[:80]) for item in keys[:12]) + (", ..." if len(keys) > 12 else "")
            raise UsageError(f"Name one tensor of {str(path)!r} as {path}:KEY; its keys: {text or 'none'}.")
        return _sound(file.get_tensor(tensor_key))


def read_all(path: Path) -> list[torch.Tensor]:
    """Reads all tensors of a file; numbers in their names count as such: "2" comes before "10".

    Raises:
        JobError: The file cannot be read.
    """
    with _open(path) as file:
        names = sorted(
            file.keys(), key=lambda name: [part.zfill(20) for part in re.findall(r"\d+|\D+", name)]
        )
        return [_sound(file.get_tensor(name)) for name in names]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise JobError(f"{str(path)!r} needs safetensors: {FILES}.") from error
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except UsageError:
        raise
    except Exception as error:
        raise JobError(f"{str(path)!r} cannot be read as safetensors: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]}..."


def as_array(value: torch.Tensor) -> Any:
    """Returns a tensor as a numpy array; None where numpy lacks the dtype.

    Raises:
        JobError: There is no numpy.
    """
    try:
        return value.numpy()
    except TypeError:
        return None
    except RuntimeError as error:
        raise JobError(f"Tensors as .npy need numpy: {FILES}.") from error


def save_npy(array: Any, file: BinaryIO) -> None:
    """Writes an array to an open file."""
    import numpy

    numpy.save(file, array, allow_pickle=False)


def safetensors_of(name: str, value: torch.Tensor) -> bytes:
    """Returns the content of a file with one tensor.

    Raises:
        JobError: There is no safetensors.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise JobError(f"Tensors as .safetensors need safetensors: {FILES}.") from error
    return save({name: value})

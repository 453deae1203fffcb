"""Read a weight file of Marian, the translation toolkit, whose matrices are 8-bit integers.

The file is little-endian: a version and the number of items, one record of four numbers for each item (length
of its name, type, number of dims, bytes of its data), all names, all shapes, the size of a gap, the gap, and
the data of all items in order. An integer matrix is followed by one float, its *scale*: an integer over the
scale is the weight. Its rows are the columns of the matrix that Marian multiplies by, so that it can be used
as the weight of ``nn.Linear`` as it lies in the file.

Source: ``src/common/binary.cpp`` and ``src/common/types.h`` of https://github.com/browsermt/marian-dev.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
from torch import Tensor

VERSION = 1
FLOAT32 = 0x0404
INT8 = 0x4101
"""The integer type that is laid out for no special processor."""


class _Cursor:
    """Takes one thing after the other from the bytes of a file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.place = 0

    def bytes(self, count: int) -> bytes:
        end = self.place + count
        if not 0 <= count <= len(self.content) - self.place:
            raise ValueError(f"it ends early: {count} bytes are wanted at {self.place}")
        data = self.content[self.place : end]
        self.place = end
        return data

    def numbers(self, code: str, count: int) -> tuple[int, ...]:
        data = self.bytes(count * struct.calcsize(f"<{code}"))
        return struct.unpack(f"<{count}{code}", data)


def read_marian(content: bytes) -> dict[str, Tensor]:
    """Returns the weights of a file by name.

    Args:
        content: The bytes of the file.

    Returns:
        float32 tensors that share no memory with ``content``. Integer matrices are the transpose of what their
        name means in Marian, ``[out, in]``, except an embedding, whose rows are its entries; names and shapes
        are otherwise those of Marian. What is no weight is left out: scales of activations (``..._QuantMultA``)
        and the settings of the training (``special:...``).

    Raises:
        ValueError: It is no such file, or holds a type that is not read here.
    """
    # The head, then all names, all shapes, a gap, and the data of all items: each part as long as the part before says.
    cursor = _Cursor(content)
    version, count = cursor.numbers("Q", 2)
    if version != VERSION:
        raise ValueError(f"it is no weight file of Marian: its version is {version}, not {VERSION}")
    records = [cursor.numbers("Q", 4) for _ in range(count)]
    names = [cursor.bytes(length).rstrip(b"\0").decode() for length, *_ in records]
    shapes = [cursor.numbers("i", dims) for _, _, dims, _ in records]
    (gap,) = cursor.numbers("Q", 1)
    cursor.bytes(gap)
    weights = {}
    for name, shape, (_, kind, _, size) in zip(names, shapes, records, strict=True):
        data = cursor.bytes(size)
        if not name.startswith("special:") and not name.endswith("_QuantMultA"):
            weights[name] = _tensor(name, kind, shape, data)
    return weights


def _tensor(name: str, kind: int, shape: tuple[int, ...], data: bytes) -> Tensor:
    count = math.prod(shape)
    if min(shape, default=0) < 0 or (kind == INT8 and len(shape) != 2):
        raise ValueError(f"{name!r} has the shape {shape}")
    if kind not in (FLOAT32, INT8):
        raise ValueError(f"{name!r} is of type {kind:#x}, which is not read here")
    if len(data) < (4 * count if kind == FLOAT32 else count + 4):
        raise ValueError(f"{name!r} has {len(data)} bytes for the shape {shape}")
    if kind == FLOAT32:
        return torch.from_numpy(np.frombuffer(data, "<f4", count).astype(np.float32)).reshape(shape)
    (scale,) = np.frombuffer(data, "<f4", 1, offset=count)
    weight = torch.from_numpy(np.frombuffer(data, np.int8, count).astype(np.float32) / scale)
    rows, columns = shape
    return weight.reshape((rows, columns) if name == "Wemb" else (columns, rows))

"""Files whose headers lie, for every form that an input is read from; and a reader of them with little memory.

Run as a script: ``python hostile.py FOLDER`` writes them, reads each with at most a gibibyte more than an idle process
has, and prints for each its name, what came of it, and the processor time that took.
"""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageFile

from orchestrator.cli.report import JobError, UsageError
from orchestrator.cli.values import read_input
from orchestrator.specs import Dim, TensorSpec
from orchestrator_stages.demos.speech.recording import Recording, resample

GIB = 1 << 30
PHOTO = TensorSpec((Dim.dynamic("h"), Dim.dynamic("w"), 3), torch.uint8)
VECTOR = TensorSpec(("n",))


def npy(header: str, data: bytes = bytes(8), version: int = 1, length: int | None = None) -> bytes:
    text = header.encode("latin1") + b"\n"
    form = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, length or len(text)) + text + data


def array(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def safetensors(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, rows: bytes | None = None) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(height * (3 * width + 1)) if rows is None else rows)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(size: int, scans: int) -> bytes:
    """A progressive picture whose last scan comes again and again."""
    ImageFile.MAXBLOCK = 1 << 24
    buffer = io.BytesIO()
    Image.new("RGB", (size, size)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def wav(rate: int, frames: int, channels: int = 1, width: int = 2, said: int | None = None) -> bytes:
    data = bytes(frames * channels * width)
    form = struct.pack(
        "<IHHIIHH", 16, 1, channels, rate, rate * width & 0xFFFFFFFF, channels * width & 0xFFFF, width * 8
    )
    size = len(data) if said is None else said
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


BOMB = zlib.compress(bytes(200 << 20), 9)

#: Name to content; the ending says what an input makes of it.
FILES: dict[str, bytes] = {
    "seven-tebibytes.npy": npy(array("(1000000000000, 2)")),
    "overflow.npy": npy(array(f"({1 << 40}, {1 << 40})")),
    "overflow-to-zero.npy": npy(array(f"({1 << 32}, {1 << 32})")),
    "negative.npy": npy(array("(-2,)")),
    "negative-twice.npy": npy(array("(-1, -2)")),
    "no-shape.npy": npy(array("('a',)")),
    "a-true-shape.npy": npy(array("(True, 4000000000)")),
    "deep-header.npy": npy(array("(" * 3000 + ")" * 3000)),
    "long-header.npy": npy(array("(2,)") + " " * 60_000),
    "header-of-gigabytes.npy": npy(array("(2,)"), version=2, length=4_000_000_000),
    "nested-type.npy": npy(array("(2,)", "[('a', '<f4', (1000000, 1000000))]")),
    "objects.npy": npy(array("(2,)", "'|O'")),
    "nothing-wide.npy": npy(array("(1000000000000,)", "'|S0'")),
    "wide.npy": npy(array("(1,)", "'<U1000000000'")),
    "unknown-version.npy": b"\x93NUMPY\x09\x00" + bytes(100),
    "header-beyond.safetensors": safetensors({}, length=1 << 62),
    "header-of-100-megabytes.safetensors": safetensors({}, length=100_000_001),
    "overlapping.safetensors": safetensors({"a": tensor([2], [0, 8]), "b": tensor([2], [0, 8])}),
    "hole.safetensors": safetensors({"a": tensor([1], [4, 8])}),
    "beyond.safetensors": safetensors({"a": tensor([1 << 40], [0, 1 << 42])}),
    "overflow.safetensors": safetensors({"a": tensor([1 << 62, 1 << 62], [0, 8])}),
    "negative.safetensors": safetensors({"a": tensor([-2], [0, 8])}),
    "backwards.safetensors": safetensors({"a": tensor([2], [8, 0])}),
    "empty-and-huge.safetensors": safetensors({"a": tensor([0, (1 << 63) - 1, 4], [0, 0])}, b""),
    "half-a-byte.safetensors": safetensors({"a": tensor([16], [0, 8], "F4")}),
    "unknown-type.safetensors": safetensors({"a": tensor([2], [0, 8], "F31")}),
    "deep.safetensors": safetensors(b"[" * 100_000),
    "no-object.safetensors": safetensors([1, 2]),
    "many-pixels.png": png(200_000, 100_000, rows=b""),
    "many-pixels-in-a-row.png": png(2**31 - 1, 1, rows=b""),
    "no-pixels.png": png(0, 0, rows=b""),
    "too-few-rows.png": png(500, 500, rows=bytes(100)),
    "text-bomb.png": png(8, 8, chunk(b"zTXt", b"k\0\0" + BOMB)),
    "many-texts.png": png(8, 8, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 19)))] * 200),
    "international-bomb.png": png(8, 8, chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB)),
    "long-chunk.png": png(8, 8)[:33] + struct.pack(">I", 0x7FFFFFFF) + b"tEXt",
    "many-scans.jpg": jpeg(2000, 2000),
    "slow.wav": wav(1, 300_000),
    "fast.wav": wav(4_294_967_291, 1000),
    "said-to-be-long.wav": wav(16_000, 100, said=0xFFFFFFF0),
    "many-channels.wav": wav(16_000, 10, channels=65_535),
    "wide-samples.wav": wav(16_000, 10, width=5),
    "no-channels.wav": wav(16_000, 10).replace(struct.pack("<HH", 1, 1), struct.pack("<HH", 1, 0), 1),
    "deep.json": b"[" * 300_000,
    "long.json": b" " * ((64 << 20) + 1),
    "long-number.json": b"[" + b"9" * 100_000 + b"]",
}

#: Read, though odd: nothing in them is out of bounds.
SOUND = {"said-to-be-long.wav", "odd-rate.wav", "any-bits.npy", "half-a-byte.safetensors"}
FILES |= {
    "odd-rate.wav": wav(44_101, 10_000),
    "icc-bomb.png": png(8, 8, chunk(b"iCCP", b"k\0\0" + BOMB)),
    "any-bits.npy": npy(array("(4,)", "'|b1'"), b"\x00\x01\x02\xff"),
}


def read(path: Path) -> object:
    """What an input of the file's kind makes of it."""
    if path.suffix == ".wav":
        return resample(read_input("x", str(path), Recording), 16_000)
    kinds = {".npy": VECTOR, ".safetensors": VECTOR, ".json": list}
    return read_input("x", str(path), kinds.get(path.suffix, PHOTO))


def outcomes(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Yields name, outcome and processor seconds of each file."""
    Image.MAX_IMAGE_PIXELS = None  # as libraries leave it behind
    for name in ("plain.npy", "plain.wav"):
        content = npy(array("(2,)")) if name.endswith("npy") else wav(8000, 100)
        (folder / name).write_bytes(content)
        read(folder / name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIB, used + GIB))
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        before = time.process_time()
        try:
            read(folder / name)
            found = "read"
        except (JobError, UsageError, ValueError) as error:
            found = f"refused: {error}"
        except BaseException as error:
            found = f"broke: {type(error).__name__}: {error}"
        yield name, found, time.process_time() - before


if __name__ == "__main__":
    numpy.seterr(all="ignore")
    json.dump(list(outcomes(Path(sys.argv[1]))), sys.stdout)

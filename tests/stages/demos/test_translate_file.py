"""The reader of Marian's weight files, on files written here."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from orchestrator_stages.demos.translate.marian_file import FLOAT32, INT8, read_marian


def written(items: dict[str, tuple[int, tuple[int, ...], bytes]], gap: int = 8) -> bytes:
    """The bytes of a file with these items: type, shape, data."""
    parts = [struct.pack("<2Q", 1, len(items))]
    for name, (kind, shape, data) in items.items():
        parts.append(struct.pack("<4Q", len(name) + 1, kind, len(shape), len(data)))
    parts += [name.encode() + b"\0" for name in items]
    parts += [struct.pack(f"<{len(shape)}i", *shape) for _, shape, _ in items.values()]
    parts += [struct.pack("<Q", gap), bytes(gap), *(data for _, _, data in items.values())]
    return b"".join(parts)


def whole(scale: float, shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, bytes]:
    """Integers as they lie in a file, and their bytes with the scale and some filling."""
    numbers = np.random.default_rng(seed).integers(-127, 128, shape, dtype=np.int8)
    return numbers, numbers.tobytes() + np.float32(scale).tobytes() + bytes(5)


BIAS = np.arange(6, dtype="<f4").reshape(1, 6)
DENSE, DENSE_BYTES = whole(50.0, (6, 4))
ROWS, ROWS_BYTES = whole(30.0, (9, 4), seed=1)
ITEMS = {
    "dense_W": (INT8, (4, 6), DENSE_BYTES),
    "Wemb": (INT8, (9, 4), ROWS_BYTES),
    "dense_b": (FLOAT32, (1, 6), BIAS.tobytes()),
    "dense_W_QuantMultA": (FLOAT32, (1, 1), bytes(4)),
    "special:model.yml": (0x0101, (7,), b"type: x"),
}


@pytest.mark.parametrize("gap", [0, 8, 200])
def test_weights_come_out(gap):
    weights = read_marian(written(ITEMS, gap))
    assert list(weights) == ["dense_W", "Wemb", "dense_b"]
    np.testing.assert_array_equal(weights["dense_b"].numpy(), BIAS)
    np.testing.assert_allclose(weights["dense_W"].numpy(), DENSE / 50.0, rtol=1e-6)
    np.testing.assert_allclose(weights["Wemb"].numpy(), ROWS / 30.0, rtol=1e-6)
    assert all(value.is_contiguous() for value in weights.values())


def test_a_file_cut_anywhere_is_an_error():
    content = written(ITEMS, 0)
    for length in range(len(content)):
        with pytest.raises(ValueError, match="it ends early: "):
            read_marian(content[:length])


def test_another_file_is_an_error():
    with pytest.raises(ValueError, match=r"its version is 7\d+, not 1"):
        read_marian(b"PK\3\4, and so on, as archives begin")
    with pytest.raises(ValueError, match="'x' is of type 0x408, which is not read here"):
        read_marian(written({"x": (0x0408, (1,), bytes(8))}))
    for kind in (FLOAT32, INT8):
        with pytest.raises(ValueError, match="'x' has 3 bytes for the shape"):
            read_marian(written({"x": (kind, (2, 2), bytes(3))}))

"""Weight files that are damaged, or whose author means ill: a ``ValueError`` that names the file. Kind: borders."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_stages.demos.speech.ct2 import read_variables
from orchestrator_stages.demos.translate.marian_file import FLOAT32, INT8, read_marian
from tests.stages.demos.test_speech_parts import ct2_file
from tests.stages.demos.test_translate_file import ITEMS, written

MARIAN = written(ITEMS, 8)
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6)


def edited(whole: bytes, edits: list[tuple[int, int]]) -> bytes:
    data = bytearray(whole)
    for at, byte in edits:
        data[at % len(data)] = byte
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(EDITS)
def test_a_damaged_file_of_marian_is_read_or_refused(edits: list[tuple[int, int]]):
    try:
        read_marian(edited(MARIAN, edits))
    except ValueError as error:
        assert str(error)  # noqa: PT017


@settings(max_examples=300, deadline=None)
@given(EDITS)
def test_a_damaged_file_of_ctranslate2_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
):
    path = tmp_path_factory.getbasetemp() / "model.bin"
    whole = ct2_file(path, {"a/weight": np.ones((2, 3), np.float16), "b": np.array(7, np.int16)}).read_bytes()
    path.write_bytes(edited(whole, edits))
    try:
        read_variables(path)
    except ValueError as error:
        assert "cannot be read as a model of CTranslate2" in str(error)  # noqa: PT017


HUGE = 2**64 - 1


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<2Q", 1, HUGE),
        struct.pack("<2Q", 1, 1 << 40) + bytes(64),
        struct.pack("<6Q", 1, 1, HUGE, FLOAT32, 1, 4),
        struct.pack("<6Q", 1, 1, 2, FLOAT32, HUGE, 4) + b"a\0",
        struct.pack("<6Q", 1, 1, 2, FLOAT32, 1 << 61, 4) + b"a\0",
        written({"a": (FLOAT32, (-1,), bytes(8))}),
        written({"a": (FLOAT32, (-2, -2), bytes(64))}),
        written({"a": (FLOAT32, (2**31 - 1, 2**31 - 1, 4), bytes(8))}),
        written({"a": (INT8, (-1, -6), bytes(64))}),
        written({"a": (INT8, (4,), bytes(64))}),
        written({"a": (INT8, (2, 2, 2), bytes(64))}),
        written({"a": (FLOAT32, (1,), bytes(4))}, gap=8)[:-12] + struct.pack("<Q", HUGE),
    ],
)
def test_numbers_that_lie_are_refused(content: bytes):
    with pytest.raises(ValueError, match=r"."):
        read_marian(content)


def test_a_variable_that_is_larger_than_the_file_is_refused(tmp_path: Path):
    path = ct2_file(tmp_path / "model.bin", {"a": np.zeros(3, np.float32)})
    whole = path.read_bytes()
    for shape, size in ((2**32 - 1, 12), (3, 2**32 - 1), (0, 12)):
        path.write_bytes(
            whole.replace(
                struct.pack("<BIBI", 1, 3, 0, 12),
                struct.pack("<BIBI", 1, shape, 0, size),
            )
        )
        with pytest.raises(ValueError, match="cannot be read as a model of CTranslate2"):
            read_variables(path)

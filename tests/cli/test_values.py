"""Values are read as an input wants them and written as their kind asks; nothing is cast or guessed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.json_values import to_plain
from orchestrator.cli.output_files import write_file, write_text
from orchestrator.cli.report import JobError, UsageError
from orchestrator.cli.values import describe, describe_input, read_input, write_output
from orchestrator.specs import TensorSpec

VECTOR = TensorSpec(("n",))


class Point(NamedTuple):
    x: int
    y: float


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Tensors.


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64],
)
@pytest.mark.parametrize("shape", [(3,), (), (2, 0, 4), (2, 3, 4)])
def test_npy_round_trips(here: Path, dtype: torch.dtype, shape: tuple):
    value = torch.ones(shape).to(dtype)
    path = write_output(here, "out", value)
    if path.suffix == ".npy":  # a uint8 matrix is a picture
        found = read_input("x", "out.npy", VECTOR)
        assert found.dtype == dtype
        assert torch.equal(found, value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_what_numpy_lacks_is_written_as_safetensors(here: Path, dtype: torch.dtype):
    assert write_output(here, "out", torch.ones(3).to(dtype)).name == "out.safetensors"
    assert read_input("x", "out.safetensors", VECTOR).dtype == dtype


def test_safetensors_where_asked(here: Path):
    value = torch.arange(6.0).reshape(2, 3).T
    assert write_output(here, "out", value, tensors="safetensors").name == "out.safetensors"
    assert torch.equal(read_input("x", "out.safetensors", VECTOR), value)
    assert torch.equal(read_input("x", "out.safetensors:out", VECTOR), value)


def test_one_of_several_tensors_is_named(here: Path):
    safetensors.torch.save_file({"a": torch.ones(1), "b": torch.zeros(2)}, "two.safetensors")
    assert read_input("x", "two.safetensors:b", VECTOR).tolist() == [0, 0]
    with pytest.raises(UsageError, match=r"two.safetensors:KEY; its keys: 'a', 'b'"):
        read_input("x", "two.safetensors", VECTOR)
    with pytest.raises(UsageError, match="its keys"):
        read_input("x", "two.safetensors:c", VECTOR)


@pytest.mark.parametrize("order", ["<f4", ">f4"])
def test_any_byte_order_and_layout_is_read(here: Path, order: str):
    array = numpy.asfortranarray(numpy.arange(6, dtype=order).reshape(2, 3))
    numpy.save("x.npy", array)
    value = read_input("x", "x.npy", VECTOR)
    assert value.is_contiguous()
    assert value.tolist() == array.tolist()


@pytest.mark.parametrize(
    "array", [numpy.array(["text"]), numpy.array([None]), numpy.zeros(2, dtype=[("a", "f4")])], ids=str
)
def test_an_array_of_anything_but_numbers_fails(here: Path, array: Any):
    numpy.save("x.npy", array, allow_pickle=True)
    with pytest.raises(JobError, match="cannot be read as a numpy array of numbers"):
        read_input("x", "x.npy", VECTOR)


def test_an_archive_is_no_array(here: Path):
    numpy.savez("x.npz", a=numpy.zeros(1))
    Path("x.npz").rename("x.npy")
    with pytest.raises(JobError, match=r"\.npz"):
        read_input("x", "x.npy", VECTOR)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_damaged_files_fail(here: Path, name: str, content: bytes):
    Path(name).write_bytes(content)
    with pytest.raises(JobError, match=f"'{name}' cannot be read"):
        read_input("x", name, VECTOR)


@pytest.mark.parametrize("name", ["x.pt", "x", "x.csv", "hello"])
def test_an_unknown_ending_lists_what_is_taken(here: Path, name: str):
    Path(name).touch()
    with pytest.raises(
        UsageError, match=rf"'x' takes \[n\] float32, from a \.npy or \.safetensors file; not '{name}'"
    ):
        read_input("x", name, VECTOR)


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "x.safetensors:key"])
def test_a_missing_file_is_wrong_usage(here: Path, name: str):
    with pytest.raises(UsageError, match=r"'x\.\w+' for the input 'x' does not exist"):
        read_input("x", name, VECTOR)


def test_a_folder_is_no_file(here: Path):
    Path("x.npy").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        read_input("x", "x.npy", VECTOR)


# Python values.


@pytest.mark.parametrize("text", ["hello", "", "5", "[1, 2]", "two\nlines", "photo.png"])
def test_text_is_taken_as_it_is(text: str):
    assert read_input("prompt", text, str) == text


def test_text_comes_from_a_file_too(here: Path):
    Path("prompt.txt").write_text("héllo\n", encoding="utf-8")
    assert read_input("prompt", "prompt.txt", str) == "héllo\n"
    assert read_input("prompt", "prompt.txt", str, literal=True) == "prompt.txt"


def test_a_missing_text_file_is_not_taken_for_text(here: Path):
    with pytest.raises(UsageError, match="does not exist"):
        read_input("prompt", "prompt.txt", str)


def test_text_is_utf8(here: Path):
    Path("prompt.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="UTF-8"):
        read_input("prompt", "prompt.txt", str)


@pytest.mark.parametrize(
    ("text", "spec", "value"),
    [
        ("3", int, 3),
        ("3", float, 3.0),
        ("0.5", float, 0.5),
        ("true", bool, True),
        ('{"a": [1]}', dict, {"a": [1]}),
        ("[1, 2]", list, [1, 2]),
        ("[1, 2]", tuple, (1, 2)),
    ],
)
def test_json_gives_other_types(here: Path, text: str, spec: type, value: object):
    found = read_input("x", text, spec)
    assert found == value
    assert type(found) is spec
    Path("x.json").write_text(text)
    assert read_input("x", "x.json", spec) == value


@pytest.mark.parametrize(
    ("text", "spec"),
    [("3.5", int), ("true", int), ("1", bool), ("[]", dict), ("{}", list), ("abc", int), ("", float)],
)
def test_a_value_of_another_type_is_refused(here: Path, text: str, spec: type):
    with pytest.raises(UsageError, match=f"'x' takes a {spec.__name__}"):
        read_input("x", text, spec)
    Path("x.json").write_text(text)
    with pytest.raises(JobError, match=r"the file 'x\.json' is"):
        read_input("x", "x.json", spec)


def test_a_type_of_ones_own_comes_from_python_only():
    with pytest.raises(UsageError, match="takes a Point"):
        read_input("x", "1", Point)


def test_an_input_tells_what_it_takes():
    assert describe_input("x", VECTOR) == "x: [n] float32, from .npy or .safetensors"
    assert describe_input("i", TensorSpec((1, 3, 8, 8))).endswith("from .png, .jpg, .npy or .safetensors")
    assert describe_input("t", str) == "t: str, from text or .txt"


# Outputs.


def test_text_and_values_are_written(here: Path):
    assert write_output(here, "text", "grüße").read_text(encoding="utf-8") == "grüße"
    path = write_output(here, "faces", [{"box": (1, 2.5), "at": Point(1, 2.0), "t": torch.tensor([1, 2])}])
    assert path.name == "faces.json"
    assert json.loads(path.read_text()) == [{"box": [1, 2.5], "at": {"x": 1, "y": 2.0}, "t": [1, 2]}]


def test_a_value_without_a_form_in_json_fails_by_name(here: Path):
    with pytest.raises(JobError, match=r"output 'out' .*object"):
        write_output(here, "out", [object()])
    assert not list(here.iterdir())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_is_its_own_plain_form(value: object):
    assert to_plain(value) == value
    assert json.loads(json.dumps(to_plain(value), allow_nan=False)) == value


def test_numbers_that_json_lacks_become_null():
    assert to_plain([float("nan"), float("inf"), torch.tensor([-float("inf"), 1])]) == [None, None, [None, 1]]


def test_numpy_and_odd_containers():
    value = {1: {3, 2}, "a": numpy.float32(0.5), "b": numpy.arange(2), None: range(2), "p": Path("x")}
    assert to_plain(value) == {"1": [2, 3], "a": 0.5, "b": [0, 1], "None": [0, 1], "p": "x"}


def test_a_tensor_is_described():
    found = describe("x", torch.tensor([[1.0, 2.0], [3.0, float("nan")]]))
    assert found["shape"] == [2, 2]
    assert found["dtype"] == "float32"
    assert found["values"] == [[1, 2], [3, None]]
    assert describe("x", torch.tensor([1, 2, 6], dtype=torch.uint8))["max"] == 6
    assert describe("x", torch.tensor([True, False]))["mean"] == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.complex64])
def test_every_dtype_is_described(dtype: torch.dtype):
    json.dumps(describe("x", torch.ones(2, 2).to(dtype)), allow_nan=False)


def test_an_empty_and_a_large_tensor_are_described():
    assert describe("x", torch.zeros(0, 4)) == {
        "shape": [0, 4],
        "dtype": "float32",
        "min": None,
        "max": None,
        "mean": None,
        "values": [],
    }
    assert "values" not in describe("x", torch.zeros(5000))


# Files are whole or not there.


def test_an_older_file_is_replaced_in_one_step(here: Path):
    path = here / "a.txt"
    write_text(path, "old")
    reader = path.open()
    write_text(path, "new")
    assert reader.read() == "old"
    assert path.read_text() == "new"
    reader.close()


def test_a_failed_write_leaves_the_older_file(here: Path):
    path = write_text(here / "a.txt", "old")

    def fail(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(JobError, match=r"a\.txt' cannot be written: No space left"):
        write_file(path, fail)
    assert [item.name for item in here.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_a_file_has_ordinary_permissions(here: Path):
    ordinary = here / "ordinary"
    ordinary.touch()
    written = write_text(here / "written", "x")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


# Types that read themselves.


class Note:
    """A value with a file form of its own."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def from_file(cls, path: Path) -> Note:
        text = path.read_text(encoding="utf-8")
        if not text:
            raise ValueError("it is empty")
        return cls(text)


def test_a_type_with_from_file_reads_its_own_files(here: Path):
    (here / "a.note").write_text("hello")
    (here / "b.note").write_text("")
    assert read_input("x", "a.note", Note).text == "hello"
    assert describe_input("x", Note) == "x: Note, from a file"
    with pytest.raises(JobError, match=r"'b\.note' cannot be read as a Note: it is empty"):
        read_input("x", "b.note", Note)
    with pytest.raises(UsageError, match="does not exist"):
        read_input("x", "c.note", Note)

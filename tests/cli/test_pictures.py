"""Pictures become what an input takes, upright and unclipped, or a clear error."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from orchestrator.cli.pictures import picture_layout
from orchestrator.cli.report import JobError, UsageError
from orchestrator.cli.values import read_input, write_output
from orchestrator.specs import Dim, TensorSpec

H, W = Dim.dynamic("h"), Dim.dynamic("w")
PHOTO = TensorSpec((H, W, 3), torch.uint8)


@pytest.fixture
def pixels() -> numpy.ndarray:
    """A picture of 4 rows and 6 columns in which no two pixels are alike."""
    return numpy.arange(4 * 6 * 3, dtype=numpy.uint8).reshape(4, 6, 3)


@pytest.fixture
def png(tmp_path: Path, pixels: numpy.ndarray) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def read(path: Path, spec: TensorSpec) -> torch.Tensor:
    return read_input("image", str(path), spec)


def test_a_png_is_read_as_it_is(png: Path, pixels: numpy.ndarray):
    value = read(png, PHOTO)
    assert value.dtype == torch.uint8
    assert numpy.array_equal(value.numpy(), pixels)


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ((H, W, 3), (4, 6, 3)),
        ((3, H, W), (3, 4, 6)),
        ((3, 4, 6), (3, 4, 6)),
        (("batch", 3, H, W), (1, 3, 4, 6)),
        ((1, 3, 4, 6), (1, 3, 4, 6)),
        ((Dim("n", (1, 8)), H, W, 3), (1, 4, 6, 3)),
        ((H, W), (4, 6)),
    ],
)
def test_dims_decide_the_layout(png: Path, dims: tuple, shape: tuple):
    assert tuple(read(png, TensorSpec(dims, torch.uint8)).shape) == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_scaled_to_one_and_channels_first(tmp_path: Path, dtype: torch.dtype):
    Image.new("RGB", (2, 2), (255, 0, 51)).save(tmp_path / "a.png")
    value = read(tmp_path / "a.png", TensorSpec(("batch", 3, 2, 2), dtype))
    assert value.dtype == dtype
    assert value.is_contiguous()
    assert value[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2], abs=1e-3)


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec(("batch",)),
        TensorSpec(("batch", 256)),
        TensorSpec((32, 3, 224, 224)),
        TensorSpec((H, W, 4), torch.uint8),
        TensorSpec((H, W, 3), torch.int64),
        TensorSpec((1, 1, 3, H, W)),
        TensorSpec(()),
    ],
    ids=str,
)
def test_an_input_that_takes_no_picture_says_so(png: Path, spec: TensorSpec):
    assert picture_layout(spec) is None
    with pytest.raises(UsageError, match=r"'image' takes .*no picture.*\.npy"):
        read(png, spec)


def test_a_picture_of_another_size_names_both(png: Path):
    with pytest.raises(JobError, match=r"4 rows and 6 columns.*\[batch, 3, 224, 224\].*224 rows"):
        read(png, TensorSpec(("batch", 3, 224, 224)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_may_be_held_in_any_way(tmp_path: Path, orientation: int):
    upright = numpy.zeros((16, 24, 3), dtype=numpy.uint8)
    upright[:8, :8] = 255  # white in the top left corner
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = Image.fromarray(upright)
    if orientation in turns:
        stored = stored.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    value = read(tmp_path / "photo.jpg", PHOTO)
    assert tuple(value.shape) == (16, 24, 3)
    assert value[:6, :6].min() > 200
    assert value[10:, 10:].max() < 50


def test_damaged_exif_costs_the_orientation_only(tmp_path: Path, pixels: numpy.ndarray):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff" + b"\x01" * 9)
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    assert tuple(read(tmp_path / "a.jpg", PHOTO).shape) == (4, 6, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_every_kind_of_png_becomes_rgb(tmp_path: Path, pixels: numpy.ndarray, mode: str):
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    assert tuple(read(tmp_path / "a.png", PHOTO).shape) == (4, 6, 3)


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read(tmp_path / "a.jpg", PHOTO)[4, 4].tolist()
    assert red > 150 > max(green, blue)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path):
    Image.fromarray(numpy.array([[0, 0x1234, 0x8000, 0xFFFF]], dtype=numpy.uint16)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", TensorSpec((H, W), torch.uint8)).tolist() == [[0, 0x12, 0x80, 0xFF]]


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg"])
@pytest.mark.parametrize("content", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_file_that_is_no_picture_fails(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match="cannot be read as a PNG or JPEG picture"):
        read(tmp_path / name, PHOTO)


def test_a_truncated_picture_fails(tmp_path: Path):
    data = io.BytesIO()
    noise = numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue()[:2000])
    with pytest.raises(JobError, match="cannot be read"):
        read(tmp_path / "a.png", PHOTO)


def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, pixels: numpy.ndarray):
    Image.fromarray(pixels).save(tmp_path / "a.png", "BMP")
    with pytest.raises(JobError, match="PNG or JPEG"):
        read(tmp_path / "a.png", PHOTO)


def test_a_decompression_bomb_is_refused(png: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(JobError, match="megapixels"):
        read(png, PHOTO)


@pytest.mark.parametrize("dims", [(H, W, 3), (H, W)])
def test_png_round_trips(tmp_path: Path, dims: tuple):
    spec = TensorSpec(dims, torch.uint8)
    value = torch.randint(0, 256, (5, 7, 3)[: len(dims)], dtype=torch.uint8)
    path = write_output(tmp_path, "out", value)
    assert path.name == "out.png"
    assert torch.equal(read(path, spec), value)


def test_jpeg_is_written_where_asked(tmp_path: Path):
    path = write_output(tmp_path, "out", torch.full((8, 8, 3), 128, dtype=torch.uint8), picture="jpg")
    assert path.name == "out.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG"


def test_a_picture_that_jpeg_cannot_hold_fails_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(JobError, match="cannot be a JPEG"):
        write_output(tmp_path, "out", torch.zeros((70_000, 1), dtype=torch.uint8), picture="jpg")
    assert not list(tmp_path.iterdir())

"""Photos into squares and points back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_stages.demos.faces.letterbox import Letterbox
from orchestrator_stages.demos.faces.pyramid import Pyramid, level_names, level_sides

sides = st.integers(1, 300)


@settings(deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 96), enlarge=st.sampled_from([1.0, 3.0]))
def test_the_photo_fills_its_frame_and_nothing_else(height, width, size, enlarge):
    photo = torch.full((height, width, 3), 200, dtype=torch.uint8)
    square, frame = Letterbox(size, enlarge, fill=7)(photo)
    assert square.shape == (1, 3, size, size)
    assert (square[:, :, : frame.height, : frame.width] == 200).all()
    assert (square == 7).sum() == 3 * (size * size - frame.height * frame.width)


@given(height=sides, width=sides, size=st.integers(1, 96), enlarge=st.sampled_from([1.0, 3.0]))
def test_corners_map_back_to_corners(height, width, size, enlarge):
    frame = Letterbox(size, enlarge).frame(height, width)
    assert 1 <= frame.height <= size
    assert 1 <= frame.width <= size
    corners = torch.tensor([[0.0, 0.0], [frame.width, frame.height]])
    assert frame.to_photo(corners).flatten().tolist() == pytest.approx([0, 0, width, height], rel=1e-5)


def test_a_small_photo_is_not_changed():
    photo = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8)
    square, frame = Letterbox(64)(photo)
    assert (frame.height, frame.width) == (20, 30)
    assert square[0, :, :20, :30].permute(1, 2, 0).equal(photo)


def test_the_longer_side_fits_the_square():
    assert Letterbox(512).frame(3000, 4000)[2:] == (384, 512)
    assert Letterbox(512, enlarge=4).frame(100, 50)[2:] == (400, 200)
    assert Letterbox(512).frame(1, 100_000)[2:] == (1, 512)


def test_levels_shrink_until_the_window_is_larger():
    assert level_sides(512, 40, 0.709) == (154, 109, 77, 55, 39, 28, 20, 14)
    assert level_sides(12, 12) == (12,)


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"factor": 0.0}, {"min_face": 0}, {"min_face": 513}])
def test_a_pyramid_without_levels_or_end_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        level_sides(512, **wrong)


def test_the_pyramid_averages():
    levels = Pyramid((6, 4, 2))(torch.arange(48).reshape(1, 3, 4, 4).to(torch.uint8))
    assert tuple(levels) == level_names((6, 4, 2)) == ("level1", "level2", "level3")
    assert [level.shape[-1] for level in levels.values()] == [6, 4, 2]
    assert levels["level2"].flatten().tolist() == list(range(48))
    assert levels["level3"][0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]

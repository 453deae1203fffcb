"""The geometry between the networks, against definitions written out in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator_stages.demos.faces.boxes import (
    areas,
    crops,
    overlaps,
    pixels,
    shift_boxes,
    square_boxes,
    strongest,
    visible,
)

Box = tuple[float, float, float, float]


def shared(a: Box, b: Box, measure: str) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    whole = area_a + area_b - width * height if measure == "union" else min(area_a, area_b)
    return width * height / whole if whole else 0


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Up to 30 boxes with whole corners, some of them empty or equal, and scores with ties."""
    corner, side = st.integers(-5, 20), st.integers(0, 12)
    rows = draw(st.lists(st.tuples(corner, corner, side, side), max_size=30))
    scores = draw(st.lists(st.integers(0, 5), min_size=len(rows), max_size=len(rows)))
    boxes = [(x, y, x + w, y + h) for x, y, w, h in rows]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores) / 5


measures = st.sampled_from(["union", "smaller"])


@given(scored(), measures)
def test_overlap_is_the_shared_area_over_the_whole(drawn, measure):
    boxes, _ = drawn
    for box in boxes:
        expected = [shared(tuple(box.tolist()), tuple(other.tolist()), measure) for other in boxes]
        assert overlaps(box, boxes, measure).tolist() == pytest.approx(expected, abs=1e-6)


@given(scored(), measures, st.sampled_from([0.0, 0.3, 0.5, 0.7]))
def test_suppression_keeps_what_no_stronger_kept_box_covers(drawn, measure, limit):
    boxes, scores = drawn
    expected: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        if all(overlaps(boxes[best], boxes[index][None], measure) <= limit for best in expected):
            expected.append(index)
    assert strongest(boxes, scores, limit, measure).tolist() == expected


@given(scored())
def test_squares_keep_the_centre_and_the_longer_side(drawn):
    boxes, _ = drawn
    result = square_boxes(boxes)
    assert torch.allclose(result[:, :2] + result[:, 2:], boxes[:, :2] + boxes[:, 2:])
    sides = result[:, 2:] - result[:, :2]
    assert torch.allclose(sides, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True).expand(-1, 2))


def test_offsets_are_in_units_of_the_box():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert shift_boxes(boxes, torch.tensor([[0.5, -0.25, 0.0, 1.0]])).tolist() == [[20.0, 10.0, 30.0, 100.0]]
    assert shift_boxes(boxes, torch.zeros(1, 4)).equal(boxes)


@given(scored())
def test_visible_boxes_have_pixels_in_the_picture(drawn):
    boxes, _ = drawn
    clipped = pixels(boxes, 9, 7)
    seen = visible(boxes, 9, 7)
    assert seen.tolist() == [right > left and bottom > top for left, top, right, bottom in clipped.tolist()]
    assert (clipped >= 0).all()
    assert (clipped[:, [0, 2]] <= 7).all()
    assert (clipped[:, [1, 3]] <= 9).all()


def test_a_crop_shows_the_box():
    picture = torch.arange(3 * 8 * 8).reshape(1, 3, 8, 8).to(torch.uint8)
    box = torch.tensor([[2.0, 1.0, 6.0, 5.0]])
    assert crops(picture, box, 4, 8, 8)[0].equal(picture[0, :, 1:5, 2:6].float())
    halved = crops(picture, box, 2, 8, 8)[0]
    assert halved[0, 0, 0] == picture[0, 0, 1:3, 2:4].float().mean()


def test_a_crop_never_shows_what_lies_beyond_the_edge():
    picture = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    picture[:, :, :5, :4] = 200
    over = torch.tensor([[1.0, 2.0, 7.0, 8.0], [-3.0, -3.0, 3.0, 3.0]])
    assert (crops(picture, over, 24, 5, 4) == 200).all()


def test_no_boxes_are_an_ordinary_case():
    none = torch.empty(0, 4)
    assert areas(none).shape == (0,)
    assert strongest(none, torch.empty(0), 0.5).shape == (0,)
    assert square_boxes(none).shape == shift_boxes(none, none).shape == (0, 4)
    assert crops(torch.zeros(1, 3, 8, 8), none[visible(none, 8, 8)], 24, 8, 8).shape == (0, 3, 24, 24)

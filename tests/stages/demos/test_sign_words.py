"""The host stages of reading: sizes, boxes, crops, letters and lines."""

from __future__ import annotations

import pytest
import torch

from orchestrator_stages.demos.faces.letterbox import PhotoFrame
from orchestrator_stages.demos.scene_text.annotate import AnnotateWords
from orchestrator_stages.demos.scene_text.fit import SIDES, Fit
from orchestrator_stages.demos.scene_text.reader import LETTERS
from orchestrator_stages.demos.scene_text.spell import Spell, group_lines, spell_word
from orchestrator_stages.demos.scene_text.words import WIDTHS, Words


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)


def by_cells(fitted: torch.Tensor) -> torch.Tensor:
    return fitted.flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("size", [(60, 100), (61, 99), (1, 1), (1024, 2)])
def test_a_small_photo_stays_as_it_is(size):
    photo = noise(*size)
    fitted, frame = Fit()(photo)
    assert frame == PhotoFrame(*size, *size)
    pixels = by_cells(fitted)
    assert pixels.shape == (1, 3, *(next(side for side in SIDES if side >= own) for own in size))
    assert pixels[0, :, : size[0], : size[1]].permute(1, 2, 0).equal(photo)
    assert not pixels[:, :, size[0] :].any()
    assert not pixels[:, :, :, size[1] :].any()


@pytest.mark.parametrize("size", [(3000, 1500), (1025, 1), (1, 5000)])
def test_a_large_photo_becomes_smaller(size):
    fitted, frame = Fit()(noise(*size))
    assert max(by_cells(fitted).shape[2:]) == 1024
    assert frame.photo_height / frame.height == pytest.approx(max(size) / 1024, rel=0.01) or frame.height == 1


def test_a_small_photo_is_enlarged_on_request():
    fitted, frame = Fit(enlarge=4.0)(noise(30, 100))
    assert by_cells(fitted).shape[2:] == (256, 512)
    assert by_cells(fitted)[0, :, 119, 399].any()
    assert frame == PhotoFrame(30, 100, 120, 400)


def scores(words: list[tuple[int, int, int, int]], size: tuple[int, int] = (100, 300)) -> torch.Tensor:
    """Score maps with certain letters in these cells: first and last row, first and last column."""
    maps = torch.zeros(1, 2, *size)
    for top, bottom, left, right in words:
        maps[0, 0, top:bottom, left:right] = 0.9
    return maps


def found(maps: torch.Tensor, photo: torch.Tensor, **options: float) -> tuple[list, list]:
    frame = PhotoFrame(*photo.shape[:2], 2 * maps.shape[2], 2 * maps.shape[3])
    return Words(**options)(photo, frame, maps)


def test_each_word_is_boxed_and_cut_out():
    photo = noise(200, 600)
    crops, boxes = found(scores([(10, 16, 20, 60), (10, 16, 80, 90), (50, 56, 0, 299)]), photo)
    assert [tuple(crop.shape) for crop in crops] == [(64, 64, 4), (64, 32, 4), (64, 256, 4)]
    for (left, top, right, bottom), inside in zip(
        boxes, ((40, 20, 120, 32), (160, 20, 180, 32)), strict=False
    ):
        assert left < inside[0] < inside[2] < right
        assert top < inside[1] < inside[3] < bottom
    assert boxes[2][0] == 0, "a box ends at the edge of the photo"
    assert boxes[2][2] == 600


def test_boxes_are_those_of_the_photo_not_of_the_fitted_one():
    maps = scores([(10, 16, 20, 60)])
    _, ((left, top, right, bottom),) = found(maps, noise(200, 600))
    _, (larger,) = found(maps, noise(600, 1800))
    assert larger == [3 * left, 3 * top, 3 * right, 3 * bottom]


@pytest.mark.parametrize(
    "maps",
    [
        pytest.param(scores([]), id="nothing"),
        pytest.param(scores([(10, 13, 20, 23)]), id="too small"),
        pytest.param(scores([(10, 16, 20, 60)]) * 0.7, id="not sure enough"),
        pytest.param(scores([(10, 16, 20, 60)]).flip(1), id="links without letters"),
    ],
)
def test_no_words(maps):
    assert found(maps, noise(200, 600)) == ([], [])


def test_a_link_makes_one_word_of_two():
    maps = scores([(10, 16, 20, 40), (10, 16, 44, 60)])
    assert len(found(maps, noise(200, 600))[1]) == 2
    maps[0, 1, 12:14, 38:46] = 0.8
    assert len(found(maps, noise(200, 600))[1]) == 1


def test_a_crop_is_filled_with_its_last_column():
    photo = noise(200, 600)
    photo[:, 300:] = 200
    ((crop,), _) = found(scores([(10, 16, 20, 160)]), photo)
    pixels = crop.flatten(1)
    assert pixels.shape[1] in WIDTHS
    assert (pixels[:, -1] == 200).all()


def strips(text: str) -> torch.Tensor:
    """Letters as the reader numbers them; an underscore is the blank."""
    return torch.tensor([0 if letter == "_" else LETTERS.index(letter) + 1 for letter in text])


@pytest.mark.parametrize(
    ("shown", "text"),
    [("__hh_eee_l_ll_o", "hello"), ("aa", "a"), ("a_a", "aa"), ("____", ""), ("", ""), (" _a b ", "a b")],
)
def test_spelling(shown, text):
    letters = strips(shown)
    sureness = torch.where(letters == 0, 0.1, 0.8)
    found_text, sure = spell_word(letters, sureness)
    assert found_text == text
    assert sure == pytest.approx(0.8 if text else 0.0)


def word(text: str, left: int, top: int, height: int = 20) -> dict:
    return {"text": text, "box": [left, top, left + 10 * len(text), top + height], "sureness": 1.0}


def test_lines_are_read_from_top_to_bottom_and_left_to_right():
    words = [word("d", 50, 44), word("b", 90, 4), word("a", 10, 0), word("c", 5, 40), word("-", 60, 8, 4)]
    assert [[each["text"] for each in line] for line in group_lines(words)] == [["a", "-", "b"], ["c", "d"]]


def test_a_photo_becomes_words_and_text():
    letters = [strips("on__e"), strips("____"), strips("t_wo"), strips("no")]
    boxes = [[50, 0, 90, 20], [0, 0, 9, 9], [0, 30, 40, 50], [0, 0, 40, 20]]
    sureness = [torch.full((len(row),), 0.9) for row in letters[:3]] + [torch.full((2,), 0.1)]
    words, text = Spell()(letters, sureness, boxes)
    assert text == "one\ntwo"
    assert words[0] == {"text": "one", "box": [50, 0, 90, 20], "sureness": pytest.approx(0.9), "line": 0}
    assert Spell()([], [], []) == ([], "")


def test_boxes_are_drawn_into_a_copy():
    photo = noise(60, 80)
    before = photo.clone()
    drawn = AnnotateWords(box="#ff0000", line=1)(photo, [word("hello", 10, 10)])
    assert photo.equal(before)
    assert drawn[10, 30].tolist() == [255, 0, 0]
    assert drawn[20, 30].equal(photo[20, 30])
    assert AnnotateWords()(photo, []).equal(photo)

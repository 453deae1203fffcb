"""Pictures of shapes and questions about them: what is drawn is what is said, in words that the model knows."""

from __future__ import annotations

import random

import pytest
import torch

from orchestrator_stages.demos.chat import questions
from orchestrator_stages.demos.chat.scenes import COLOURS, GROUNDS, Scene, Shape, draw, random_scene

SCENES = [random_scene(random.Random(seed)) for seed in range(200)]


def shape(kind: str, colour: str, right: float, down: float, size: str = "small") -> Shape:
    return Shape(kind, colour, size, (right, down), 0.11, COLOURS[colour])


TWO = Scene("white", (shape("circle", "red", 0.2, 0.3), shape("cross", "orange", 0.7, 0.6, "large")))
SAME = Scene("black", (shape("circle", "red", 0.2, 0.3), shape("circle", "blue", 0.7, 0.6)))


def test_shapes_lie_within_the_picture_apart_and_in_order():
    assert len({scene.ground for scene in SCENES}) == 2
    assert {len(scene.shapes) for scene in SCENES} == {1, 2, 3}
    for scene in SCENES:
        assert list(scene.shapes) == sorted(scene.shapes, key=lambda one: one.place[0])
        for at, one in enumerate(scene.shapes):
            assert all(one.radius < place < 1 - one.radius for place in one.place)
            for other in scene.shapes[:at]:
                distances = [abs(a - b) for a, b in zip(one.place, other.place, strict=True)]
                assert min(distances) > 0.05
                assert max(distances) > one.radius + other.radius


@pytest.mark.parametrize("side", [48])
def test_a_shape_has_its_colour_in_its_middle_and_the_ground_is_in_the_corner(side: int):
    pictures = draw(SCENES, side)
    assert pictures.shape == (len(SCENES), 3, side, side)
    for scene, picture in zip(SCENES, pictures, strict=True):
        assert torch.allclose(picture[:, 0, 0], torch.full((3,), GROUNDS[scene.ground]))
        for one in scene.shapes:
            x, y = (int(place * side) for place in one.place)
            assert torch.allclose(picture[:, y, x], torch.tensor(one.shade), atol=1e-5)


def test_a_kind_covers_what_it_should():
    """A square more than a circle of the same radius, a triangle less, a cross least of all but it; by area."""
    side, radius = 400, 0.3
    areas = {}
    for kind in ("circle", "square", "triangle", "cross"):
        (picture,) = draw(
            [Scene("black", (Shape(kind, "red", "large", (0.5, 0.5), radius, (1.0, 1.0, 1.0)),))], side
        )
        areas[kind] = float((picture[0] > 0.5).float().mean()) / radius**2
    expected = {"circle": 3.1416, "square": 2.56, "triangle": 1.299, "cross": 4 * 0.33 * 2 - 4 * 0.33**2}
    assert areas == pytest.approx(expected, rel=0.03)


def test_a_smaller_scene_beside_a_larger_one_is_drawn_as_alone():
    together, alone = (
        draw([TWO, Scene("black", TWO.shapes[:1])], 48)[1],
        draw([Scene("black", TWO.shapes[:1])], 48)[0],
    )
    assert together.equal(alone)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (questions.describe(TWO), "a small red circle and a large orange cross on white"),
        (questions.colour_of(TWO, "circle"), "red"),
        (questions.colour_of(TWO, "square"), "there is no square"),
        (questions.colour_of(SAME, "circle"), "red and blue"),
        (questions.beside(TWO, "left of", "cross"), "a red circle"),
        (questions.beside(TWO, "left of", "circle"), "nothing"),
        (questions.beside(TWO, "below", "circle", "red"), "an orange cross"),
        (questions.beside(TWO, "above", "circle", "blue"), "there is no blue circle"),
        (questions.beside(SAME, "above", "circle"), "there are two circles"),
        (questions.beside(SAME, "right of", "circle", "red"), "a blue circle"),
        (questions.of_colour(TWO, "orange"), "the cross"),
        (questions.of_colour(TWO, "green"), "nothing"),
        (questions.is_there(TWO, "cross", "orange"), "yes"),
        (questions.is_there(TWO, "cross", "red"), "no"),
        (questions.size_of(TWO, "cross"), "large"),
    ],
)
def test_answers_are_true(answer: str, expected: str):
    assert answer == expected


def test_questions_and_answers_are_of_words_that_the_model_knows():
    words = pytest.importorskip("orchestrator_stages.demos.chat.words")
    tokenizer = words.make_tokenizer()
    chance = random.Random(0)
    for scene in SCENES:
        for text in questions.random_question(scene, chance):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text
    assert tokenizer("What  color is it")["input_ids"][:2] == tokenizer("what colour")["input_ids"]

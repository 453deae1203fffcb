"""The cascade, called by hand, finds what is known to be in photos.

The pipeline is compared with it in `test_faces.py`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from orchestrator_stages.demos.faces.annotate import AnnotateFaces
from orchestrator_stages.demos.faces.finish import LANDMARKS
from tests.stages.demos.cascade import Cascade
from tests.stages.demos.conftest import FACELESS, FACES

BOX = (181, 59, 268, 175)
"""The astronaut's face, as the cascade without a letterbox finds it."""


def assert_sane(face: dict[str, Any], height: int, width: int) -> None:
    left, top, right, bottom = face["box"]
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert face["landmark_names"] == list(LANDMARKS)
    at = dict(zip(LANDMARKS, face["landmarks"], strict=True))
    eyes, mouth = (at["left_eye"], at["right_eye"]), (at["mouth_left"], at["mouth_right"])
    assert eyes[0][0] < at["nose"][0] < eyes[1][0]
    assert mouth[0][0] < mouth[1][0]
    assert max(eye[1] for eye in eyes) < at["nose"][1] < min(corner[1] for corner in mouth)
    assert all(left < x < right and top < y < bottom for x, y in at.values())


def test_one_face_in_the_astronaut(photo, cascade):
    (face,) = cascade(photo("astronaut")).faces
    assert face["score"] >= 0.9995
    assert face["box"] == pytest.approx(BOX, abs=3)
    assert_sane(face, 512, 512)


def test_the_letterbox_changes_no_more_than_a_pixel_or_two(photo, cascade):
    (face,) = cascade(photo("astronaut")).faces
    (direct,) = cascade.direct(photo("astronaut")).faces
    assert face["box"] == pytest.approx(direct["box"], abs=2)
    for point, other in zip(face["landmarks"], direct["landmarks"], strict=True):
        assert point == pytest.approx(other, abs=2)


@pytest.mark.parametrize("name", FACELESS)
def test_no_face(name, photo, cascade):
    picture = photo(name)
    seen = cascade(picture)
    assert seen.faces == []
    assert seen.annotated.equal(picture)
    assert seen.annotated is not picture


def test_coffee_has_proposals_but_no_candidate(photo, cascade):
    seen = cascade(photo("coffee"))
    assert seen.proposals > 0
    assert seen.candidates == 0


def test_every_face_of_the_grid(photo, cascade):
    seen = cascade(photo("grid"))
    cells = {(int(x // 100), int(y // 100)) for face in seen.faces for x, y in [face["landmarks"][2]]}
    assert len(seen.faces) == len(cells) == FACES
    assert seen.proposals > 128, "the grid is the picture that needs more than the largest bucket"


def test_four_faces_in_the_montage(photo, cascade):
    faces = cascade(photo("montage")).faces
    assert len(faces) == 4
    assert [face["score"] for face in faces] == sorted((face["score"] for face in faces), reverse=True)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_faces_are_found_where_they_are_in_a_resized_photo(scale, photo, cascade):
    side = int(512 * scale)
    picture = torch.nn.functional.interpolate(
        photo("astronaut").permute(2, 0, 1)[None], size=(side, side), mode="bilinear", antialias=True
    )[0].permute(1, 2, 0)
    (face,) = cascade(picture).faces
    assert face["box"] == pytest.approx([scale * edge for edge in BOX], abs=5 * scale)


def test_small_faces_need_a_larger_square(photo):
    tiny = torch.nn.functional.interpolate(
        photo("astronaut").permute(2, 0, 1)[None], size=(60, 60), mode="bilinear", antialias=True
    )[0].permute(1, 2, 0)
    assert Cascade()(tiny).faces == []
    (face,) = Cascade(enlarge=8.0)(tiny).faces
    assert face["box"] == pytest.approx([edge * 60 / 512 for edge in BOX], abs=2)


def test_faces_are_ready_for_json(photo, cascade):
    faces = cascade(photo("astronaut")).faces
    assert json.loads(json.dumps(faces)) == faces


def test_annotating_draws_on_a_copy(photo, cascade):
    picture = photo("astronaut")
    seen = cascade(picture)
    assert picture.equal(photo("astronaut"))
    changed = (seen.annotated != picture).any(2)
    left, top, right, bottom = (round(edge) for edge in seen.faces[0]["box"])
    assert changed[top + 5, left]
    assert changed[round(seen.faces[0]["landmarks"][2][1]), round(seen.faces[0]["landmarks"][2][0])]
    changed[top - 3 : bottom + 4, left - 3 : right + 4] = False
    assert not changed.any()


def test_a_face_at_the_edge_of_a_tiny_photo_can_be_drawn():
    face = {"box": [0.0, 0.0, 2.0, 3.0], "landmarks": [[-4.0, 1.0]] * 5}
    assert AnnotateFaces()(torch.zeros(3, 2, 3, dtype=torch.uint8), [face]).shape == (3, 2, 3)

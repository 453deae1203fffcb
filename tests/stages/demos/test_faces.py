"""The pipeline ``faces`` gives what the cascade called by hand gives, whatever the number of crops."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from orchestrator import Pipeline, Plan, Session
from orchestrator.pipeline import stage_overrides
from orchestrator_stages.demos.faces.letterbox import PHOTO
from orchestrator_stages.demos.faces.pipeline import faces
from tests.stages.demos.cascade import Cascade, Seen
from tests.stages.demos.conftest import PHOTOS


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with faces().plan(device="cpu").load() as session:
        yield session


def assert_same(result: dict, seen: Seen) -> None:
    """Boxes and scores are rounded, and padding a batch may move a float by its last bit."""
    assert len(result["faces"]) == len(seen.faces)
    for face, other in zip(result["faces"], seen.faces, strict=True):
        assert face["box"] == pytest.approx(other["box"], abs=0.02)
        assert face["score"] == pytest.approx(other["score"], abs=2e-6)
        for point, expected in zip(face["landmarks"], other["landmarks"], strict=True):
            assert point == pytest.approx(expected, abs=0.02)
        assert face["landmark_names"] == other["landmark_names"]


@pytest.mark.parametrize("name", PHOTOS)
def test_same_as_by_hand(name, photo, session, cascade):
    picture = photo(name)
    result, seen = session(image=picture), cascade(picture)
    assert_same(result, seen)
    assert result["annotated"].dtype == torch.uint8
    assert result["annotated"].equal(seen.annotated)
    assert picture.equal(photo(name)), "the photo itself is not drawn on"


@pytest.mark.parametrize(
    ("name", "dispatches"),
    [
        pytest.param("astronaut", 16, id="each network once for each level or batch of crops"),
        pytest.param("coffee", 15, id="no candidates: onet is skipped"),
        pytest.param("grey", 14, id="no proposals: rnet is skipped as well"),
        pytest.param("grid", 17, id="more than 128 proposals: rnet runs in two chunks"),
    ],
)
def test_what_a_request_does_is_known_from_its_sizes(name, dispatches, photo, cascade):
    picture, seen = photo(name), cascade(photo(name))
    plan = faces().plan(device="cpu")
    with plan.load() as session:
        session(image=picture)
        stats = session.stats
    height, width = picture.shape[:2]
    sizes = {"height": height, "width": width, "proposals": seen.proposals, "candidates": seen.candidates}
    expected = plan.summary_for(sizes)
    assert stats["dispatches"] == dispatches
    assert {key: stats[key] for key in expected} == expected


def test_several_threads_share_a_session(photo, session):
    pictures = [photo(name) for name in PHOTOS] * 2
    expected = [session(image=picture)["faces"] for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda picture: session(image=picture)["faces"], pictures))
    assert results == expected


def test_photos_of_all_sizes_follow_one_another(photo, session, cascade):
    names = ["grid", "grey", "one pixel", "astronaut", "coffee", "astronaut"]
    results = session.stream([{"image": photo(name)} for name in names])
    for name, result in zip(names, results, strict=True):
        assert_same(result, cascade(photo(name)))


def test_one_set_of_weights_for_all_levels():
    graph = faces().freeze()
    calls = [name for name, call in graph.calls.items() if call.stage is graph.stages["pnet"]]
    assert calls == ["pnet", *(f"pnet#{number}" for number in range(2, 9))]


def test_building_reads_no_weights(monkeypatch, tmp_path):
    monkeypatch.setattr("orchestrator_stages.demos.faces.trained.FOLDER", tmp_path)
    faces().freeze()


def test_options_reach_their_stages(photo):
    with stage_overrides({"propose": {"threshold": 0.9}, "finish": {"threshold": 0.99999}}):
        strict = faces(size=320, min_face=60)
    with strict.plan(device="cpu").load() as session:
        assert session(image=photo("astronaut"))["faces"] == []


def test_small_faces_are_found_on_request(photo):
    tiny = photo("astronaut").permute(2, 0, 1)[None]
    tiny = torch.nn.functional.interpolate(tiny, size=(60, 60), mode="bilinear", antialias=True)
    tiny = tiny[0].permute(1, 2, 0)
    with stage_overrides({"letterbox": {"enlarge": 8.0}}):
        pipeline = faces()
    with pipeline.plan(device="cpu").load() as session:
        assert_same(session(image=tiny), Cascade(enlarge=8.0)(tiny))


def test_the_picture_crosses_to_the_device_once():
    plan = faces().plan(device="cuda")
    square = [edge for edge in plan.edges if edge.source == "letterbox.square"]
    assert {edge.target for edge in square} == {"pyramid.square", "propose.square", "refine.square"}
    assert plan.summary["uploads"] == 3, "the square, the proposals and the candidates"


def test_a_plan_read_from_json_is_bound_and_run(photo):
    pipeline = faces()
    plan = pipeline.plan(device="cpu")
    assert dict(plan.weights) == {"cpu": 4 * (6632 + 100178 + 389040)}
    with pipeline.bind(Plan.from_json(plan.to_json())).load() as session:
        assert len(session(image=photo("astronaut"))["faces"]) == 1


def test_the_cascade_is_a_stage_of_another_pipeline(photo):
    pipeline = Pipeline("outer")
    found = pipeline.add("find", faces())(pipeline.input("photo", PHOTO))
    pipeline.output("people", found["faces"])
    with pipeline.plan(device="cpu").load() as session:
        assert len(session(photo=photo("montage"))["people"]) == 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", PHOTOS)
def test_same_on_cuda(name, photo, cascade):
    with faces().plan(device="cuda").load() as session:
        found, seen = session(image=photo(name))["faces"], cascade(photo(name)).faces
    assert len(found) == len(seen)
    for face, other in zip(found, seen, strict=True):
        assert face["box"] == pytest.approx(other["box"], abs=0.5)
        assert face["score"] == pytest.approx(other["score"], abs=1e-3)

"""The pipeline `digits`: the same pictures as its modules give in a Python loop, and pictures of what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from orchestrator import InputError, Session, StageError
from orchestrator_stages.demos.digits.pipeline import digits
from tests.stages.demos.painting import Painting, ink, numbers, readings, slant

DEMO = "the bold digit 7 leaning right"


@pytest.fixture(scope="module")
def painting() -> Painting:
    return Painting()


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with digits(steps=10).plan(device="cpu").load() as session:
        yield session


def paint(prompts: list[str] | str, seed: int = 0, **options: Any) -> dict[str, Any]:
    text = prompts if isinstance(prompts, str) else "\n".join(prompts)
    with digits(**options).plan(device="cpu").load() as session:
        return session(prompt=text, seed=seed)


@pytest.mark.parametrize(
    "options", [{}, {"seed": 3, "steps": 4}, {"guidance": 1.0, "steps": 7}, {"steps": 1}]
)
def test_one_picture_is_that_of_a_loop_by_hand(painting, options):
    given = {"steps": 10, **options}
    assert paint(DEMO, **given)["pictures"].equal(painting([DEMO], **given).pictures)


def test_many_pictures_are_those_of_a_loop_by_hand(painting):
    prompts = ["a thin 1", "8 leaning left", "", "the bold four"]
    result = paint(prompts, steps=5, strip=True)
    expected = painting(prompts, steps=5)
    assert result["pictures"].equal(expected.pictures)
    assert result["picture"].shape == (160, 4 * 160)
    assert result["strip"].shape == (4 * 160, 5 * 160)


@pytest.mark.parametrize("count", [1, 3, 6, 11])
def test_padding_and_chunks_change_next_to_nothing(count):
    """Sums are taken in another order in another batch, which may tip a byte by one."""
    prompts = numbers(2)[:count]
    found = paint(prompts, steps=4, batch=(1, 4))["pictures"]
    expected = paint(prompts, steps=4, batch=count)["pictures"]
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_seed_gives_the_same_pictures_again_and_another_seed_others(session):
    first, again, other = (session(prompt=DEMO, seed=seed)["pictures"] for seed in (5, 5, 6))
    assert first.equal(again)
    assert not first.equal(other)


def test_without_a_seed_it_is_zero(session):
    assert session(prompt=DEMO)["pictures"].equal(session(prompt=DEMO, seed=0)["pictures"])


@pytest.mark.parametrize("seed", ["5", 5.0])
def test_a_seed_that_is_no_int_is_refused(session, seed):
    with pytest.raises(InputError, match="'seed' takes int"):
        session(prompt=DEMO, seed=seed)


def test_a_picture_of_a_batch_can_be_painted_alone(session):
    many = session(prompt=f"a thin 3\n{DEMO}")["pictures"]
    alone = session(prompt=DEMO, seed=1)["pictures"]
    assert (many[1].int() - alone[0].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("prompt", "said"), [("the bald 7", "Did you mean 'bold'"), ("a " * 9, "at most 8 words")]
)
def test_a_prompt_that_cannot_be_read_is_refused(session, prompt, said):
    with pytest.raises(StageError, match=said) as caught:
        session(prompt=prompt)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(ValueError, match="steps is an int from 1 to 1000"):
        digits(steps=steps)


def test_the_last_preview_is_the_picture():
    result = paint(DEMO, steps=3, strip=True)
    assert result["strip"][:, -160:].equal(result["picture"])


def test_latents_stay_on_the_device():
    """What crosses the link does not depend on the number of steps, but for the table of times."""
    ten, fifty = (digits(steps=steps, batch=8).plan(device="cuda").summary for steps in (10, 50))
    assert ten["downloads"] == fifty["downloads"] == 1
    assert ten["download_bytes"] == fifty["download_bytes"] == 8 * 32 * 32
    assert ten["uploads"] == fifty["uploads"]


def test_two_hundred_digits_are_read_as_they_were_asked_for(session):
    pytest.importorskip("sklearn")
    pictures = session(prompt="\n".join(numbers(20)))["pictures"]
    asked = [label for label in range(10) for _ in range(20)]
    right = sum(found == label for found, label in zip(readings(pictures), asked, strict=True))
    assert right >= 0.97 * len(asked)


@pytest.mark.slow
def test_fifty_steps_are_read_as_well(session):
    pytest.importorskip("sklearn")
    pictures = paint(numbers(20), steps=50)["pictures"]
    asked = [label for label in range(10) for _ in range(20)]
    right = sum(found == label for found, label in zip(readings(pictures), asked, strict=True))
    assert right >= 0.97 * len(asked)


def test_words_change_what_they_say(session):
    def painted(form: str) -> torch.Tensor:
        pictures: torch.Tensor = session(prompt="\n".join(numbers(6, form)))["pictures"]
        return pictures

    assert ink(painted("a thin {}")) < 0.9 * ink(painted("a bold {}"))
    assert slant(painted("a {} leaning left")) < slant(painted("a {} leaning right")) - 0.1

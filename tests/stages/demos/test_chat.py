"""The pipeline ``chat``: what the model says by itself, and how often that is true."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from orchestrator import Session, StageError
from tests.kit import refuses

pytest.importorskip("transformers")

from orchestrator_stages.demos.chat.model import FOLDER, load_model, make_processor
from orchestrator_stages.demos.chat.pipeline import EXAMPLE, WORDS_OF_AN_ANSWER, chat, example_inputs
from orchestrator_stages.demos.chat.questions import describe, random_question
from orchestrator_stages.demos.chat.scenes import draw, random_scene

pytestmark = pytest.mark.slow

FRESH = 20_261_128
"""Seed of pictures that training has not seen."""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with chat().plan().load() as session:
        yield session


def pixels(scenes: list[Any], side: int) -> list[torch.Tensor]:
    return [(picture.permute(1, 2, 0) * 255).round().byte().contiguous() for picture in draw(scenes, side)]


def generate(pictures: list[torch.Tensor], questions: list[str]) -> list[str]:
    """What one would write without this project, for all at once."""
    model, processor = load_model(), make_processor()
    content = [[{"type": "text", "text": question}, {"type": "image"}] for question in questions]
    messages = [[{"role": "user", "content": parts}] for parts in content]
    texts = [processor.apply_chat_template(one, add_generation_prompt=True) for one in messages]
    images = [Image.fromarray(picture.numpy()) for picture in pictures]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=WORDS_OF_AN_ANSWER, do_sample=False)
    answers = tokens[:, inputs["input_ids"].shape[1] :]
    return [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers]


FLOORS = {"describe the": 0.97, "colour is the": 0.95, "how many": 0.92, "left of": 0.92, "": 0.97}
"""Of the questions with these words at least that share is answered to the last word; the pages say how many are."""


def test_answers_are_true_of_fresh_pictures():
    chance = random.Random(FRESH)
    scenes = [random_scene(chance) for _ in range(400)]
    pairs = [random_question(scene, chance) for scene in scenes]
    answers = generate(pixels(scenes, 96), [question for question, _ in pairs])
    for words, floor in FLOORS.items():
        results = [
            answer == true
            for answer, (question, true) in zip(answers, pairs, strict=True)
            if words in question
        ]
        assert len(results) > 20, words
        assert sum(results) >= floor * len(results), (words, sum(results) / len(results))


def test_the_size_of_a_picture_does_not_matter_to_a_description():
    chance = random.Random(FRESH + 2)
    scenes = [random_scene(chance) for _ in range(40)]
    for side in (60, 301):
        answers = generate(pixels(scenes, side), ["describe the picture."] * len(scenes))
        assert sum(map(str.__eq__, answers, map(describe, scenes))) >= 38


def test_the_pipeline_says_what_the_model_says(session: Session):
    chance = random.Random(FRESH + 1)
    scenes = [random_scene(chance) for _ in range(8)]
    questions = [random_question(scene, chance)[0] for scene in scenes]
    pictures = pixels(scenes, 120)
    expected = generate(pictures, questions)
    answers = [
        session(image=picture, question=question)["answer"]
        for picture, question in zip(pictures, questions, strict=True)
    ]
    assert answers == expected


def test_the_example_is_described(session: Session):
    assert session(**example_inputs({}))["answer"] == describe(random_scene(random.Random(EXAMPLE)))


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("", "is empty"),
        ("what color is the cirle?", "'cirle', which is not known. Did you mean 'circle'?"),
        ("how many squares " * 10, "has at most"),
    ],
)
def test_a_question_that_cannot_be_read_is_refused(session: Session, question: str, text: str):
    image = example_inputs({})["image"]
    refuses(StageError, text, lambda: session(image=image, question=question))


def test_the_weights_are_those_that_the_script_wrote():
    digest, name = (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").split()
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest
    assert (FOLDER / name).stat().st_size < 2_000_000

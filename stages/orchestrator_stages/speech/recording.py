"""A recording: samples and how many there are in a second.

Resampling is a convolution with a windowed sinc, one filter for each phase of the output: from 44,100 to 16,000 samples
a second, 441 to 160, there are 160 of them.
"""

from __future__ import annotations

import importlib
import math
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Recording", "resampled"]

ZEROS = 24
"""Zero crossings of the sinc to each side: how sharply the filter cuts."""

ROLLOFF = 0.95
"""Where the filter cuts, as a share of the highest frequency that both rates can hold."""


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

        Raises:
            OSError: The file cannot be opened.
            ValueError: It is no sound that can be read.
        """
        try:
            samples, rate = _read_wav(Path(path))
        except (wave.Error, EOFError) as error:
            samples, rate = _read_other(Path(path), error)
        return cls(samples.mean(1), rate)


def _read_wav(path: Path) -> tuple[Tensor, int]:
    with wave.open(str(path), "rb") as file:
        channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
        data = file.readframes(file.getnframes())
    data = data[: len(data) // (channels * width) * channels * width]
    if width == 1:
        whole = np.frombuffer(data, np.uint8).astype(np.int32) - 128
    elif width == 3:
        octets = np.frombuffer(data, np.uint8).reshape(-1, 3)
        # Into the upper three bytes of four, so that the sign is that of the number.
        wide = np.zeros((len(octets), 4), np.uint8)
        wide[:, 1:] = octets
        whole = wide.view("<i4")[:, 0] >> 8
    else:
        whole = np.frombuffer(data, f"<i{width}")
    samples = whole.astype(np.float64) / 2 ** (8 * width - 1)
    return torch.from_numpy(samples.astype(np.float32).reshape(-1, channels)), rate


def _read_other(path: Path, cause: Exception) -> tuple[Tensor, int]:
    try:
        soundfile = importlib.import_module("soundfile")
    except ImportError:
        raise ValueError(
            f"{str(path)!r} is no WAV file of whole numbers ({cause}); to read other sound files: pip install "
            f"soundfile."
        ) from cause
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} cannot be read as sound: {error}.") from error
    return torch.from_numpy(samples), rate


def resampled(recording: Recording, rate: int) -> Recording:
    """Returns the recording at another rate."""
    if rate == recording.rate:
        return recording
    divisor = math.gcd(rate, recording.rate)
    up, down = rate // divisor, recording.rate // divisor
    cut = min(up, down) * ROLLOFF
    reach = math.ceil(ZEROS * down / cut)
    # Where the taps of each phase lie, relative to the output sample, in samples of the input.
    taps = torch.arange(-reach, reach + down, dtype=torch.float64)[None]
    phases = torch.arange(up, dtype=torch.float64)[:, None] * down / up
    place = ((taps - phases) * cut / down).clamp(-ZEROS, ZEROS)
    window = torch.cos(place * math.pi / ZEROS / 2).square()
    kernel = (torch.sinc(place) * window * cut / down).to(torch.float32)
    length = math.ceil(len(recording.samples) * up / down)
    padded = functional.pad(recording.samples.to(torch.float32), (reach, reach + down))
    phased = functional.conv1d(padded[None, None], kernel[:, None], stride=down)[0]
    return Recording(phased.T.reshape(-1)[:length].contiguous(), rate)

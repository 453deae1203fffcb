"""The host step before the encoder: a recording of any length into spectrograms that the model can hear.

What is longer than 30 s is cut where it is quietest, between the 20th and the 30th second of what is left, so that
words stay whole. All segments of a recording get the frames that the longest of them needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.demos.speech.mel import FRAME, LONGEST, RATE, log_mel
from orchestrator_stages.demos.speech.recording import Recording, resample

__all__ = ["MARGIN", "SEGMENTS", "TOKENS", "Cut", "segments"]

SEGMENTS = (1, 2, 4)
"""Numbers of segments that are compiled."""

TOKENS = (250, 500, 750, 1000, 1500)
"""Lengths that the encoder is compiled for; a token is 20 ms."""

MARGIN = RATE // 2
"""Samples of silence that follow a recording at least, unless it fills the longest bucket: Whisper was trained on 30 s
and takes an abrupt end for a word that goes on."""

EARLIEST = 20 * RATE
"""A segment of a longer recording lasts at least so many samples."""

PAUSE = RATE // 5
"""Samples over which loudness is averaged to find where it is quietest."""


def segments(samples: Tensor) -> list[Tensor]:
    """Returns the parts of a recording at 16 kHz, each of at most 30 s."""
    parts = []
    while len(samples) > LONGEST:
        power = samples[EARLIEST:LONGEST].double().square()
        sums = torch.cat([power.new_zeros(1), power.cumsum(0)])
        quietest = int((sums[PAUSE:] - sums[:-PAUSE]).argmin())
        end = EARLIEST + quietest + PAUSE // 2
        parts.append(samples[:end])
        samples = samples[end:]
    return [*parts, samples]


class Cut(HostStage):
    """Host stage: a recording into spectrograms.

    Takes ``audio``, a :class:`~orchestrator_stages.demos.speech.recording.Recording`. Gives ``mel`` ``[segments, mels,
    tokens, 2]``, float32: two frames for each token of the encoder.

    Args:
        mels: Number of filters.
        tokens: Lengths that the encoder is compiled for.
        batch: Numbers of segments that are compiled.
    """

    def __init__(
        self, mels: int = 80, tokens: tuple[int, ...] = TOKENS, batch: tuple[int, ...] = SEGMENTS
    ) -> None:
        super().__init__(tag="cut")
        self.mels = mels
        # A recording that is filled up with itself is another one, so each length is compiled as it is.
        length = Dim("tokens", buckets=tokens, exact=True)
        self.lengths = length.buckets
        self.inputs = {"audio": Recording}
        # Rows that fill up the batch repeat the first, so that they end when it does.
        spec = TensorSpec((Dim("segments", buckets=batch, batch=True), mels, length, 2), pad="repeat_first")
        self.outputs = {"mel": spec}

    def forward(self, audio: Recording) -> Tensor:
        """Cuts it.

        Raises:
            ValueError: It has no samples.
        """
        if not len(audio.samples):
            raise ValueError("The recording has no samples.")
        parts = segments(resample(audio, RATE).samples)
        samples = max(map(len, parts)) + MARGIN
        fitting = [length for length in self.lengths if length * 2 * FRAME >= samples]
        tokens = min(fitting, default=self.lengths[-1])
        return torch.stack(
            [log_mel(part, 2 * tokens, self.mels).view(self.mels, tokens, 2) for part in parts]
        )

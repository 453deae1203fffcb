"""Log-mel spectrograms as Whisper hears them: 100 frames a second, loudness relative to the loudest moment.

The constants are those of OpenAI's Whisper and of ``WhisperFeatureExtractor`` in transformers, and the filters are
Slaney's: equal areas on a scale that is linear up to 1000 Hz and logarithmic above.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["FRAME", "LONGEST", "RATE", "log_mel"]

RATE = 16_000
"""Samples a second."""

FRAME = 160
"""Samples from one frame to the next."""

LONGEST = 30 * RATE
"""Samples that the model can hear at once."""

WINDOW = 400
"""Samples that a frame looks at."""

LINEAR, STEP = 1000.0, 200 / 3
"""Up to which frequency the mel scale is linear, and how many Hz a mel is there."""

RATIO = 6.4 ** (1 / 27)
"""From one mel to the next above."""


def _to_hertz(mels: Tensor) -> Tensor:
    bend = LINEAR / STEP
    return torch.where(mels < bend, mels * STEP, LINEAR * RATIO ** (mels - bend))


def _to_mel(hertz: Tensor) -> Tensor:
    above = LINEAR / STEP + torch.log(hertz.clamp(min=1e-9) / LINEAR) / torch.log(
        torch.tensor(RATIO, dtype=hertz.dtype)
    )
    return torch.where(hertz < LINEAR, hertz / STEP, above)


@functools.lru_cache
def filters(mels: int) -> Tensor:
    """Returns the filters ``[mels, frequencies]``, float32."""
    ends = _to_mel(torch.tensor([0.0, RATE / 2], dtype=torch.float64))
    corners = _to_hertz(torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    widths = corners.diff()[:, None]
    distance = corners[:, None] - frequencies
    rising, falling = -distance[:-2] / widths[:-1], distance[2:] / widths[1:]
    shape = torch.minimum(rising, falling).clamp(min=0)
    return (shape * (2 / (corners[2:] - corners[:-2]))[:, None]).to(torch.float32)


def log_mel(samples: Tensor, frames: int, mels: int = 80) -> Tensor:
    """Returns the spectrogram ``[mels, frames]``, float32, with silence after the end.

    Args:
        samples: ``[samples]``, float32, at 16 kHz; what is beyond the frames is not heard.
        frames: How many frames, 10 ms each.
        mels: Number of filters.
    """
    # Silence beyond the last frame, as if the recording went on to the 30 s that the model was trained on: the last
    # window must not see a mirror image of the end.
    length = min(frames * FRAME + WINDOW, LONGEST)
    padded_samples = samples.new_zeros(max(length, frames * FRAME))
    count = min(len(samples), frames * FRAME)
    padded_samples[:count] = samples[:count]
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(padded_samples, WINDOW, FRAME, window=window, return_complex=True)
    power = spectrum[:, :frames].abs() ** 2
    loudness = (filters(mels) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(loudness, loudness.max() - 8) + 4) / 4

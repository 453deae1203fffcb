"""Host stages that make of pictures or recordings what an encoder reads, with a processor of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator import HostStage, TensorSpec

__all__ = ["Extract", "Process"]


class Process(HostStage):
    """Host stage: pictures to pixels.

    Takes ``image``, a list of pictures of any size: PIL images, or ``[height, width, 3]`` uint8 tensors. Gives
    ``pixel_values`` ``[batch, channels, height, width]``.

    Args:
        processor: An image processor of transformers.
        spec: What the encoder reads.
    """

    def __init__(self, processor: Any, spec: TensorSpec) -> None:
        super().__init__(tag="process")
        self.processor = processor
        self.dtype = spec.dtype
        self.inputs = {"image": list}
        self.outputs = {"pixel_values": spec}

    def forward(self, image: list[Any]) -> Tensor:
        """Resizes and normalises them."""
        pictures = [item.numpy() if isinstance(item, Tensor) else item for item in image]
        pixels: Tensor = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels.to(self.dtype)


class Extract(HostStage):
    """Host stage: recordings to features.

    Takes ``audio``, a list of waveforms: tensors or arrays of one dim, at the extractor's sampling rate. Gives
    ``input_features`` ``[batch, mels, frames]``, silence after the end.

    Args:
        extractor: A feature extractor of transformers.
        spec: What the encoder reads.
    """

    def __init__(self, extractor: Any, spec: TensorSpec) -> None:
        super().__init__(tag="extract")
        self.extractor = extractor
        self.dtype = spec.dtype
        self.inputs = {"audio": list}
        self.outputs = {"input_features": spec}

    def forward(self, audio: list[Any]) -> Tensor:
        """Computes them.

        Raises:
            ValueError: A recording is longer than the encoder reads.
        """
        waves = [np.asarray(item, dtype=np.float32) for item in audio]
        longest = max(len(wave) for wave in waves)
        if longest > self.extractor.n_samples:
            rate = self.extractor.sampling_rate
            raise ValueError(
                f"A recording lasts {longest / rate:.1f} s, but the model reads at most "
                f"{self.extractor.n_samples / rate:.0f} s. Cut it, or use the pipeline 'speech', which does."
            )
        features = self.extractor(waves, sampling_rate=self.extractor.sampling_rate, return_tensors="np")
        values = np.ascontiguousarray(features["input_features"], dtype=np.float32)
        return torch.from_numpy(values).to(self.dtype)

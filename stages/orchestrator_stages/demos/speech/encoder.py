"""The encoder of Whisper for recordings of any length up to its longest."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AudioEncoder"]


class AudioEncoder(nn.Module):
    """Runs the encoder of Whisper on audio of any length up to its longest.

    The model was trained on 30 s; its own forward takes nothing else. Here only as many positions are added as there
    are frames, so that a shorter recording costs less.

    Args:
        encoder: A ``WhisperEncoder``.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.positions = encoder.embed_positions
        self.layers, self.norm = encoder.layers, encoder.layer_norm

    def forward(self, input_features: Tensor) -> dict[str, Tensor]:
        """Returns ``encoding`` ``[batch, tokens, width]``.

        Args:
            input_features: ``[batch, mels, 2 * tokens]``, or ``[batch, mels, tokens, 2]`` where the number of tokens is
                a named dim.
        """
        mel = input_features.flatten(2)
        states = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)
        states = states + self.positions.weight[: states.shape[1]]
        for layer in self.layers:
            states = layer(states, None)
        return {"encoding": self.norm(states)}

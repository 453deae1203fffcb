"""Encoders as stages of static shape: what is padding comes as a mask, and is hidden in every layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from orchestrator_stages.seq2seq.attention import mask_bias

__all__ = ["AudioEncoder", "ImageEncoder", "TextEncoder"]


class TextEncoder(nn.Module):
    """Runs the encoder of a text model.

    Args:
        encoder: Such as a ``BartEncoder`` or a ``T5Stack``.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns ``[batch, tokens, width]``; ids and mask are ``[batch, tokens]``, int64."""
        bias = mask_bias(attention_mask.bool(), self.encoder.dtype)[:, None, None]
        # A mask of four dims is used as it is: how the library makes one depends on what is in it.
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=bias).last_hidden_state
        return states


class ImageEncoder(nn.Module):
    """Runs the encoder of an image model, and fits its width to the decoder's where they differ.

    Args:
        model: A ``VisionEncoderDecoderModel``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        wide = getattr(model.decoder.config, "cross_attention_hidden_size", None) is not None
        same = model.encoder.config.hidden_size == model.decoder.config.hidden_size
        self.fit = None if same or wide else model.enc_to_dec_proj

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns ``[batch, patches, width]`` of ``[batch, channels, height, width]``."""
        states: Tensor = self.encoder(pixel_values=pixel_values).last_hidden_state
        return states if self.fit is None else self.fit(states)


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

    def forward(self, input_features: Tensor) -> Tensor:
        """Returns ``[batch, tokens, width]``.

        Args:
            input_features: ``[batch, mels, 2 * tokens]``, or ``[batch, mels, tokens, 2]`` where the number of tokens is
                a named dim.
        """
        mel = input_features.flatten(2)
        states = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)
        states = states + self.positions.weight[: states.shape[1]]
        for layer in self.layers:
            states = layer(states, None)
        result: Tensor = self.norm(states)
        return result

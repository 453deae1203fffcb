"""Decoders built like that of BART: Marian, mBART, Pegasus, Whisper and TrOCR have the same modules.

They differ in whether a layer norm comes before or after what it belongs to, in how positions are counted, and in
whether there are norms after the embedding and after the last layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator_stages.seq2seq.attention import append_token, attend, merge_heads, split_heads
from orchestrator_stages.seq2seq.decoder import DecoderLayer, DecoderParts

__all__ = ["NORM_FIRST", "bart_parts"]

#: Model types to whether their layer norms come first.
NORM_FIRST = {
    "bart": False,
    "marian": False,
    "mbart": True,
    "pegasus": True,
    "trocr": False,
    "whisper": True,
}


class BartCross(nn.Module):
    """Keys and values of one layer for what the encoder gave."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.k_proj, self.v_proj = attention.k_proj, attention.v_proj
        self.heads: int = attention.num_heads

    def forward(self, encoding: Tensor) -> Tensor:
        """Returns ``[2, batch, heads, tokens, size]`` of ``[batch, tokens, width]``."""
        return torch.stack(
            [split_heads(self.k_proj(encoding), self.heads), split_heads(self.v_proj(encoding), self.heads)]
        )


class BartLayer(DecoderLayer):
    """One layer.

    Args:
        layer: The family's own, such as a ``BartDecoderLayer``.
        norm_first: Whether its norms come first.
    """

    def __init__(self, layer: Any, *, norm_first: bool) -> None:
        super().__init__()
        # The modules, not copies: the weights are the model's own. Those that make keys and values of what the encoder
        # gave are in `BartCross`, which runs once.
        own, cross = layer.self_attn, layer.encoder_attn
        self.norm_first = norm_first
        self.heads: int = own.num_heads
        self.scaling: float = own.scaling
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            own.q_proj,
            own.k_proj,
            own.v_proj,
            own.out_proj,
        )
        self.cross_q_proj, self.cross_out_proj = cross.q_proj, cross.out_proj
        self.fc1, self.fc2, self.activation = layer.fc1, layer.fc2, layer.activation_fn
        self.own_norm = layer.self_attn_layer_norm
        self.cross_norm = layer.encoder_attn_layer_norm
        self.last_norm = layer.final_layer_norm

    def _before(self, norm: nn.Module, states: Tensor) -> Tensor:
        return norm(states) if self.norm_first else states

    def _after(self, norm: nn.Module, states: Tensor) -> Tensor:
        return states if self.norm_first else norm(states)

    def forward(
        self,
        states: Tensor,
        position: Tensor,
        past: Tensor,
        past_bias: Tensor,
        memory: Tensor,
        memory_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Runs the layer for one token."""
        # Over its own past, this token included; over what the encoder gave; through the two dense layers. A norm
        # stands before each part or after it, by the family, and never inside a residual.
        x = self._before(self.own_norm, states)
        query, key, value = (split_heads(f(x), self.heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        past = append_token(past, position, key, value)
        states = states + self.out_proj(merge_heads(attend(query, past, past_bias, self.scaling)))
        states = self._after(self.own_norm, states)

        query = split_heads(self.cross_q_proj(self._before(self.cross_norm, states)), self.heads)
        states = states + self.cross_out_proj(merge_heads(attend(query, memory, memory_bias, self.scaling)))
        states = self._after(self.cross_norm, states)

        x = self.fc2(self.activation(self.fc1(self._before(self.last_norm, states))))
        return self._after(self.last_norm, states + x), past


class BartEmbedding(nn.Module):
    """A token and its position.

    Args:
        decoder: The family's own, such as a ``BartDecoder``.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.tokens = decoder.embed_tokens
        self.scale = float(getattr(decoder, "embed_scale", 1.0))
        if getattr(self.tokens, "embed_scale", None) is not None or decoder.config.model_type == "whisper":
            self.scale = 1.0
        self.positions = decoder.embed_positions
        self.offset = int(getattr(self.positions, "offset", 0))
        self.norm = getattr(decoder, "layernorm_embedding", None)

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        """Returns ``[batch, 1, width]`` of a token ``[batch]`` at a position ``[1]``."""
        place = functional.embedding(position + self.offset, self.positions.weight)
        states: Tensor = (self.tokens(token) * self.scale + place)[:, None]
        return states if self.norm is None else self.norm(states)


class BartHead(nn.Module):
    """The last norm, if there is one, and the projection to the vocabulary."""

    bias: Tensor | None

    def __init__(self, decoder: Any, projection: nn.Module, bias: Tensor | None) -> None:
        super().__init__()
        self.norm = getattr(decoder, "layer_norm", None)
        self.projection = projection
        self.register_buffer("bias", bias, persistent=bias is not None)

    def forward(self, states: Tensor) -> Tensor:
        """Returns logits ``[batch, 1, vocabulary]``."""
        if self.norm is not None:
            states = self.norm(states)
        logits: Tensor = self.projection(states)
        return logits if self.bias is None else logits + self.bias


def bart_parts(decoder: Any, projection: nn.Module, bias: Tensor | None = None) -> DecoderParts:
    """Returns the parts of a decoder.

    Args:
        decoder: Such as a ``BartDecoder`` or a ``WhisperDecoder``.
        projection: From a hidden state to the vocabulary.
        bias: ``[1, vocabulary]``, added to the logits.
    """
    norm_first = NORM_FIRST[decoder.config.model_type]
    embed = BartEmbedding(decoder)
    attention = decoder.layers[0].self_attn
    return DecoderParts(
        embed,
        tuple(BartLayer(layer, norm_first=norm_first) for layer in decoder.layers),
        tuple(BartCross(layer.encoder_attn) for layer in decoder.layers),
        BartHead(decoder, projection, bias),
        attention.num_heads,
        attention.head_dim,
        embed.positions.weight.shape[0] - embed.offset,
    )

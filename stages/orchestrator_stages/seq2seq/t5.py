"""The decoder of T5: no positions in the embedding, but a bias on every score that depends on the distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orchestrator_stages.seq2seq.attention import append_token, attend, causal_bias, merge_heads, split_heads
from orchestrator_stages.seq2seq.decoder import DecoderLayer, DecoderParts

__all__ = ["t5_parts"]


class T5Cross(nn.Module):
    """Keys and values of one layer for what the encoder gave."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.k, self.v = attention.k, attention.v
        self.heads: int = attention.n_heads

    def forward(self, encoding: Tensor) -> Tensor:
        """Returns ``[2, batch, heads, tokens, size]`` of ``[batch, tokens, width]``."""
        return torch.stack(
            [split_heads(self.k(encoding), self.heads), split_heads(self.v(encoding), self.heads)]
        )


def clamp_infinities(states: Tensor) -> Tensor:
    """Returns hidden states without infinities, which a float16 of this family runs into, as the library does it.

    Once one of them is infinite, all are kept a little further from the largest number.
    """
    if states.dtype != torch.float16:
        return states
    most = torch.finfo(torch.float16).max
    limit = torch.where(torch.isinf(states).any(), most - 1000, most).to(states.dtype)
    return torch.clamp(states, min=-limit, max=limit)


class T5Layer(DecoderLayer):
    """One layer, a ``T5Block``; scores are not scaled."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        self.heads: int = own.n_heads
        self.q, self.k, self.v, self.o = own.q, own.k, own.v, own.o
        self.cross_q, self.cross_o = cross.q, cross.o
        self.own_norm, self.cross_norm = block.layer[0].layer_norm, block.layer[1].layer_norm
        self.feed = block.layer[-1]

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
        # Over its own past, this token included; over what the encoder gave; through the dense layers.
        x = self.own_norm(states)
        query, key, value = (split_heads(f(x), self.heads) for f in (self.q, self.k, self.v))
        past = append_token(past, position, key, value)
        states = clamp_infinities(states + self.o(merge_heads(attend(query, past, past_bias, 1.0))))
        query = split_heads(self.cross_q(self.cross_norm(states)), self.heads)
        states = clamp_infinities(states + self.cross_o(merge_heads(attend(query, memory, memory_bias, 1.0))))
        return clamp_infinities(self.feed(states)), past


class T5Embedding(nn.Module):
    """A token; its position is of no matter here."""

    def __init__(self, stack: Any) -> None:
        super().__init__()
        self.tokens = stack.embed_tokens

    def forward(self, token: Tensor, position: Tensor) -> Tensor:  # noqa: ARG002
        """Returns ``[batch, 1, width]`` of a token ``[batch]``."""
        states: Tensor = self.tokens(token)
        return states[:, None]


class T5Bias(nn.Module):
    """The bias of a token over its past: hides what is not there yet, and weighs the rest by distance.

    Args:
        attention: The first ``SelfAttention`` of the decoder, which holds the weights for all layers.
        length: How many tokens the past can hold.
    """

    buckets: Tensor

    def __init__(self, attention: Any, length: int) -> None:
        super().__init__()
        self.weights = attention.relative_attention_bias
        buckets = attention._relative_position_bucket(
            -torch.arange(length),
            bidirectional=False,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self, position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Returns ``[1, heads, 1, length]``."""
        distance = (position - torch.arange(length, device=position.device)).clamp(min=0)
        distance_bias = self.weights(self.buckets[distance]).T[None, :, None]
        bias: Tensor = causal_bias(position, length, dtype) + distance_bias
        return bias


class T5Head(nn.Module):
    """The last norm and the projection to the vocabulary."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm = model.decoder.final_layer_norm
        self.projection = model.lm_head
        self.scale = model.model_dim**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0

    def forward(self, states: Tensor) -> Tensor:
        """Returns logits ``[batch, 1, vocabulary]``."""
        logits: Tensor = self.projection(self.norm(states) * self.scale)
        return logits


def t5_parts(model: Any, length: int) -> DecoderParts:
    """Returns the parts of the decoder of a ``T5ForConditionalGeneration`` or ``MT5ForConditionalGeneration``.

    Args:
        model: The model.
        length: How many tokens its past can hold.
    """
    blocks = model.decoder.block
    attention = blocks[0].layer[0].SelfAttention
    return DecoderParts(
        T5Embedding(model.decoder),
        tuple(T5Layer(block) for block in blocks),
        tuple(T5Cross(block.layer[1].EncDecAttention) for block in blocks),
        T5Head(model),
        attention.n_heads,
        attention.key_value_proj_dim,
        None,
        T5Bias(attention, length),
    )

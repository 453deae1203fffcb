"""The decoder of GPT-2 with cross-attention, as image captioners have it: one projection for query, key and value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orchestrator_stages.seq2seq.attention import append_token, attend, merge_heads, split_heads
from orchestrator_stages.seq2seq.decoder import DecoderLayer, DecoderParts

__all__ = ["gpt2_parts"]


class Gpt2Cross(nn.Module):
    """Keys and values of one layer for what the encoder gave."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.c_attn = attention.c_attn
        self.heads: int = attention.num_heads

    def forward(self, encoding: Tensor) -> Tensor:
        """Returns ``[2, batch, heads, tokens, size]`` of ``[batch, tokens, width]``."""
        return torch.stack([split_heads(part, self.heads) for part in self.c_attn(encoding).chunk(2, 2)])


class Gpt2Layer(DecoderLayer):
    """One layer, a ``GPT2Block``."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        own, cross = block.attn, block.crossattention
        self.heads: int = own.num_heads
        self.scaling, self.cross_scaling = float(own.scaling), float(cross.scaling)
        self.c_attn, self.c_proj = own.c_attn, own.c_proj
        self.cross_q, self.cross_proj = cross.q_attn, cross.c_proj
        self.own_norm, self.cross_norm, self.last_norm = block.ln_1, block.ln_cross_attn, block.ln_2
        self.mlp = block.mlp

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
        parts = self.c_attn(self.own_norm(states)).chunk(3, 2)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        past = append_token(past, position, key, value)
        states = states + self.c_proj(merge_heads(attend(query, past, past_bias, self.scaling)))
        query = split_heads(self.cross_q(self.cross_norm(states)), self.heads)
        states = states + self.cross_proj(merge_heads(attend(query, memory, memory_bias, self.cross_scaling)))
        return states + self.mlp(self.last_norm(states)), past


class Gpt2Embedding(nn.Module):
    """A token and its position."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.wte, self.wpe = transformer.wte, transformer.wpe

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        """Returns ``[batch, 1, width]`` of a token ``[batch]`` at a position ``[1]``."""
        states: Tensor = self.wte(token) + self.wpe(position)
        return states[:, None]


def gpt2_parts(model: Any) -> DecoderParts:
    """Returns the parts of a ``GPT2LMHeadModel`` with cross-attention."""
    transformer = model.transformer
    attention = transformer.h[0].attn
    return DecoderParts(
        Gpt2Embedding(transformer),
        tuple(Gpt2Layer(block) for block in transformer.h),
        tuple(Gpt2Cross(block.crossattention) for block in transformer.h),
        nn.Sequential(transformer.ln_f, model.lm_head),
        attention.num_heads,
        attention.head_dim,
        transformer.wpe.weight.shape[0],
    )

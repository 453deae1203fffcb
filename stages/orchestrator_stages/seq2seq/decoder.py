"""The decoder of any family as two modules that keep no state, so that a loop can carry it on a device.

:class:`Begin` runs once: it turns what the encoder gave into keys and values for every layer, and makes the values
that a loop starts with. :class:`Decoder` runs for each token: it takes the *cache*, the pasts of all layers ``[layers,
2, batch, heads, length, size]``, and returns it with one more token in it. Families differ in what a
:class:`DecoderLayer` does and how a token is embedded; see :mod:`~orchestrator_stages.seq2seq.families`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator_stages.seq2seq.attention import hiding, own_past

__all__ = ["Begin", "Decoder", "DecoderLayer", "DecoderParts"]


class DecoderLayer(nn.Module):
    """One layer; a family overrides it, over the modules of a layer of its own."""

    def forward(
        self, hidden: Tensor, past: Tensor, seen: Tensor, memory: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the hidden state after the layer, and the token's own key and value.

        Args:
            hidden: ``[batch, 1, width]``.
            past: ``[2, batch, heads, length, size]``.
            seen: The bias over past and token, ``[1, 1 or heads, 1, length + 1]``.
            memory: The past that the encoder gave, ``[2, batch, heads, tokens, size]``.
            masked: The bias over it, ``[batch, 1, 1, tokens]``.
        """
        raise NotImplementedError


class PastBias(nn.Module):
    """The bias of a token over past and itself: hides what is not there yet."""

    def forward(self, position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Returns ``[1, 1 or heads, 1, length + 1]``."""
        return own_past(position, length, dtype)


@dataclass(frozen=True)
class DecoderParts:
    """What a family's decoder is made of.

    Attributes:
        embed: A token ``[batch]`` and its position ``[1]`` to ``[batch, 1, width]``.
        layers: Its layers.
        crosses: For each layer, what makes its past of what the encoder gave: ``[batch, tokens, width]`` to ``[2,
            batch, heads, tokens, size]``. They run once, so they are no part of a layer.
        head: ``[batch, 1, width]`` to logits ``[batch, 1, vocabulary]``.
        heads: Heads of a layer.
        size: Width of a head.
        positions: How many tokens it can count; None: any number.
        past_bias: The bias of a token over its past.
    """

    embed: nn.Module
    layers: tuple[DecoderLayer, ...]
    crosses: tuple[nn.Module, ...]
    head: nn.Module
    heads: int
    size: int
    positions: int | None = None
    past_bias: nn.Module | None = None


class Decoder(nn.Module):
    """Runs a decoder for one token.

    Args:
        parts: Its modules.
    """

    def __init__(self, parts: DecoderParts) -> None:
        super().__init__()
        self.embed = parts.embed
        self.layers = nn.ModuleList(parts.layers)
        self.head = parts.head
        self.past_bias = parts.past_bias or PastBias()

    def forward(
        self, token: Tensor, position: Tensor, cache: Tensor, memory: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns logits ``[batch, vocabulary]`` of the next token, float32, and the cache with this one in it.

        Args:
            token: ``[batch]``, int64.
            position: ``[1]``, int64: its place in the sequence.
            cache: ``[layers, 2, batch, heads, length, size]``.
            memory: What the encoder gave, ``[layers, 2, batch, heads, tokens, size]``.
            masked: The bias over it, ``[batch, 1, 1, tokens]``.
        """
        hidden = self.embed(token, position)
        seen = self.past_bias(position, cache.shape[4], hidden.dtype)
        own = []
        for number, layer in enumerate(self.layers):
            hidden, new = layer(hidden, cache[number], seen, memory[number], masked)
            own.append(new)
        logits = self.head(hidden)[:, 0].to(torch.float32)
        return logits, cache.index_copy(4, position, torch.stack(own))


class Begin(nn.Module):
    """Makes what the loop reads in every iteration, and what it starts with.

    Args:
        crosses: As :class:`DecoderParts` has them.
        length: How many tokens the cache holds.
        start: The token that every sequence begins with.
        pad: What stands where there is no token yet.
    """

    def __init__(self, crosses: Iterable[nn.Module], length: int, start: int, pad: int) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(crosses)
        self.length = length
        self.start = start
        self.pad = pad

    def forward(self, encoded: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns ``memory`` and ``masked``, and what the first iteration takes besides.

        Args:
            encoded: ``[batch, tokens, width]``.
            mask: ``[batch, tokens]``, 0 where there is padding; None: there is none. A row of zeros is a row that pads
                the batch: it is finished before it begins.
        """
        memory = torch.stack([cross(encoded) for cross in self.crosses])
        layers, _, batch, heads, _, size = memory.shape
        there = encoded.new_ones(encoded.shape[:2], dtype=torch.bool) if mask is None else mask.to(torch.bool)
        return {
            "memory": memory,
            "masked": hiding(there, memory.dtype)[:, None, None],
            "token": torch.full((batch,), self.start, dtype=torch.int64, device=encoded.device),
            "position": torch.zeros(1, dtype=torch.int64, device=encoded.device),
            "cache": memory.new_zeros(layers, 2, batch, heads, self.length, size),
            "finished": ~there.any(1),
            "chosen": torch.full((batch, self.length), self.pad, dtype=torch.int64, device=encoded.device),
        }

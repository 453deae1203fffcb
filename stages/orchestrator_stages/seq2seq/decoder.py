"""The decoder of any family as two modules that keep no state, so that a loop can carry it on a device.

:class:`Begin` runs once: it turns what the encoder gave into keys and values for every layer, and makes the values
that a loop starts with. :class:`Decoder` runs for each token: it takes the pasts of all layers and returns them with
one more token in them. Families differ in what a :class:`DecoderLayer` does and how a token is embedded; see
:mod:`~orchestrator_stages.seq2seq.families`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator_stages.seq2seq.attention import hiding, seen_past

__all__ = ["Begin", "Decoder", "DecoderLayer", "DecoderParts", "past_names"]


def past_names(layers: int) -> list[str]:
    """Returns the port names of the pasts: ``past1``, ``past2``, ..."""
    return [f"past{number}" for number in range(1, layers + 1)]


class DecoderLayer(nn.Module):
    """One layer; a family overrides it, over the modules of a layer of its own."""

    def forward(
        self, hidden: Tensor, position: Tensor, past: Tensor, seen: Tensor, memory: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the hidden state after the layer, and the past with the token in it.

        Args:
            hidden: ``[batch, 1, width]``.
            position: ``[1]``, int64.
            past: ``[2, batch, heads, length, size]``.
            seen: The bias over it, ``[1, 1 or heads, 1, length]``.
            memory: The past that the encoder gave, ``[2, batch, heads, tokens, size]``.
            masked: The bias over it, ``[batch, 1, 1, tokens]``.
        """
        raise NotImplementedError


class PastBias(nn.Module):
    """The bias of a token over its past: hides what is not there yet."""

    def forward(self, position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Returns ``[1, 1 or heads, 1, length]``."""
        return seen_past(position, length, dtype)


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
        self, token: Tensor, position: Tensor, pasts: Sequence[Tensor], memory: Tensor, masked: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns logits ``[batch, vocabulary]`` of the next token, float32, and the pasts with this one in them.

        Args:
            token: ``[batch]``, int64.
            position: ``[1]``, int64: its place in the sequence.
            pasts: For each layer ``[2, batch, heads, length, size]``.
            memory: What the encoder gave, ``[layers, 2, batch, heads, tokens, size]``.
            masked: The bias over it, ``[batch, 1, 1, tokens]``.
        """
        hidden = self.embed(token, position)
        seen = self.past_bias(position, pasts[0].shape[3], hidden.dtype)
        after = []
        for layer, past, given in zip(self.layers, pasts, memory, strict=True):
            hidden, past = layer(hidden, position, past, seen, given, masked)
            after.append(past)
        return self.head(hidden)[:, 0].to(torch.float32), after


class Begin(nn.Module):
    """Makes what the loop reads in every iteration, and what it starts with.

    Args:
        crosses: As :class:`DecoderParts` has them.
        length: How many tokens a past holds.
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
        """Returns ``memory`` and ``masked``, and what the first iteration takes besides, empty pasts among it.

        Args:
            encoded: ``[batch, tokens, width]``.
            mask: ``[batch, tokens]``, 0 where there is padding; None: there is none. A row of zeros is a row that pads
                the batch: it is finished before it begins.
        """
        memory = torch.stack([cross(encoded) for cross in self.crosses])
        _, _, batch, heads, _, size = memory.shape
        there = encoded.new_ones(encoded.shape[:2], dtype=torch.bool) if mask is None else mask.to(torch.bool)
        begun = {
            "memory": memory,
            "masked": hiding(there, memory.dtype)[:, None, None],
            "token": torch.full((batch,), self.start, dtype=torch.int64, device=encoded.device),
            "position": torch.zeros(1, dtype=torch.int64, device=encoded.device),
            "finished": ~there.any(1),
            "chosen": torch.full((batch, self.length), self.pad, dtype=torch.int64, device=encoded.device),
        }
        for name in past_names(len(self.crosses)):
            begun[name] = memory.new_zeros(2, batch, heads, self.length, size)
        return begun

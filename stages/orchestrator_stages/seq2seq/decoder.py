"""The decoder of any family as two modules that keep no state, so that a loop can carry it on a device.

:class:`BeginDecoding` runs once: it turns what the encoder gave into keys and values for every layer, and makes the
values that a loop starts with. :class:`Decoder` runs for each token: it takes the pasts of all layers and returns them
with one more token in them. Families differ in what a :class:`DecoderLayer` does and how a token is embedded; see
:mod:`~orchestrator_stages.seq2seq.families`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orchestrator_stages.seq2seq.attention import causal_bias, mask_bias

__all__ = ["BeginDecoding", "Decoder", "DecoderLayer", "DecoderParts", "past_names"]


def past_names(layers: int) -> list[str]:
    """Returns the port names of the pasts: ``past1``, ``past2``, ..."""
    return [f"past{number}" for number in range(1, layers + 1)]


class DecoderLayer(nn.Module):
    """One layer; a family overrides it, over the modules of a layer of its own."""

    def forward(
        self,
        states: Tensor,
        position: Tensor,
        past: Tensor,
        past_bias: Tensor,
        memory: Tensor,
        memory_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns the hidden state after the layer, and the past with the token in it.

        Args:
            states: ``[batch, 1, width]``.
            position: ``[1]``, int64.
            past: ``[2, batch, heads, length, size]``.
            past_bias: The bias over it, ``[1, 1 or heads, 1, length]``.
            memory: The past that the encoder gave, ``[2, batch, heads, tokens, size]``.
            memory_bias: The bias over it, ``[batch, 1, 1, tokens]``.
        """
        raise NotImplementedError


class PastBias(nn.Module):
    """The bias of a token over its past: hides what is not there yet."""

    def forward(self, position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Returns ``[1, 1 or heads, 1, length]``."""
        return causal_bias(position, length, dtype)


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
        self, token: Tensor, position: Tensor, pasts: Sequence[Tensor], memory: Tensor, memory_bias: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns logits ``[batch, vocabulary]`` of the next token, float32, and the pasts with this one in them.

        Args:
            token: ``[batch]``, int64.
            position: ``[1]``, int64: its place in the sequence.
            pasts: For each layer ``[2, batch, heads, length, size]``.
            memory: What the encoder gave, ``[layers, 2, batch, heads, tokens, size]``.
            memory_bias: The bias over it, ``[batch, 1, 1, tokens]``.
        """
        states = self.embed(token, position)
        past_bias = self.past_bias(position, pasts[0].shape[3], states.dtype)
        after = []
        for layer, past, layer_memory in zip(self.layers, pasts, memory, strict=True):
            states, past = layer(states, position, past, past_bias, layer_memory, memory_bias)
            after.append(past)
        return self.head(states)[:, 0].to(torch.float32), after


class BeginDecoding(nn.Module):
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

    def forward(self, encoding: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns ``memory`` and ``memory_bias``, and what the first iteration takes besides, empty pasts among it.

        Args:
            encoding: ``[batch, tokens, width]``.
            mask: ``[batch, tokens]``, 0 where there is padding; None: there is none. A row of zeros is a row that pads
                the batch: it is finished before it begins.
        """
        # Everything a loop carries has its final size from the start: the pasts are empty, not short.
        memory = torch.stack([cross(encoding) for cross in self.crosses])
        _, _, batch, heads, _, size = memory.shape
        is_token = (
            encoding.new_ones(encoding.shape[:2], dtype=torch.bool) if mask is None else mask.to(torch.bool)
        )
        initial_values = {
            "memory": memory,
            "masked": mask_bias(is_token, memory.dtype)[:, None, None],
            "token": torch.full((batch,), self.start, dtype=torch.int64, device=encoding.device),
            "position": torch.zeros(1, dtype=torch.int64, device=encoding.device),
            "finished": ~is_token.any(1),
            "chosen": torch.full((batch, self.length), self.pad, dtype=torch.int64, device=encoding.device),
        }
        for name in past_names(len(self.crosses)):
            initial_values[name] = memory.new_zeros(2, batch, heads, self.length, size)
        return initial_values

"""Attention of one new token over what a decoder has seen: its own past, and what the encoder gave.

A *past* holds the keys and values of one layer, ``[2, batch, heads, length, size]``, keys first. Its length is fixed;
the token at hand sits at a *position*, and everything from there on is empty and hidden by a *bias*: what is added to
a score, 0 where a token may look and the lowest number of the dtype where it may not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["attend", "hiding", "merged", "own_past", "split"]


def split(hidden: Tensor, heads: int) -> Tensor:
    """Returns ``[batch, heads, tokens, size]`` of ``[batch, tokens, heads * size]``."""
    batch, tokens, width = hidden.shape
    return hidden.view(batch, tokens, heads, width // heads).transpose(1, 2)


def merged(hidden: Tensor) -> Tensor:
    """Returns ``[batch, tokens, heads * size]`` of ``[batch, heads, tokens, size]``."""
    batch, heads, tokens, size = hidden.shape
    return hidden.transpose(1, 2).reshape(batch, tokens, heads * size)


def hiding(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the bias, of the same shape, that leaves visible only what is true there."""
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=visible.device)
    return torch.where(visible, torch.zeros_like(lowest), lowest)


def own_past(position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Returns the bias ``[1, 1, 1, length + 1]`` of a token over its past and, last, over itself.

    Args:
        position: ``[1]``, int64: how many tokens came before.
        length: How many the past can hold.
        dtype: Of the scores.
    """
    places = torch.arange(length + 1, device=position.device)
    visible = (places < position) | (places == length)
    return hiding(visible, dtype)[None, None, None]


def attend(query: Tensor, parts: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Returns what a query reads from pasts that follow one another, without joining them.

    Args:
        query: ``[batch, heads, tokens, size]``, scaled.
        parts: Pasts.
        bias: Added to the scores ``[batch, heads, tokens, length of all parts]``; dims of 1 are repeated.
    """
    scores = [torch.matmul(query, part[0].transpose(2, 3)) for part in parts]
    joined = scores[0] if len(scores) == 1 else torch.cat(scores, 3)
    weights = torch.softmax(joined + bias, 3)
    shares = torch.split(weights, [part.shape[3] for part in parts], 3)
    read = [torch.matmul(share, part[1]) for share, part in zip(shares, parts, strict=True)]
    return sum(read[1:], read[0])

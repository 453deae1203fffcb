"""Attention of one new token over its own past, and over what the encoder gave.

A *past* holds the keys and values of one layer, ``[2, batch, heads, length, size]``, keys first. Its length is fixed;
the token at hand is written at its *position*, and what lies behind is empty and hidden by a *bias*: what is added to a
score, 0 where a token may look and the lowest number of the dtype where it may not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["append_token", "attend", "causal_bias", "mask_bias", "merge_heads", "split_heads"]


def split_heads(states: Tensor, heads: int) -> Tensor:
    """Returns ``[batch, heads, tokens, size]`` of ``[batch, tokens, heads * size]``."""
    batch, tokens, width = states.shape
    return states.view(batch, tokens, heads, width // heads).transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    """Returns ``[batch, tokens, heads * size]`` of ``[batch, heads, tokens, size]``."""
    batch, heads, tokens, size = states.shape
    return states.transpose(1, 2).reshape(batch, tokens, heads * size)


def mask_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the bias, of the same shape, that leaves visible only what is true there."""
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=visible.device)
    return torch.where(visible, torch.zeros_like(lowest), lowest)


def causal_bias(position: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Returns the bias ``[1, 1, 1, length]`` of a token over its past, itself included.

    Args:
        position: ``[1]``, int64: how many tokens came before.
        length: How many the past can hold.
        dtype: Of the scores.
    """
    places = torch.arange(length, device=position.device)
    return mask_bias(places <= position, dtype)[None, None, None]


def append_token(past: Tensor, position: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Returns the past with one more token in it; the past itself is left alone.

    Args:
        past: ``[2, batch, heads, length, size]``.
        position: ``[1]``, int64: where the token goes.
        key: ``[batch, heads, 1, size]``.
        value: Likewise.
    """
    return past.index_copy(3, position, torch.stack([key, value]))


def attend(query: Tensor, past: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Returns what a query ``[batch, heads, tokens, size]`` reads from a past.

    Args:
        query: The query.
        past: The past.
        bias: Added to the scores ``[batch, heads, tokens, length]``; dims of 1 are repeated.
        scale: The scores are multiplied by it before.
    """
    read: Tensor = functional.scaled_dot_product_attention(query, past[0], past[1], bias, scale=scale)
    return read

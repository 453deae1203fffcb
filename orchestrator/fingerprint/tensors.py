"""The content of a tensor, alike in every process and on every device."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

import torch

__all__ = ["ContentlessError", "content_parts"]


class ContentlessError(Exception):
    """A tensor has a form but no content: it is on ``meta``, or fake."""


def content_parts(tensor: torch.Tensor) -> list[Any]:
    """Returns the SHA-256 of a tensor's elements; for one made of other tensors, its type, these, and how.

    Raises:
        ContentlessError: It has none.
    """
    if tensor.is_meta or hasattr(tensor, "fake_mode"):
        raise ContentlessError
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        names, how = flatten()
        return [type(tensor), how, *(getattr(tensor, name) for name in names)]
    with torch.no_grad():
        value = tensor.detach()
        if value.is_quantized:
            return [repr(value.qscheme()), value.dequantize()]
        value = value if value.layout is torch.strided else value.to_dense()
        return [_digest(value.cpu().resolve_conj().resolve_neg().contiguous())]


def _digest(tensor: torch.Tensor) -> str:
    size = tensor.numel() * tensor.element_size()
    address = tensor.data_ptr() if size else 0
    block = (ctypes.c_char * size).from_address(address) if address else b""
    return hashlib.sha256(block).hexdigest()

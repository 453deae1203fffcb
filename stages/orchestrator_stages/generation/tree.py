"""A copy of a model's modules over the same weights, to set things in that the user's model knows nothing of."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

__all__ = ["embed_any_item", "own_tree", "text_model"]


def own_tree(model: nn.Module) -> nn.Module:
    """Returns a copy of a model's modules and configs over the same weights.

    What is set in it, such as how experts are computed, is not set in the model of the user.
    """
    shared = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    tree: Any = copy.deepcopy(model, shared)
    # Experts in a loop look at what was routed where, and grouped products are known to shapes in bfloat16 alone.
    grouped = next(tree.parameters()).dtype is torch.bfloat16
    if not grouped and getattr(tree, "_can_set_experts_implementation", bool)():
        tree.set_experts_implementation("batched_mm")
    return tree  # type: ignore[no-any-return]


def embed_any_item(tree: Any, token: int) -> None:
    """Makes a model embed a token that stands for items as some other, if it lies beyond the vocabulary.

    Features replace what it is embedded as, so nothing reads that; models of some families do the same by themselves.

    Args:
        tree: A tree of one's own.
        token: The token.
    """
    embedding = tree.get_input_embeddings()
    if token >= embedding.weight.shape[0]:
        embedding.register_forward_pre_hook(lambda _, ids: (ids[0].masked_fill(ids[0] == token, 0),))


def text_model(tree: Any) -> Any:
    """Returns what goes on with embeddings: the model itself, or the one in it that it only hands them to."""
    inner = getattr(tree, "language_model", None)
    parameters = inspect.signature(tree.forward).parameters
    if "past_key_values" not in parameters and callable(getattr(inner, "generate", None)):
        return inner
    return tree

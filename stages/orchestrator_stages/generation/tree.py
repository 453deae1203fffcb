"""A copy of a model's modules over the same weights, to set things in that the user's model knows nothing of."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from orchestrator.isolation import CachedFakeMode, fake_mode

__all__ = ["embed_any_item", "fake_weights", "own_tree", "text_model"]


def own_tree(model: nn.Module) -> nn.Module:
    """Returns a copy of a model's modules and configs over the same weights.

    What is set in it, such as how experts are computed, is not set in the model of the user.
    """
    shared = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    tree: Any = copy.deepcopy(model, shared)
    # Experts in a loop look at what was routed where, and grouped products are known to shapes in bfloat16 alone. A
    # model that is made of others may not say of itself that its decoder has experts.
    is_grouped = next(tree.parameters()).dtype is torch.bfloat16
    for part in () if is_grouped else tree.modules():
        if getattr(part, "_can_set_experts_implementation", bool)():
            part.set_experts_implementation("batched_mm")
    return tree  # type: ignore[no-any-return]


@contextlib.contextmanager
def fake_weights(*modules: nn.Module) -> Iterator[CachedFakeMode]:
    """Puts fake tensors in place of the weights and buffers of modules; gives the mode that they are fake in.

    What an operation gives for fake tensors alone is remembered; among real weights each is worked out anew.

    Args:
        modules: Of a tree of one's own; they have their weights again afterwards.
    """
    mode = fake_mode()
    children = dict.fromkeys(child for module in modules for child in module.modules())
    weights = [
        (place, name, weight)
        for child in children
        for place in (child._parameters, child._buffers)
        for name, weight in place.items()
        if weight is not None
    ]
    try:
        for place, name, weight in weights:
            place[name] = mode.from_tensor(weight)  # type: ignore[assignment]
        yield mode
    finally:
        for place, name, weight in weights:
            place[name] = weight  # type: ignore[assignment]


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

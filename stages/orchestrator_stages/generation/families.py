"""Exceptions to the one way in which models are followed, by model type: registered here, or by a plugin's entry point.

A model is followed by its own forward, and needs nothing here. What cannot be seen from outside of it, such as a part
that looks at the content of a tensor, a *family* makes visible.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import GraphError
from orchestrator_stages.generation.cache import empty_cache

__all__ = ["Family", "family_of", "register_family"]

GROUP = "orchestrator_stages.families"
"""Entry points of this group are called by the name of a model type, and are a :class:`Family`."""


@dataclass(frozen=True)
class Family:
    """How models of a type are followed, where that differs.

    Attributes:
        prepare: Of a model whose modules are nobody else's (its weights are the user's), what is followed: itself, with
            methods replaced by ones of static shape, or a part of it that goes on with embeddings.
        cache: Of its config and a number of slots, an empty cache that keeps one size.
        example: Of the model, what its processor gives for one item and a prompt; None: as its config says.
    """

    prepare: Callable[[Any], Any] = lambda tree: tree
    cache: Callable[[Any, int], Any] = empty_cache
    example: Callable[[Any], Mapping[str, Any]] | None = None


_FAMILIES: dict[str, Family] = {}


def register_family(model_type: str, family: Family) -> None:
    """Registers how models of a type are followed.

    Args:
        model_type: As ``model.config.model_type`` has it.
        family: How.

    Raises:
        GraphError: It is no family, or the type has one.
    """
    if not isinstance(family, Family):
        raise GraphError(f"register_family takes a Family, not {family!r:.80}.", option=model_type)
    if model_type in _FAMILIES:
        raise GraphError(f"Models of type {model_type!r} have a family already.", option=model_type)
    _FAMILIES[model_type] = family


@functools.cache
def _of_plugins() -> Mapping[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def family_of(model: Any) -> Family:
    """Returns how a model is followed.

    Raises:
        GraphError: The entry point of its type gives no family.
    """
    kind = str(model.config.model_type)
    if kind not in _FAMILIES and kind in _of_plugins():
        register_family(kind, _of_plugins()[kind].load())
    return _FAMILIES.get(kind, Family())

"""Follow a model: as it is if that can be, else with answers to what its forward asks of values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator import GraphError
from orchestrator_stages.generation.cache import cache_makers
from orchestrator_stages.generation.checks import following
from orchestrator_stages.generation.encoder import ItemEncoder, take_deep_features, trace_features
from orchestrator_stages.generation.families import family_of
from orchestrator_stages.generation.generator import Generator
from orchestrator_stages.generation.items import ItemKind
from orchestrator_stages.generation.selfcheck import check_logits
from orchestrator_stages.generation.tree import embed_any_item, own_tree, text_model

__all__ = ["AXES", "ModelStages", "follow"]

AXES = 3
"""How many dims a position has where it has several: time, height and width."""


@dataclass(frozen=True)
class ModelStages:
    """A model as functions of tensors.

    Attributes:
        generator: Its prompt, and one more token.
        encoders: What makes features of items, one after the other; none where it reads text alone.
        features: Shape and dtype of the features of one item.
    """

    generator: Generator
    encoders: tuple[ItemEncoder, ...] = ()
    features: tuple[tuple[int, int], torch.dtype] = ((0, 0), torch.float32)


def follow(
    model: Any, slots: int, vocabulary: int, kind: ItemKind | None = None, rope: Any = None
) -> ModelStages:
    """Returns a model as functions of tensors, which give what it gives by itself.

    Args:
        model: The model; its modules are copied, its weights are not.
        slots: How many tokens its cache holds.
        vocabulary: Number of tokens.
        kind: The items among the tokens of its prompts; None: there are none.
        rope: What has the method ``get_rope_index``; None: positions are numbers.

    Raises:
        GraphError: It cannot be followed; the message says what stands in the way.
    """
    # Without answers first: most forwards ask nothing, and then nothing comes between. What passes is compared with
    # the model's own generate() before anybody relies on it.
    family = family_of(model)
    errors: list[Exception] = []
    makers = cache_makers(family.cache, text_model(model).config, slots)
    for make_cache, is_static in itertools.product(makers, (False, True)):
        try:
            tree, reference = own_tree(model), own_tree(model)
            if kind is not None:
                embed_any_item(tree, kind.token)
                embed_any_item(reference, kind.token)
            graph = None if kind is None else trace_features(tree, kind)
            encoders = () if graph is None else tuple(ItemEncoder(part) for part in graph.stages)
            take_deep_features(tree)
            axes = AXES if kind is not None and rope is not None else 0
            text_tree = family.prepare(text_model(tree))
            generator = Generator(text_tree, slots, kind, axes, is_static=is_static, empty_cache=make_cache)
            check_logits(reference, generator, vocabulary, kind, encoders, rope)
            return (
                ModelStages(generator)
                if graph is None
                else ModelStages(generator, encoders, (graph.shape, graph.dtype))
            )
        except Exception as error:
            errors.append(error)
    # What a try without answers met is nearer to the model, unless only one with them had something to say about it;
    # the last two are those that ask least of it.
    last = errors[-2:]
    with following(model):
        raise next((item for item in last if isinstance(item, GraphError)), last[0])

"""What versions of transformers do in different ways, in one place: 4.57, and all from 5.0 on.

Other differences need no word here: cache layers have the methods of both, a forward is given only what it knows, and
:class:`~orchestrator_stages.generation.static_forward.StaticForward` answers what older forwards ask.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "OLDEST",
    "adds_length",
    "check_version",
    "default_options",
    "options_in_config",
    "prepare_inputs",
    "without_selection",
]

OLDEST = (4, 57)
"""The oldest version that is supported; the one that NxD Inference pins."""

transformers: Any = importlib.import_module("transformers")


def check_version(version: str) -> None:
    """Refuses a version that is too old.

    Args:
        version: Such as ``"4.57.6"``.

    Raises:
        ImportError: It is.
    """
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise ImportError(
            f"from_transformers needs transformers {'.'.join(map(str, OLDEST))} or newer, but {version} is installed; "
            "pip install --upgrade 'stage-orchestrator-stages[transformers]'."
        )


def default_options(config: Any) -> dict[str, Any]:
    """Returns the options of ``generate()`` that are unset in a generation config, with what the library takes then.

    Args:
        config: A generation config.
    """
    # In 4.57 a generation config has them from the start.
    options: dict[str, Any] = getattr(config, "_get_default_generation_params", dict)()
    return options


def adds_length(config: Any) -> bool:
    """Tells whether ``max_length`` of a generation config is a number of tokens to add, as the default is.

    Args:
        config: A generation config.
    """
    # In 5.0 to 5.2, generate() takes what the model's own generation config says for the default.
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if (5, 0) <= release < (5, 3):
        return True
    unset = getattr(type(config)(), "max_length", None)
    return config.max_length is None or bool(config.max_length == unset)


def options_in_config(model: Any) -> Mapping[str, Any]:
    """Returns the options of ``generate()`` that a model's own config has: they are refused, or replace the others.

    Args:
        model: The model.
    """
    config, generation_config = model.config, model.generation_config
    options: Any = getattr(config, "_get_generation_parameters", None)
    if options is not None:
        current: dict[str, Any] = options()
        return current
    # In 4.57 they count only while the generation config is as it was made from an earlier state of the config.
    is_made_of_it = generation_config._from_model_config
    is_unchanged = is_made_of_it and generation_config._original_object_hash == hash(generation_config)
    if not is_unchanged or type(generation_config).from_model_config(config) == generation_config:
        return {}
    own: dict[str, Any] = config._get_non_default_generation_parameters()
    return own


class PlaceNumbers(tuple[int, ...]):
    """The slots of new tokens as numbers, for code that asks of a tensor whether they are a prompt's."""

    @property
    def shape(self) -> tuple[int]:
        """As a tensor has it."""
        return (len(self),)


def without_selection(model: Any) -> None:
    """Sets in a model that it is handed new tokens and no others; older versions look for them by the tensor of slots.

    Args:
        model: A copy of the user's.
    """
    for module in model.modules():
        if hasattr(module, "_cache_dependant_input_preparation"):
            module._cache_dependant_input_preparation = _as_they_are


def _as_they_are(input_ids: Any, inputs_embeds: Any, _: Any) -> tuple[Any, Any]:
    return inputs_embeds, input_ids


def prepare_inputs(
    model: Any, arguments: Mapping[str, Any], count: int, *, is_first: bool
) -> Mapping[str, Any]:
    """Returns what a model's own ``prepare_inputs_for_generation`` makes of the arguments of its forward.

    Args:
        model: One that was given to :func:`without_selection`.
        arguments: The arguments.
        count: How many tokens there are in a row.
        is_first: Whether they are the prompt.
    """
    names = _names_of_inputs()
    first = {"is_first_iteration": is_first} if "is_first_iteration" in names else {}
    if "cache_position" not in names:
        current: Mapping[str, Any] = model.prepare_inputs_for_generation(
            **{"input_ids": None, **arguments}, **first
        )
        return current
    # An older version is told by the first slot whether a prompt comes, and reads nothing else of what the slots are.
    # Positions of several dims it cuts along the rows, or leaves out, to be worked out anew.
    places = PlaceNumbers(range(count) if is_first else [1] * count)
    inputs: dict[str, Any] = model.prepare_inputs_for_generation(
        **{"input_ids": None, **arguments, "cache_position": places}, **first
    )
    del inputs["cache_position"]
    positions = arguments.get("position_ids")
    own = {"cache_position"} | ({"position_ids"} if positions is not None and positions.dim() > 2 else set())
    return inputs | {name: arguments[name] for name in own if name in arguments}


@functools.cache
def _names_of_inputs() -> frozenset[str]:
    """What the library's own method takes; it is asked for each token."""
    return frozenset(inspect.signature(transformers.GenerationMixin.prepare_inputs_for_generation).parameters)


check_version(transformers.__version__)

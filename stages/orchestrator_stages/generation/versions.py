"""What versions of transformers do in different ways, in one place: 4.57, and all from 5.0 on.

Other differences need no word here: cache layers have the methods of both, a forward is given only what it knows, and
:class:`~orchestrator_stages.generation.static_forward.StaticForward` answers what older forwards ask.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["OLDEST", "check_version", "default_options", "has_default_length", "options_in_config"]

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


def has_default_length(config: Any) -> bool:
    """Tells whether nobody said in a generation config how long a sequence may be."""
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


check_version(transformers.__version__)

"""The options of ``generate()``: those of a model's generation config, and over them those that a user gives.

What is read here is what ``generate()`` of the model's class reads, in its order: an option of the user, also if it is
None; else one of the generation config; else the library's default.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from orchestrator import GraphError
from orchestrator.errors import nearest
from orchestrator_stages.generation.versions import default_options, has_default_length
from orchestrator_stages.origin import check_config
from orchestrator_stages.seq2seq.families import ModelFamily
from orchestrator_stages.seq2seq.rules import NEW
from orchestrator_stages.seq2seq.tables import (
    FOLLOWED,
    FOLLOWED_SPEECH,
    REFUSED,
    REFUSED_SPEECH,
    UNREAD,
    UNREAD_SPEECH,
)

__all__ = ["length_of", "read_options"]

INPUTS = frozenset({"inputs", "input_ids", "attention_mask", "input_features", "pixel_values"})

INSTEAD: Mapping[str, str] = {
    "generation_config": "Set model.generation_config, or pass its options one by one",
    "decoder_input_ids": "A sequence of Whisper begins with language and task",
    "streamer": "Watch the tokens with session.stream(requests, partial=('decode.token',))",
    "tokenizer": "Pass it as tokenizer=",
}
"""What to do instead of passing some arguments of ``generate()``."""


def known_options(*, speech: bool) -> frozenset[str]:
    """Returns the options that are followed, refused or without effect."""
    names = FOLLOWED | REFUSED.keys() | UNREAD
    return names | FOLLOWED_SPEECH | REFUSED_SPEECH.keys() | UNREAD_SPEECH if speech else names


def read_options(model: Any, family: ModelFamily, user_options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all options by name.

    Args:
        model: The model.
        family: Its family.
        user_options: The options of the user.

    Raises:
        GraphError: One is none, or is one that only ``generate()`` has.
    """
    speech = family.speech
    config = model.generation_config
    library: dict[str, Any] = vars(type(config)())
    names = known_options(speech=speech)
    for option, value in user_options.items():
        if option not in names and option not in library:
            _check_argument(model, option, value, names | library.keys())
    own = {option: value for option, value in config.to_dict().items() if value is not None}
    options = {**library, **default_options(config), **own, **user_options}
    check_config(options, library, names, "The generation config")
    # The default is a number of tokens to add, any other max_length is one of all tokens.
    options["default_length"] = user_options.get("max_length") is None and has_default_length(config)
    if user_options.get("max_length") is None and config.max_length is not None:
        options["max_length"] = config.max_length
    return _of_speech(model, options, user_options) if speech else options


def _check_argument(model: Any, option: str, value: object, names: frozenset[str]) -> None:
    # Three kinds of mistakes, each with its way out: a value of a request, an argument of generate(), a misspelling.
    if option in INPUTS:
        raise GraphError(f"{option} is what a request gives, not an option.", option=option)
    parameters = {*inspect.signature(model.generate).parameters, *inspect.signature(model.forward).parameters}
    if option in parameters or option in INSTEAD:
        if value is None:
            return
        instead = INSTEAD.get(option, "Draw the loop yourself where you need it; its parts are stages")
        raise GraphError(
            f"generate() takes {option}, but from_transformers does not follow it. {instead}.", option=option
        )
    raise GraphError(
        f"from_transformers has no option {option!r}, and generate() has none.{nearest(option, names)}",
        option=option,
    )


def _of_speech(model: Any, options: dict[str, Any], user_options: Mapping[str, Any]) -> dict[str, Any]:
    """Reads them as ``generate()`` of Whisper does, where that differs."""
    config = model.generation_config
    for option in ("language", "task", "is_multilingual"):
        if options.get(option) is None:
            options[option] = getattr(config, option, None)
    if options["is_multilingual"] is False and (user_options.get("language") or user_options.get("task")):
        raise GraphError(
            "The model knows one language and one task (is_multilingual=False): leave out language and task.",
            option="language" if user_options.get("language") else "task",
        )
    if options.get("forced_decoder_ids") is None:
        options["forced_decoder_ids"] = getattr(model.config, "forced_decoder_ids", None)
    # Only the argument temperature counts, not that of the config, nor do_sample. Of several temperatures all but the
    # first are for a second try, which there is only with thresholds.
    temperature = user_options.get("temperature")
    if isinstance(temperature, (list, tuple)):
        temperature = temperature[0] if temperature else None
    if temperature is not None and temperature > 0:
        raise GraphError(
            f"generate() of Whisper draws tokens with temperature={temperature!r}, which is not supported; leave it "
            "out, and the most likely ones are taken.",
            option="temperature",
        )
    if user_options.get("do_sample"):
        raise GraphError(
            "generate() of Whisper draws no tokens for do_sample=True, but for a temperature above 0, which is not "
            "supported; leave it out.",
            option="do_sample",
        )
    return {**options, "do_sample": False, "temperature": 1.0}


def length_of(model: Any, family: ModelFamily, options: Mapping[str, Any], before: int) -> Any:
    """Returns how many tokens are added at most.

    Args:
        model: The model.
        family: Its family.
        options: As :func:`read_options` gives them.
        before: With how many tokens a sequence begins.
    """
    if options["max_new_tokens"] is not None:
        return options["max_new_tokens"]
    longest = options["max_length"]
    if not isinstance(longest, int):
        raise GraphError(f"max_length is a positive int, not {longest!r}.", option="max_length")
    if family.speech:
        most = model.config.max_target_positions
        return min(longest + min(most // 2 - 1, before), most) - before
    if options["default_length"]:
        limit = getattr(model.config, "max_position_embeddings", None)
        return NEW if limit is None else min(NEW, limit - before)
    return longest - before

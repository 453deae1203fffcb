"""The options of ``generate()``: which there are, what they say, and for a model that goes on with its prompt.

What is read here is what ``generate()`` of the model's class reads, in its order: an option of the user, also if it is
None; else one of the generation config; else the library's default.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from orchestrator import GraphError
from orchestrator.errors import nearest
from orchestrator_stages.generation.selection import Selection, read_selection
from orchestrator_stages.generation.tables import (
    FOLLOWED,
    FOLLOWED_SPEECH,
    REFUSED,
    REFUSED_SPEECH,
    UNREAD,
    UNREAD_SPEECH,
)
from orchestrator_stages.generation.versions import adds_length, default_options
from orchestrator_stages.origin import check_config

__all__ = [
    "NEW",
    "check_length",
    "known_options",
    "one_row",
    "prompt_selection",
    "read_options",
    "refuse_options",
]

NEW = 20
"""Tokens that are added at most where the config does not say; what ``generate()`` takes."""

PROMPT = 2
"""Tokens of a prompt that stands for all: what an option counts from the first token on is refused."""

INPUTS = frozenset({"inputs", "input_ids", "attention_mask", "input_features", "pixel_values"})

INSTEAD: Mapping[str, str] = {
    "generation_config": "Set model.generation_config, or pass its options one by one",
    "decoder_input_ids": "A sequence of Whisper begins with language and task",
    "negative_prompt_attention_mask": "A negative prompt is one row without padding: negative_prompt_ids=[[5, 6]]",
    "streamer": "Watch the tokens with session.stream(requests, partial=('token',))",
    "tokenizer": "Pass it as tokenizer=",
}
"""What to do instead of passing some arguments of ``generate()``."""


def known_options(*, speech: bool) -> frozenset[str]:
    """Returns the options that are followed, refused or without effect."""
    names = FOLLOWED | REFUSED.keys() | UNREAD
    return names | FOLLOWED_SPEECH | REFUSED_SPEECH.keys() | UNREAD_SPEECH if speech else names


def read_options(model: Any, user_options: Mapping[str, Any], *, speech: bool = False) -> dict[str, Any]:
    """Returns all options by name: of the user, also if it is None; else of the generation config; else the default.

    Args:
        model: The model.
        user_options: The options of the user.
        speech: Its ``generate()`` is that of Whisper.

    Raises:
        GraphError: One is none, or is one that only ``generate()`` has.
    """
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
    options["default_length"] = user_options.get("max_length") is None and adds_length(config)
    if user_options.get("max_length") is None and config.max_length is not None:
        options["max_length"] = config.max_length
    return options


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


def refuse_options(options: Mapping[str, Any], *, speech: bool = False) -> None:
    """Refuses options that change tokens in ways that are not supported.

    Args:
        options: All options.
        speech: They are those of Whisper.

    Raises:
        GraphError: One has a value that changes something.
    """
    # An option may stand there with a value that changes nothing, as `num_beam_groups=1` does.
    for name, neutral in {**REFUSED, **(REFUSED_SPEECH if speech else {})}.items():
        value = options.get(name)
        if value is None or value in neutral:
            continue
        raise GraphError(
            f"The options say {name}={value!r}, which is not supported. To go without, pass "
            f"{name}={neutral[0] if neutral else None!r}.",
            option=name,
            value=value,
        )


def check_length(new: Any) -> int:
    """Returns how many tokens are added at most.

    Raises:
        GraphError: It is no number of tokens.
    """
    if isinstance(new, bool) or not isinstance(new, int) or new < 1:
        raise GraphError(f"max_new_tokens is a positive int, not {new!r}.", option="max_new_tokens")
    return new


def prompt_selection(model: Any, user_options: Mapping[str, Any], tokenizer: Any = None) -> Selection:
    """Returns how a model chooses the tokens after its prompt.

    Args:
        model: The model.
        user_options: The options of the user, over those of the model's generation config.
        tokenizer: The tokenizer of the model, for stop strings.

    Raises:
        GraphError: An option asks for what is not supported.
    """
    # A length that counts the prompt leaves room for another number of new tokens in each request: the most there can
    # be are those after a prompt of one token.
    user_options = dict(user_options)
    negative = user_options.pop("negative_prompt_ids", None)
    options = read_options(model, user_options)
    new, longest = options["max_new_tokens"], None
    if new is None and not options["default_length"]:
        longest = options["max_length"]
        if isinstance(longest, bool) or not isinstance(longest, int) or longest < 2:
            raise GraphError(
                f"max_length counts the prompt and what is added, so it is an int of 2 or more, not {longest!r}.",
                option="max_length",
            )
        new = longest - 1
    if options.get("forced_bos_token_id") is not None:
        raise GraphError(
            "forced_bos_token_id is for models whose sequences begin with a token of their own; pass "
            "forced_bos_token_id=None.",
            option="forced_bos_token_id",
        )
    refuse_options(options)
    new = check_length((options["max_length"] or NEW) if new is None else new)
    own = {option: value for option, value in user_options.items() if option != "max_length"}
    selection = read_selection(model, own, PROMPT, new, tokenizer, is_prompt=True, longest=longest)
    return dataclasses.replace(
        selection, negative=_negative_ids(model, negative, is_read=selection.is_guided)
    )


def _negative_ids(model: Any, ids: Any, *, is_read: bool) -> tuple[int, ...]:
    """Returns the ids of a negative prompt.

    Args:
        model: The model.
        ids: As the user gives them; None: there are none.
        is_read: There is guidance, which reads them.

    Raises:
        GraphError: They are none of the model, or nothing reads them.
    """
    if ids is None:
        return ()
    if not is_read:
        raise GraphError(
            "negative_prompt_ids is read with guidance_scale alone; pass guidance_scale=..., or leave it out.",
            option="negative_prompt_ids",
        )
    row = one_row(ids, "negative_prompt_ids")
    vocabulary = model.get_output_embeddings().weight.shape[0]
    unknown = [token for token in row if not 0 <= token < vocabulary]
    if unknown:
        raise GraphError(
            f"negative_prompt_ids has {unknown[0]}, but the model knows {vocabulary} tokens.",
            option="negative_prompt_ids",
        )
    return tuple(row)


def one_row(ids: Any, option: str) -> list[int]:
    """Returns one row of ids that is the same for all rows of a request.

    Raises:
        GraphError: It is none.
    """
    tokens = torch.as_tensor(ids)
    if tokens.dim() != 2 or tokens.shape[0] != 1 or not tokens.shape[1] or tokens.is_floating_point():
        raise GraphError(
            f"{option} is one row of ids for all rows of a request, such as [[5, 6]], not {ids!r:.80}.",
            option=option,
        )
    row: list[int] = tokens[0].tolist()
    return row

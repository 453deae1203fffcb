"""What the options of ``generate()`` say for a decoder behind an encoder: what its sequences begin with, and how long.

Its prompt is its own and as long for all requests, so that lengths that count it are known when a pipeline is built.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator import GraphError
from orchestrator_stages.generation.options import (
    NEW,
    check_length,
    one_row,
    read_options,
    refuse_options,
)
from orchestrator_stages.generation.selection import Selection, SpeechChoice, read_selection
from orchestrator_stages.seq2seq.families import ModelFamily

__all__ = ["Beginning", "read_beginning"]

TWICE = frozenset(
    {
        *(
            "begin_suppress_tokens",
            "eos_token_id",
            "language",
            "max_length",
            "max_new_tokens",
            "pad_token_id",
        ),
        *("suppress_tokens", "task"),
    }
)
"""Options of which None of the user counts for Whisper; any other is read again from the generation config then."""


@dataclass(frozen=True)
class Beginning:
    """What every sequence begins with.

    Attributes:
        ids: The tokens; None: the model chooses a language.
        languages: Tokens of languages, the lowest first.
        timestamps: The first token of Whisper that is a time; None: there is none.
        positions: How many times a recording has.
        speech: What ``generate()`` of Whisper reads itself; None: it is another model.
    """

    ids: tuple[int | None, ...]
    languages: tuple[int, ...] = ()
    timestamps: int | None = None
    positions: int = 0
    speech: SpeechChoice | None = None

    def check(self, vocabulary: int) -> None:
        """Refuses tokens that a model does not know.

        Raises:
            GraphError: One is.
        """
        for place, token in enumerate(self.ids):
            if token is not None and not 0 <= token < vocabulary:
                option = "forced_decoder_ids" if place else "decoder_start_token_id"
                raise GraphError(
                    f"{option} is {token}, but the model knows {vocabulary} tokens.", option=option
                )


def read_beginning(
    model: Any, family: ModelFamily, user_options: Mapping[str, Any], tokenizer: Any = None
) -> tuple[Beginning, Selection]:
    """Returns what sequences begin with, and how the tokens after that are chosen.

    Args:
        model: The model.
        family: Its family.
        user_options: The options of the user, over those of the model's generation config.
        tokenizer: The tokenizer of the model, for stop strings.

    Raises:
        GraphError: An option asks for what is not supported, or contradicts another.
    """
    # What cannot be followed is refused first, so that no later message blames an option that would be refused anyway.
    own, speech, choice = dict(user_options), family.speech, None
    if speech:
        own = {option: value for option, value in own.items() if value is not None or option in TWICE}
    row = None if speech else own.pop("decoder_input_ids", None)
    options = read_options(model, own, speech=speech)
    if speech:
        own, options, choice = _as_whisper(model, options, own)
    refuse_options(options, speech=speech)
    if options.get("guidance_scale") not in (None, 1):
        raise GraphError(
            "guidance_scale is for models that go on with a prompt: behind an encoder generate() hands the tokens of "
            "the decoder to the encoder. Leave it out.",
            option="guidance_scale",
        )
    # Then what sequences begin with, how much follows, and how it is chosen.
    start = _start(options)
    ids: tuple[int | None, ...] = (start, *family.prompt(options))
    if row is not None:
        ids = _first_ids(model, start, row)
    last = options.get("no_timestamps_token_id") if speech else None
    languages = tuple(sorted((options.get("lang_to_id") or {}).values()))
    positions = model.config.max_source_positions if speech else 0
    beginning = Beginning(ids, languages, None if last is None else int(last) + 1, positions, choice)
    new = check_length(_length(model, options, len(ids), speech=speech))
    fewest = options.get("min_length")
    if options.get("min_new_tokens") is None and fewest and fewest > len(ids) + new:
        raise GraphError(
            f"min_length asks for {fewest} tokens, but at most {len(ids) + new} are made.",
            option="min_length",
        )
    has_text = family.modality == "text"
    selection = read_selection(model, own, len(ids), new, tokenizer, has_text=has_text, speech=choice)
    return beginning, selection


def _start(options: Mapping[str, Any]) -> int:
    """Returns the token that a sequence begins with."""
    start = options.get("decoder_start_token_id")
    start = options.get("bos_token_id") if start is None else start
    ids = [start] if not isinstance(start, Iterable) else list(start)
    if len(ids) != 1 or ids[0] is None:
        raise GraphError(
            "The generation config has no decoder_start_token_id; pass decoder_start_token_id=..."
            if ids == [None]
            else f"decoder_start_token_id is one token for all rows, not {ids}, which generate() takes as one for each "
            "row.",
            option="decoder_start_token_id",
        )
    return int(ids[0])


def _first_ids(model: Any, start: int, ids: Any) -> tuple[int, ...]:
    """Returns the tokens that every sequence begins with, as ``generate()`` reads ``decoder_input_ids``."""
    row = one_row(ids, "decoder_input_ids")
    # Donut begins with its task alone; all others with their start, whether it was given or not.
    is_donut = "donut" in getattr(getattr(model.config, "encoder", None), "model_type", "")
    return tuple(row if is_donut or row[0] == start else [start, *row])


def _as_whisper(
    model: Any, options: Mapping[str, Any], user_options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], SpeechChoice]:
    """Reads options as ``generate()`` of Whisper does, where that differs; returns those of the user, and all."""
    # First what it is told of the language, then how it chooses, then how sequences end.
    config, options = model.generation_config, dict(options)
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
    drawing, copies = _drawing(options, user_options)
    has_times = options.get("return_timestamps") or False
    if not isinstance(has_times, bool):
        raise GraphError(
            f"return_timestamps is True or False, not {has_times!r}.", option="return_timestamps"
        )
    if has_times and options.get("no_timestamps_token_id") is None:
        raise GraphError(
            "return_timestamps=True needs a generation config with no_timestamps_token_id: tokens of time are those "
            "after it.",
            option="return_timestamps",
        )
    # What it cuts off at the end of a sequence is one token, and what fills it up another.
    eos = options.get("eos_token_id")
    if isinstance(eos, Iterable) or (eos is None and config.eos_token_id is not None):
        raise GraphError(
            f"eos_token_id of Whisper is one int, not {eos!r}: of others generate() cuts no end.",
            option="eos_token_id",
        )
    if options.get("pad_token_id") is None and eos is not None:
        raise GraphError(
            "Whisper without pad_token_id is not supported; pass pad_token_id=...", option="pad_token_id"
        )
    return {**user_options, **drawing}, {**options, **drawing}, SpeechChoice(has_times, copies)


def _drawing(options: Mapping[str, Any], user_options: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Returns what ``generate()`` of Whisper makes of a temperature, and how often it gives each sequence back."""
    # Only the argument temperature counts, not that of the config, nor do_sample. Of several temperatures all but the
    # first are for a second try, which there is only with thresholds.
    temperature = user_options.get("temperature")
    if isinstance(temperature, (list, tuple)):
        temperature = temperature[0] if temperature else None
    if temperature is not None and (
        isinstance(temperature, bool) or not isinstance(temperature, (int, float))
    ):
        raise GraphError(f"temperature is a number, not {temperature!r}.", option="temperature")
    count = options.get("num_return_sequences") or 1
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise GraphError(
            f"num_return_sequences is a positive int, not {count!r}.", option="num_return_sequences"
        )
    beams = options.get("num_beams") or 1
    if count > 1 and not (beams >= count or (beams == 1 and options.get("do_sample"))):
        raise GraphError(
            f"generate() refuses num_return_sequences={count} unless there are as many beams, or do_sample=True is "
            "said besides a temperature.",
            option="num_return_sequences",
        )
    if temperature is not None and temperature > 0:
        drawing = {"do_sample": True, "temperature": float(temperature), "num_beams": 1}
        return {**drawing, "num_return_sequences": count}, 1
    if user_options.get("do_sample"):
        raise GraphError(
            "generate() of Whisper draws no tokens for do_sample=True, but for a temperature above 0; pass one, such "
            "as temperature=0.5, or leave do_sample out.",
            option="do_sample",
        )
    # Several sequences are as many recordings to it: where none is drawn they are the same.
    return {"do_sample": False, "temperature": 1.0, "num_return_sequences": 1}, count


def _length(model: Any, options: Mapping[str, Any], before: int, *, speech: bool) -> Any:
    """Returns how many tokens are added at most, of options as :func:`read_options` gives them."""
    if options["max_new_tokens"] is not None:
        return options["max_new_tokens"]
    longest = options["max_length"] or (NEW if options["default_length"] else None)
    if not isinstance(longest, int):
        raise GraphError(f"max_length is a positive int, not {longest!r}.", option="max_length")
    if speech:
        # From 5.0 on the tokens that a sequence begins with are added to it; in 4.57 they count in it.
        generation = copy.deepcopy(model.generation_config)
        generation.max_length, generation.max_new_tokens = longest, None
        first_ids = torch.zeros((1, before), dtype=torch.long)
        model._set_max_new_tokens_and_length(model.config, first_ids, generation)
        return min(generation.max_length, model.config.max_target_positions) - before
    if options["default_length"]:
        limit = getattr(model.config, "max_position_embeddings", None)
        return longest if limit is None else min(longest, limit - before)
    return longest - before

"""What the options of ``generate()`` say for a model that goes on with its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from orchestrator import GraphError
from orchestrator_stages.generation.selection import Selection, read_selection
from orchestrator_stages.seq2seq.options import read_options
from orchestrator_stages.seq2seq.rules import NEW, refuse_options

__all__ = ["prompt_selection"]

PROMPT = 2
"""Tokens of a prompt that stands for all: what an option counts from the first token on is refused."""

FOLLOWED = frozenset(
    {
        *(
            "diversity_penalty",
            "encoder_no_repeat_ngram_size",
            "encoder_repetition_penalty",
            "epsilon_cutoff",
        ),
        *("eta_cutoff", "exponential_decay_length_penalty", "min_p", "no_repeat_ngram_size", "num_beams"),
        *("max_time", "stop_strings"),
        *(
            "num_return_sequences",
            "repetition_penalty",
            "sequence_bias",
            "top_h",
            "typical_p",
            "bad_words_ids",
        ),
    }
)
"""Options that the classes of transformers follow."""


def prompt_selection(model: Any, user_options: Mapping[str, Any], tokenizer: Any = None) -> Selection:
    """Returns how a model chooses the tokens after its prompt.

    Args:
        model: The model.
        user_options: The options of the user, over those of the model's generation config.
        tokenizer: The tokenizer of the model, for stop strings.

    Raises:
        GraphError: An option asks for what is not supported.
    """
    # Lengths that count the prompt differ from request to request, so only those that count new tokens are rules.
    options = read_options(model, cast(Any, SimpleNamespace(speech=False)), user_options)
    new = options["max_new_tokens"]
    if new is None and not options["default_length"]:
        raise GraphError(
            f"max_length={options['max_length']} counts the prompt, whose length differs from request to request; say "
            "how many tokens are added: max_new_tokens=...",
            option="max_length",
        )
    if options.get("min_length") and options.get("min_new_tokens") is None:
        raise GraphError(
            f"min_length={options['min_length']} counts the prompt, whose length differs from request to request; say "
            "how many tokens are added at least: min_new_tokens=..., and min_length=0.",
            option="min_length",
        )
    if options.get("forced_bos_token_id") is not None:
        raise GraphError(
            "forced_bos_token_id is for models whose sequences begin with a token of their own; pass "
            "forced_bos_token_id=None.",
            option="forced_bos_token_id",
        )
    refuse_options(options, speech=False, exceptions=FOLLOWED)
    new = NEW if new is None else new
    if isinstance(new, bool) or not isinstance(new, int) or new < 1:
        raise GraphError(f"max_new_tokens is a positive int, not {new!r}.", option="max_new_tokens")
    own = {
        option: value for option, value in user_options.items() if option not in ("max_length", "min_length")
    }
    return read_selection(model, own, PROMPT, new, tokenizer)

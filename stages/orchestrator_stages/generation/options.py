"""What the options of ``generate()`` say for a model that goes on with its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from orchestrator import GraphError
from orchestrator_stages.seq2seq.options import read_options
from orchestrator_stages.seq2seq.rules import NEW, Rules, read_rules

__all__ = ["prompt_rules"]


def prompt_rules(model: Any, user_options: Mapping[str, Any]) -> Rules:
    """Returns the rules by which a model chooses tokens after its prompt.

    Args:
        model: The model.
        user_options: The options of the user, over those of the model's generation config.

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
    # A sequence begins with what is before its first new token; which token that is matters to no rule.
    return read_rules({**options, "decoder_start_token_id": 0, "max_new_tokens": NEW if new is None else new})

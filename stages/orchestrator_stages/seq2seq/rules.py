"""What a generation config says, read once into rules by position; what cannot be followed is refused.

*Iteration* ``i`` of the loop reads the token at position ``i`` and gives the one at ``i + 1``. The first tokens may be
a *prompt* that the model is given, such as the language for Whisper; they are forced like any other forced token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import GraphError
from orchestrator_stages.seq2seq.tables import REFUSED, REFUSED_SPEECH

__all__ = ["Rules", "Sampling", "TokenBan", "read_rules", "refuse_options"]

NEW = 20
"""Tokens that are added at most where the config does not say; what ``generate()`` takes."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: The logits are divided by it.
        top_k: Only so many of the most likely tokens are drawn from; 0: all.
        top_p: Only as many of them as hold this mass together; 1: all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not self.temperature > 0:
            raise GraphError(f"temperature is more than 0, not {self.temperature!r}.", option="temperature")
        if self.top_k < 0:
            raise GraphError(f"top_k is at least 0, which means all, not {self.top_k!r}.", option="top_k")
        if not 0 < self.top_p <= 1:
            raise GraphError(f"top_p is more than 0 and at most 1, not {self.top_p!r}.", option="top_p")


@dataclass(frozen=True)
class TokenBan:
    """Which tokens an iteration may not give.

    Attributes:
        never: These.
        only: Any but these; empty: any at all.
    """

    never: tuple[int, ...] = ()
    only: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rules:
    """How a sequence is made.

    Attributes:
        start: Its first token.
        prompt: The tokens after it that the model is given; None: the model chooses it from ``languages``.
        new: How many tokens the model may add.
        pad: What follows the end of a sequence.
        eos: Tokens that end it.
        min_length: It does not end before it has so many tokens, prompt included.
        banned_tokens: Tokens it never gets.
        banned_first_tokens: Tokens that are not the first one after the prompt.
        forced_bos: The token after ``start``, whatever the model says.
        forced_eos: The last possible token, likewise.
        languages: Tokens of languages.
        sampling: How tokens are drawn; None: always the most likely one.
        clean: Logits that are no numbers count as 0, infinite ones as the largest number.
        speech: The rules are those of Whisper.
        timestamps: The first token of Whisper that is a time; None: there is none.
    """

    start: int
    prompt: tuple[int | None, ...]
    new: int
    pad: int
    eos: tuple[int, ...]
    min_length: int = 0
    banned_tokens: tuple[int, ...] = ()
    banned_first_tokens: tuple[int, ...] = ()
    forced_bos: int | None = None
    forced_eos: int | None = None
    languages: tuple[int, ...] = ()
    sampling: Sampling | None = None
    clean: bool = False
    speech: bool = False
    timestamps: int | None = None

    @property
    def steps(self) -> int:
        """Iterations at most, which is also how many tokens the cache has to hold."""
        return len(self.prompt) + self.new

    @property
    def first(self) -> int:
        """The iteration at which ``banned_first_tokens`` counts."""
        if self.prompt or self.speech or self.forced_bos is None:
            return len(self.prompt)
        return 1

    def check(self, vocabulary: int) -> None:
        """Refuses tokens that a model does not know.

        Raises:
            GraphError: A token that is to be in every sequence is one.
        """
        for option, token in (
            ("decoder_start_token_id", self.start),
            ("forced_bos_token_id", self.forced_bos),
            ("forced_eos_token_id", self.forced_eos),
            *(("forced_decoder_ids", token) for token in self.prompt),
        ):
            if token is not None and not 0 <= token < vocabulary:
                raise GraphError(
                    f"{option} is {token}, but the model knows {vocabulary} tokens.", option=option
                )

    def forced_ids(self) -> list[int]:
        """For each iteration, the token that it must give, or -1."""
        token_ids = [-1] * self.steps
        if self.forced_bos is not None:
            token_ids[0] = self.forced_bos
        if self.forced_eos is not None:
            token_ids[-1] = self.forced_eos
        for place, token in enumerate(self.prompt):
            token_ids[place] = -1 if token is None else token
        return token_ids

    def ban_rows(self) -> tuple[list[int], list[TokenBan]]:
        """For each iteration, which of the kinds of bans applies; and the kinds."""
        kinds: dict[TokenBan, int] = {}
        rows = [kinds.setdefault(self._ban_at(place), len(kinds)) for place in range(self.steps)]
        return rows, list(kinds)

    def _ban_at(self, place: int) -> TokenBan:
        if place < len(self.prompt):
            return TokenBan(only=self.languages) if self.prompt[place] is None else TokenBan()
        never = [*self.banned_tokens]
        if place == self.first:
            never += self.banned_first_tokens
        if place + 1 < self.min_length:
            never += self.eos
        return TokenBan(tuple(sorted(set(never))))


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(item) for item in value) if isinstance(value, Iterable) else (int(value),)


def _one(options: Mapping[str, Any], option: str) -> int | None:
    """Returns the one token of an option.

    Raises:
        GraphError: There are several: ``generate()`` takes them as one for each row.
    """
    ids = _ids(options.get(option))
    if len(ids) > 1:
        raise GraphError(
            f"{option} is one token for all rows, not {list(ids)}, which generate() takes as one for each row.",
            option=option,
        )
    return ids[0] if ids else None


def _forced_token(
    options: Mapping[str, Any], option: str, never: Iterable[int], *, is_sampling: bool
) -> int | None:
    """Returns the token that an option forces: the lowest of several, as the most likely of equals is.

    Raises:
        GraphError: One of several would be drawn, or none is allowed.
    """
    # generate() lifts the forced tokens to equal logits and takes the first: of several the lowest id.
    ids = sorted(set(_ids(options.get(option))))
    candidates = [token for token in ids if token not in set(never)]
    if not ids:
        return None
    if not candidates:
        raise GraphError(f"{option}={ids} is suppressed as well, so no token is left.", option=option)
    if is_sampling and len(candidates) > 1:
        raise GraphError(
            f"{option}={ids}: with do_sample generate() draws one of them, which is not supported; give one.",
            option=option,
        )
    return candidates[0]


def _words(words: Any, eos: tuple[int, ...]) -> list[int]:
    """Tokens that are words nobody wants; the end is not banned as one."""
    return [word[0] for word in words or () if word[0] not in eos]


def refuse_options(
    options: Mapping[str, Any], *, speech: bool, exceptions: frozenset[str] = frozenset()
) -> None:
    """Refuses options that change tokens in ways that are not supported.

    Args:
        options: All options.
        speech: They are those of Whisper.
        exceptions: Options that are followed nevertheless.

    Raises:
        GraphError: One has a value that changes something.
    """
    # An option may stand there with a value that changes nothing, as `num_beams=1` does.
    words = options.get("bad_words_ids")
    table = {**REFUSED, **(REFUSED_SPEECH if speech else {})}
    requests = {name: value for name, value in options.items() if name in table and value is not None}
    if words is not None and any(len(word) != 1 for word in words):
        requests["bad_words_ids"] = words
    for name, value in requests.items():
        neutral = table.get(name, ())
        if value in neutral or name in exceptions:
            continue
        ways = "" if exceptions else ": tokens are chosen greedily, or drawn by temperature, top_k and top_p"
        raise GraphError(
            f"The generation config says {name}={value!r}{', which is beam search' * (name == 'num_beams')}. That is "
            f"not supported{ways}. To go without, pass {name}={neutral[0] if neutral else None!r}.",
            option=name,
            value=value,
        )


def read_rules(
    options: Mapping[str, Any], prompt: tuple[int | None, ...] = (), *, speech: bool = False
) -> Rules:
    """Returns the rules of a generation config.

    Args:
        options: Its options by name, as its ``to_dict()`` gives them, with what the user changed.
        prompt: The tokens after the start that the model is given.
        speech: They are read as ``generate()`` of Whisper reads them.

    Raises:
        GraphError: An option asks for what is not supported, or contradicts another.
    """
    # What cannot be followed is refused first, so that no later message blames an option that would be refused anyway.
    refuse_options(options, speech=speech)
    start, pad, eos = _special(options, speech=speech)
    before = 1 + len(prompt)
    new = _new_tokens(options, before)
    fewest = options.get("min_new_tokens")
    min_length = int(options.get("min_length") or 0) if fewest is None else before + int(fewest)
    if min_length > before + new:
        raise GraphError(
            f"min_length asks for {min_length} tokens, but at most {before + new} are made.",
            option="min_length",
        )
    # The forced tokens come last: whether one is allowed depends on the rules that stand by then.
    suppressed_tokens = _ids(options.get("suppress_tokens"))
    last = options.get("no_timestamps_token_id") if speech else None
    rules = Rules(
        start,
        prompt,
        new,
        pad,
        eos,
        min_length if min_length > before else 0,
        (*suppressed_tokens, *_words(options.get("bad_words_ids"), eos)),
        _ids(options.get("begin_suppress_tokens")),
        None,
        None,
        tuple((options.get("lang_to_id") or {}).values()),
        _sampling(options) if options.get("do_sample") else None,
        options.get("remove_invalid_values") is True,
        speech,
        None if last is None else int(last) + 1,
    )
    return _with_forced_tokens(rules, options, suppressed_tokens)


def _special(options: Mapping[str, Any], *, speech: bool) -> tuple[int, int, tuple[int, ...]]:
    """Returns the first token of a sequence, the one that fills it up, and those that end it."""
    # Each falls back on another token as in generate(): the start on the beginning of a sequence, the pad on its end.
    start, pad = _one(options, "decoder_start_token_id"), _one(options, "pad_token_id")
    eos = _ids(options.get("eos_token_id"))
    if start is None:
        start = _one(options, "bos_token_id")
    if start is None:
        raise GraphError(
            "The generation config has no decoder_start_token_id; pass decoder_start_token_id=...",
            option="decoder_start_token_id",
        )
    if speech and isinstance(options.get("eos_token_id"), Iterable):
        raise GraphError(
            f"eos_token_id of Whisper is one int, not {options['eos_token_id']!r}: of others generate() cuts no end.",
            option="eos_token_id",
        )
    if speech and pad is None and eos:
        raise GraphError(
            "Whisper without pad_token_id is not supported; pass pad_token_id=...", option="pad_token_id"
        )
    if pad is None:
        pad = eos[0] if eos else 0
    return start, pad, eos


def _with_forced_tokens(
    rules: Rules, options: Mapping[str, Any], suppressed_tokens: tuple[int, ...]
) -> Rules:
    """Fills in what is forced; a token that is suppressed where it would be forced is not allowed there."""
    # What the prompt stands in place of is forced by it already; the last place forces an end, whatever is drawn.
    is_sampling = rules.sampling is not None
    token_ids = {}
    for option, place in (("forced_bos_token_id", 0), ("forced_eos_token_id", rules.steps - 1)):
        if place < len(rules.prompt):
            continue
        at_first = place == len(rules.prompt) and (rules.speech or option != "forced_bos_token_id")
        never = (*suppressed_tokens, *(rules.banned_first_tokens if at_first else ()))
        token_ids[option] = _forced_token(options, option, never, is_sampling=is_sampling)
    return dataclasses.replace(
        rules,
        forced_bos=token_ids.get("forced_bos_token_id"),
        forced_eos=token_ids.get("forced_eos_token_id"),
    )


def _new_tokens(options: Mapping[str, Any], before: int) -> int:
    new = options.get("max_new_tokens")
    if new is None:
        longest = options.get("max_length")
        new = NEW if longest is None else longest - before
    if isinstance(new, bool) or not isinstance(new, int) or new < 1:
        raise GraphError(f"max_new_tokens is a positive int, not {new!r}.", option="max_new_tokens")
    return new


def _sampling(options: Mapping[str, Any]) -> Sampling:
    temperature, k, p = (options.get(name) for name in ("temperature", "top_k", "top_p"))
    return Sampling(
        1.0 if temperature is None else float(temperature),
        0 if k is None else int(k),
        1.0 if p is None else float(p),
    )

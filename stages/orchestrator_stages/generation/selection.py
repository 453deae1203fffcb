"""How the next token is chosen: a generation config as ``generate()`` prepares it, and processors made of it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator import GraphError
from orchestrator_stages.generation.processors import (
    LENGTH,
    PROMPTS,
    Guidance,
    ProcessorChain,
    follow_processors,
    library,
)
from orchestrator_stages.generation.stopping import StopStrings, make_stop_criterion

__all__ = ["Selection", "SpeechChoice", "read_selection"]

FORCED = ("forced_bos_token_id", "forced_eos_token_id")

MODES = ("greedy_search", "sample", "beam_search", "beam_sample")
"""Ways to choose tokens that are followed."""


@dataclass(frozen=True)
class SpeechChoice:
    """What ``generate()`` of Whisper reads itself.

    Attributes:
        has_times: Tokens of time are written among the others.
        copies: How often each sequence is given back, where none is drawn.
    """

    has_times: bool = False
    copies: int = 1


@dataclass(frozen=True)
class Selection:
    """How tokens are chosen.

    Attributes:
        config: The generation config, as ``generate()`` prepares it.
        processors: The processors that ``generate()`` makes of it.
        before: How many tokens there are before the first new one; of a prompt, which may have any number, an example.
        new: How many tokens are added at most.
        pad: What follows the end of a sequence.
        eos: Tokens that end it.
        stop_criterion: What ``generate()`` makes of stop strings; None: there are none.
        negative: The ids of a negative prompt, of which every row's second run begins; empty: there is none.
        longest: How many tokens a sequence has at most, its prompt included; None: as many as are added.
        counting: Classes of processors that count the prompt, which is not as long in all requests.
    """

    config: Any
    processors: tuple[Any, ...]
    before: int
    new: int
    pad: int
    eos: tuple[int, ...]
    stop_criterion: Any = None
    negative: tuple[int, ...] = ()
    longest: int | None = None
    counting: tuple[str, ...] = ()

    @property
    def is_sampling(self) -> bool:
        """Whether tokens are drawn."""
        return bool(self.config.do_sample)

    @property
    def has_beams(self) -> bool:
        """Whether several sequences of a row compete."""
        return bool((self.config.num_beams or 1) > 1)

    @property
    def lanes(self) -> int:
        """How many sequences are made of each row at the same time."""
        return max(self.config.num_beams or 1, self.results)

    @property
    def results(self) -> int:
        """How many sequences of each row are given back."""
        return self.config.num_return_sequences or 1

    @property
    def max_time(self) -> float | None:
        """After how many seconds no further token is made; None: that does not matter."""
        return self.config.max_time  # type: ignore[no-any-return]

    @property
    def is_guided(self) -> bool:
        """Whether the model runs a second time for each token."""
        return any(isinstance(processor, Guidance) for processor in self.processors)

    @property
    def counts_lengths(self) -> bool:
        """Whether how long a sequence is shows by counting alone: another thing than its last token may end it."""
        return not self.has_beams and (self.stop_criterion is not None or self.max_time is not None)

    @property
    def is_by_row(self) -> bool:
        """Whether the tokens of a row do not depend on which others are in a request."""
        # Numbers are drawn for one row after the other, time is that of all, and without a token that ends a sequence
        # generate() goes on with those that ended by a string as long as there are others.
        has_no_end = self.stop_criterion is not None and not self.eos and not self.has_beams
        return not self.is_sampling and self.max_time is None and not has_no_end

    @property
    def gap(self) -> int:
        """What fills a sequence that ended, in beam search: the end where the pad is token 0, as in ``generate()``."""
        return (self.pad or self.eos[0]) if self.eos else -1

    def follow(self, vocabulary: int) -> ProcessorChain | None:
        """Returns the processors as a module, or None if they have to run on the host.

        Args:
            vocabulary: Number of tokens.

        Raises:
            GraphError: A token that is to be in every sequence is none, or is suppressed.
        """
        for option in FORCED:
            ids = _forced_ids(self.config, option)
            unknown = [token for token in ids if not 0 <= token < vocabulary]
            if unknown:
                raise GraphError(
                    f"{option} is {unknown[0]}, but the model knows {vocabulary} tokens.", option=option
                )
            last = (self.longest or self.before + self.new) - self.before - 1
            step = 0 if option == "forced_bos_token_id" else last
            if ids and not self._leaves_a_token(step, vocabulary):
                raise GraphError(f"{option}={ids} is suppressed as well, so no token is left.", option=option)
        most = max(self.config.min_length or 0, self.config.max_length)
        return follow_processors(
            self.processors, self.before, self.new, vocabulary, self.counting, most if self.counting else 0
        )

    def _leaves_a_token(self, step: int, vocabulary: int) -> bool:
        """Whether processors that look at no token so far leave one to choose."""
        scores = torch.zeros(1, vocabulary)
        for processor in self.processors:
            if type(processor).__name__ in (*LENGTH, "SuppressTokensLogitsProcessor"):
                scores = processor(torch.zeros(1, self.before + step, dtype=torch.int64), scores)
        return bool(scores.isfinite().any())

    def ports(self, processors: ProcessorChain | None, stop: StopStrings | None) -> tuple[str, ...]:
        """Returns what the choice of a token takes besides logits and its own state.

        Args:
            processors: As :meth:`follow` gives them.
            stop: As :meth:`follow_stop` gives it.
        """
        reads_ids = (processors is not None and processors.reads_ids) or stop is not None
        return (
            *(PROMPTS if reads_ids else ()),
            *(("noise",) if self.is_sampling else ()),
            *(("is_over",) if self.max_time is not None else ()),
            *(("guide",) if processors is not None and self.is_guided else ()),
            *(("width",) if self.longest is not None or (processors is not None and self.counting) else ()),
        )

    def follow_stop(self, vocabulary: int) -> StopStrings | None:
        """Returns what looks for stop strings as a module, or None if there are none.

        Args:
            vocabulary: Number of tokens.
        """
        return None if self.stop_criterion is None else StopStrings(self.stop_criterion, vocabulary)


def read_selection(
    model: Any,
    options: Mapping[str, Any],
    before: int,
    new: int,
    tokenizer: Any = None,
    *,
    is_prompt: bool = False,
    longest: int | None = None,
    has_text: bool = True,
    speech: SpeechChoice | None = None,
) -> Selection:
    """Returns how ``generate()`` of a model would choose tokens.

    Args:
        model: The model.
        options: The options of the user.
        before: How many tokens there are before the first new one.
        new: How many are added at most.
        tokenizer: The tokenizer of the model, for stop strings.
        is_prompt: These are an example: how many there are differs from request to request.
        longest: How many tokens there are at most with these; None: as many as are added.
        has_text: What the model reads are tokens, which processors may look at.
        speech: Where its ``generate()`` is that of Whisper, what that reads itself.

    Raises:
        GraphError: In a way that is not followed, or an option has a value that ``generate()`` refuses.
    """
    # The steps of generate(), by its own methods: what the config says, which tokens are special, how long it gets, and
    # only then the processors, which are made of all that. What the library refuses on the way is told of its option.
    try:
        config, _ = model._prepare_generation_config(None, **{**options, "max_new_tokens": new})
        negative = next(
            (option for option in FORCED if min(_forced_ids(config, option), default=0) < 0), None
        )
        if negative is not None:
            raise GraphError(
                f"{negative} is {getattr(config, negative)}, which is no token.", option=negative
            )
        if config.do_sample and config.top_p is not None and not 0 < config.top_p <= 1:
            raise GraphError(f"top_p is more than 0 and at most 1, not {config.top_p!r}.", option="top_p")
        mode = config.get_generation_mode()
        if mode.value not in MODES:
            raise GraphError(
                f"The options ask for {mode.value.replace('_', ' ')}, which is not supported; followed are "
                f"{', '.join(name.replace('_', ' ') for name in MODES)}.",
                option="num_beams",
            )
        model._prepare_special_tokens(config, True, device=torch.device("cpu"))
        example = torch.zeros(1, before, dtype=torch.int64)
        config = model._prepare_generated_length(config, True, True, "input_ids", before, example)
        config.max_length = config.max_length if longest is None else longest
        first = None if speech is None else _processors_of_whisper(model, config, before, speech)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            processors = model._get_logits_processor(
                generation_config=config,
                input_ids_seq_length=before,
                encoder_input_ids=example if has_text else example[..., None],
                logits_processor=first,
                device=torch.device("cpu"),
                model_kwargs={"attention_mask": torch.arange(before)[None] > 0},
            )
        stop = _stop_criterion(config, tokenizer)
        # One of them holds the model; here it is told what it would run that for.
        guided = library.UnbatchedClassifierFreeGuidanceLogitsProcessor
        processors = [
            Guidance(item.guidance_scale) if isinstance(item, guided) else item for item in processors
        ]
    except (TypeError, ValueError) as error:
        raise GraphError(
            f"generate() refuses these options: {error}", option=_culprit(options, error)
        ) from error
    eos = [] if config._eos_token_tensor is None else config._eos_token_tensor.tolist()
    pad = config._pad_token_tensor
    pad_id = 0 if pad is None else int(pad)
    result = Selection(config, tuple(processors), before, new, pad_id, tuple(eos), stop, longest=longest)
    return dataclasses.replace(result, counting=_counting(result)) if is_prompt else result


def _counting(selection: Selection) -> tuple[str, ...]:
    """Classes of processors that count a prompt in lengths which the user counts with it."""
    config = selection.config
    names = [
        *["MinLengthLogitsProcessor"] * (config.min_new_tokens is None),
        *["ForcedEOSTokenLogitsProcessor"] * (selection.longest is not None),
    ]
    classes = {type(processor).__name__ for processor in selection.processors}
    return tuple(name for name in names if name in classes)


def _forced_ids(config: Any, option: str) -> list[int]:
    """The tokens that an option of a generation config forces."""
    forced = getattr(config, option)
    return forced if isinstance(forced, list) else [] if forced is None else [forced]


def _processors_of_whisper(model: Any, config: Any, before: int, speech: SpeechChoice) -> Any:
    """The processors that ``generate()`` of Whisper makes itself."""
    config.return_timestamps, config.no_speech_threshold = speech.has_times, None
    return model._retrieve_logit_processors(config, None, before, config.num_beams or 1, torch.device("cpu"))


def _stop_criterion(config: Any, tokenizer: Any) -> Any:
    """What ends sequences by a string, and whether the time that ends them is one.

    Raises:
        GraphError: There are strings and no tokenizer, or the time is none.
        ValueError: ``generate()`` refuses the strings.
    """
    limit = config.max_time
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float))):
        raise GraphError(f"max_time is a number of seconds, not {limit!r}.", option="max_time")
    if config.stop_strings is None:
        return None
    if tokenizer is None:
        raise GraphError(
            "stop_strings needs the tokenizer of the model, or its processor: from_transformers(model, tokenizer, "
            "stop_strings=...).",
            option="stop_strings",
        )
    return make_stop_criterion(tokenizer, config.stop_strings)


def _culprit(options: Mapping[str, Any], error: Exception) -> str | None:
    """The option that an error of the library is about, if it names one."""
    return next((option for option in options if option in str(error)), None)

"""Logits processors of transformers as a module of static shape: their own classes, called with what they look at.

A processor looks at scores, at how many tokens there are, or at the tokens so far. The first is called as it is. The
second is called with as many ids as there are, one call for each kind of what it does there. The third gets the ids in
a buffer of fixed length, the last token at its end and before the first one an id that no token has; whether it is
right there is tried with ids of several lengths when a pipeline is built. What is not, runs on the host.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from orchestrator import HostStage, TensorSpec
from orchestrator.isolation import fake_mode

__all__ = [
    "PROMPTS",
    "Guidance",
    "HostProcessors",
    "LibraryObject",
    "ProcessorChain",
    "follow_processors",
    "ids_so_far",
    "in_lanes",
    "in_rows",
    "to_the_left",
]

library: Any = importlib.import_module("transformers.generation.logits_process")

SCORES = (
    *("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TopHLogitsWarper"),
    *("MinPLogitsWarper", "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper"),
    *("SuppressTokensLogitsProcessor", "InfNanRemoveLogitsProcessor", "LogitNormalization"),
)
"""Classes that look at scores only."""

LENGTH = (
    *("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "ForcedBOSTokenLogitsProcessor"),
    *("ForcedEOSTokenLogitsProcessor", "SuppressTokensAtBeginLogitsProcessor"),
)
"""Classes that look at how many tokens there are, besides."""

IDS = (
    *("RepetitionPenaltyLogitsProcessor", "NoRepeatNGramLogitsProcessor", "SequenceBiasLogitsProcessor"),
    "NoBadWordsLogitsProcessor",
)
"""Classes that look at the tokens so far, from the last one back."""

COUNTING = (*LENGTH, "ExponentialDecayLengthPenalty")
"""Classes that look at no id, only at how many there are; here they count from the first new token."""

PROMPTS = ("before", "is_token")
"""What is read of prompts where the tokens so far are looked at."""

KINDS = 4
"""Effects by length that a processor may have on the device: each costs a call in every iteration."""

LENGTHS_TO_TRY = (1, 2, 3, 5, 9)
"""Numbers of tokens with which a processor is tried on a buffer."""


def to_the_left(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Moves padding to the left, wherever it is; the order of tokens stays.

    Args:
        mask: ``[batch, tokens]``, 0 where there is padding.
        tensors: ``[..., batch, tokens]``.
    """
    # The place of a token counts those behind it, that of padding the padding before it: a permutation of each row.
    is_token = mask.to(torch.bool)
    padding = (~is_token).to(torch.int64)
    places = torch.where(
        is_token,
        mask.shape[1] - 1 - is_token.to(torch.int64).flip(1).cumsum(1).flip(1) + 1,
        padding.cumsum(1) - 1,
    )
    return tuple(tensor.scatter(-1, places.expand(tensor.shape), tensor) for tensor in tensors)


def ids_so_far(before: Tensor, new_ids: Tensor, step: Tensor, filler: int) -> Tensor:
    """Returns the tokens so far ``[rows, length + new]``, the last one at the end, ``filler`` before the first.

    Args:
        before: ``[rows, length]``: those before the first new one, filled up on the left in the same way.
        new_ids: ``[rows, new]``: new ones, of which those from ``step`` on are not there yet.
        step: ``[1]``, int64.
        filler: An id that no token has.
    """
    gap = torch.full_like(new_ids, filler)
    places = torch.arange(before.shape[1] + new_ids.shape[1], device=step.device) + step
    return torch.cat([gap, before, new_ids], 1).index_select(1, places)


class LibraryObject(nn.Module):
    """A processor or stopping criterion of transformers whose tensors are buffers of a module.

    Args:
        original: It, as ``generate()`` makes it.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.kind = type(original)
        leaves, self._tree = pytree.tree_flatten(dict(vars(original)))
        self._values = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for place in self._places:
            self.register_buffer(f"tensor{place}", leaves[place], persistent=False)

    def restore(self) -> Any:
        """Returns the object with the buffers as its tensors, where they are now."""
        values: list[Any] = list(self._values)
        for place in self._places:
            values[place] = getattr(self, f"tensor{place}")
        result = object.__new__(self.kind)
        vars(result).update(pytree.tree_unflatten(values, self._tree))
        return result


class LibraryProcessor(LibraryObject):
    """A processor of transformers as a module."""

    def forward(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores ``[rows, vocabulary]`` as the class changes them.

        Args:
            ids: ``[rows, length]``.
            scores: ``[rows, vocabulary]``, float32.
        """
        result: Tensor = self.restore()(ids, scores.clone())
        return result


class Guidance(library.UnbatchedClassifierFreeGuidanceLogitsProcessor):  # type: ignore[misc]
    """The processor of the library that compares with a second run of the model, without the model.

    Args:
        scale: The weight of the difference.
        logits: ``[rows, vocabulary]`` of the second run; None: they come with a token.
    """

    def __init__(self, scale: float, logits: Tensor | None = None) -> None:
        self.guidance_scale = scale
        self.logits = logits

    def get_unconditional_logits(self, input_ids: Any) -> Tensor:
        """Returns what the class runs the model for, ``[rows, 1, vocabulary]``."""
        del input_ids
        assert self.logits is not None
        return self.logits[:, None]


class GuidanceProcessor(nn.Module):
    """The same as a module: logits of the second run and scores ``[rows, vocabulary]`` to scores.

    Args:
        scale: The weight of the difference.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, guide: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores as the class changes them."""
        result: Tensor = Guidance(self.scale, guide)(None, scores)
        return result


class LengthProcessor(nn.Module):
    """A processor that does the same at most lengths.

    Args:
        processor: The processor.
        rows: By number of tokens, which of ``lengths`` it is; -1: it does nothing. The last counts for all above it.
        lengths: Numbers of tokens, one for each kind of what it does.
    """

    rows: Tensor

    def __init__(self, processor: LibraryProcessor, rows: Sequence[int], lengths: Sequence[int]) -> None:
        super().__init__()
        self.processor = processor
        self.lengths = tuple(lengths)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, count: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores as the class changes them.

        Args:
            count: ``[1]`` or ``[rows]``, int64: how many tokens there are.
            scores: ``[rows, vocabulary]``, float32.
        """
        row = self.rows[count.clamp(max=len(self.rows) - 1)][:, None]
        result = scores
        for kind, length in enumerate(self.lengths):
            ids = torch.zeros(scores.shape[0], length, dtype=torch.int64, device=scores.device)
            result = torch.where(row == kind, self.processor(ids, scores), result)
        return result


class ProcessorChain(nn.Module):
    """Processors in the order of ``generate()``.

    Args:
        processors: Modules, each with what its class looks at: ``scores``; ``length``, how many tokens are new;
            ``whole``, how many there are with the prompt; ``ids``; ``tokens``, ids without the padding of a prompt; or
            ``guide``, logits of a second run.
        filler: The id that no token has.

    Attributes:
        reads_ids: Whether one looks at the tokens so far.
    """

    def __init__(self, processors: Sequence[tuple[str, nn.Module]], filler: int) -> None:
        super().__init__()
        self.reads = tuple(reads for reads, _ in processors)
        self.processors = nn.ModuleList(processor for _, processor in processors)
        self.filler = filler
        self.reads_ids = "ids" in self.reads or "tokens" in self.reads

    def forward(
        self,
        scores: Tensor,
        step: Tensor,
        new_ids: Tensor,
        *prompts: Tensor,
        guide: Tensor | None = None,
        width: Tensor | None = None,
    ) -> Tensor:
        """Returns processed scores.

        Args:
            scores: ``[rows, vocabulary]``, float32.
            step: ``[1]``, int64: how many tokens were chosen.
            new_ids: ``[rows, new]``, int64: these.
            prompts: Where ``reads_ids``: ``before`` ``[rows, length]``, see :func:`ids_so_far`, and ``is_token``, the
                same, bool, False where there is padding.
            guide: ``[rows, vocabulary]``: logits of a second run, where one is looked at.
            width: ``[rows]``, int64: how many tokens the prompt has, where they are counted.
        """
        looks = {"scores": scores.new_zeros(0), "length": step}
        looks |= {} if guide is None else {"guide": guide}
        looks |= {} if width is None else {"whole": step + width}
        if self.reads_ids:
            before, is_token = prompts
            bare = torch.where(is_token, before, self.filler)
            for name, prompt in (("ids", before), ("tokens", bare)):
                if name in self.reads:
                    looks[name] = ids_so_far(prompt, new_ids, step, self.filler)
        for reads, processor in zip(self.reads, self.processors, strict=True):
            scores = processor(looks[reads], scores)
        return scores


def follow_processors(
    processors: Sequence[Any],
    before: int,
    steps: int,
    vocabulary: int,
    counting: Collection[str] = (),
    longest: int = 0,
) -> ProcessorChain | None:
    """Returns processors as one module, or None where one of them has to run on the host.

    Args:
        processors: As ``generate()`` makes them.
        before: How many tokens there are before the first new one.
        steps: How many new ones at most.
        vocabulary: Number of tokens.
        counting: Classes that count tokens of the prompt, whose number differs from request to request.
        longest: Above so many tokens such a class does always the same.
    """
    chain: list[tuple[str, nn.Module]] = []
    for processor in processors:
        is_counting = type(processor).__name__ in counting
        lengths = range(longest + 2) if is_counting else range(before, before + steps)
        links = _links(processor, "whole" if is_counting else "length", lengths, vocabulary)
        if links is None:
            return None
        chain += links
    return ProcessorChain(chain, vocabulary)


def _links(
    processor: Any, count: str, lengths: Sequence[int], vocabulary: int
) -> Sequence[tuple[str, nn.Module]] | None:
    """Returns a processor as modules, each with what it looks at: none if it never does anything; None: on the host."""
    name = type(processor).__name__
    if isinstance(processor, Guidance):
        return [("guide", GuidanceProcessor(processor.guidance_scale))]
    if getattr(library, name, None) is not type(processor):
        return None
    # The first call of some classes lays down tensors for this vocabulary; a module has them from the beginning.
    if name in IDS:
        processor(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, vocabulary))
    # Padding that a class leaves out itself, by a tensor of this request, is put out of its sight instead.
    reads = "ids"
    if isinstance(vars(processor).get("prompt_ignore_length"), Tensor):
        processor, reads = copy.copy(processor), "tokens"
        processor.prompt_ignore_length = None
    module = LibraryProcessor(processor)
    if not _is_static(module, vocabulary):
        return None
    if name in SCORES:
        return [("scores", module)]
    if name in LENGTH:
        kinds = _kinds(module, lengths, vocabulary)
        return None if kinds is None else [(count, LengthProcessor(module, *kinds))] * bool(kinds[1])
    return [(reads, module)] if name in IDS and _is_right_on_a_buffer(processor, module, vocabulary) else None


def _is_static(processor: LibraryProcessor, vocabulary: int) -> bool:
    """Whether a processor asks no tensor for its content."""
    with fake_mode(), torch.no_grad():
        try:
            processor(torch.zeros(2, max(LENGTHS_TO_TRY), dtype=torch.int64), torch.zeros(2, vocabulary))
        except Exception:
            return False
    return True


def _kinds(
    processor: LibraryProcessor, lengths_to_try: Sequence[int], vocabulary: int
) -> tuple[list[int], list[int]] | None:
    """By length which kind of effect a processor has, and a length for each; None: too many of them."""
    probe = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
    effects: list[Tensor] = []
    lengths: list[int] = []
    rows = []
    for length in lengths_to_try:
        effect = processor(torch.zeros(1, length, dtype=torch.int64), probe)
        row = -1 if effect.equal(probe) else next((k for k, e in enumerate(effects) if e.equal(effect)), None)
        if row is None:
            row = len(effects)
            effects.append(effect)
            lengths.append(length)
        if len(effects) > KINDS:
            return None
        rows.append(row)
    return rows, lengths


def _is_right_on_a_buffer(processor: Any, module: LibraryProcessor, vocabulary: int) -> bool:
    """Whether a processor does with filled up ids what it does with the ids alone, whatever their number."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, vocabulary, generator=generator)
    space = max(LENGTHS_TO_TRY) + 2
    try:
        for length in LENGTHS_TO_TRY:
            # Few different tokens, so that they repeat; and the last ones there are, so that no edge is left out.
            low = torch.randint(max(vocabulary - 3, 0), vocabulary, (2, length), generator=generator)
            ids = torch.nn.functional.pad(low, (space - length, 0), value=vocabulary)
            if not module(ids, scores).equal(processor(low, scores.clone())):
                return False
    except (RuntimeError, IndexError):
        return False
    return True


class HostProcessors(HostStage):
    """Host stage: processors that look at the tokens so far in ways that no device follows.

    Takes ``logits`` ``[batch, ..., vocabulary]``, ``step`` ``[1]``, ``new_ids`` ``[batch, ..., new]``, ``ids``
    ``[batch, tokens]``, the prompts of the request, and ``seen``, their mask, or ``encoded``, what an encoder read in
    place of them. Gives ``scores`` like ``logits``.

    Args:
        processors: The processors.
        spec: Of the scores.
        lanes: How many sequences a row has.
        before: How many tokens the processors think that a prompt has.
        is_normal: They change logarithms of probabilities, which the logits are made first.
        is_encoded: There is an encoder; prompts are those of its decoder, and have no padding.
        is_guided: Behind all others it takes ``guide`` like ``logits``, those of a second run.
        counting: Classes that count the tokens of the prompt.
    """

    def __init__(
        self,
        processors: Sequence[Any],
        spec: TensorSpec,
        lanes: int,
        before: int,
        *,
        is_normal: bool,
        is_encoded: bool = False,
        is_guided: bool = False,
        counting: Collection[str] = (),
    ) -> None:
        super().__init__(tag="process")
        self.processors = tuple(processors)
        self.lanes = lanes
        self.before = before
        self.is_normal = is_normal
        self.is_encoded = is_encoded
        self.counting = frozenset(counting)
        guide = ("guide",) if is_guided else ()
        self.ports = ("step", "new_ids", "ids", "encoded" if is_encoded else "seen", *guide)
        self.inputs = dict.fromkeys(("logits", *self.ports))
        self.outputs = {"scores": spec}

    def forward(
        self, logits: Tensor, step: Tensor, new_ids: Tensor, ids: Tensor, other: Tensor, *guide: Tensor
    ) -> Tensor:
        """Calls them one after another with exactly the tokens that there are."""
        # What is of a row comes once for each of its lanes, which are rows here.
        logits, *guide_rows = (in_lanes(tensor, self.lanes) for tensor in (logits, *guide))
        scores = logits.flatten(0, -2)
        guides = [tensor.flatten(0, -2) for tensor in guide_rows]
        ids, seen = (ids, torch.ones_like(ids)) if self.is_encoded else to_the_left(other, ids, other)
        padding = (seen != 0).to(torch.int64).argmax(1).repeat_interleave(self.lanes, 0)
        new = new_ids.flatten(0, -2)[:, : int(step)]
        whole = torch.cat([ids.repeat_interleave(self.lanes, 0), new], 1)
        scores = scores.log_softmax(-1) if self.is_normal else scores
        count = whole.new_zeros(len(whole), self.before + int(step))
        for processor in self.processors:
            name = type(processor).__name__
            seen_ids = count if name in COUNTING and name not in self.counting else whole
            prompts = other if self.is_encoded else ids
            scores = bind_request(processor, prompts, padding, *guides)(seen_ids, scores)
        return scores.view_as(logits)


def in_lanes(logits: Tensor, lanes: int) -> Tensor:
    """Returns logits ``[batch, lanes, vocabulary]``, of a prompt for all of them; without that dim if there is one."""
    return logits[:, None].expand(-1, lanes, -1) if lanes > 1 and logits.dim() == 2 else logits


def in_rows(values: Mapping[str, Tensor], lanes: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns what :class:`ProcessorChain` takes of a request, each lane a row.

    Args:
        values: By name what there is of each row of the batch: ``before``, ``is_token``, ``guide``, ``width``.
        lanes: How many sequences a row has.

    Returns:
        The prompts, and what goes by its name.
    """
    named = {}
    if "guide" in values:
        named["guide"] = in_lanes(values["guide"], lanes).reshape(-1, values["guide"].shape[-1])
    if "width" in values:
        named["width"] = values["width"].repeat_interleave(lanes, 0)
    return [values[name].repeat_interleave(lanes, 0) for name in PROMPTS if name in values], named


def bind_request(processor: Any, ids: Tensor, padding: Tensor, *guide: Tensor) -> Any:
    """Returns a processor that knows the prompts of this request, or what was encoded, padding, and a second run."""
    # generate() makes processors for each request, of its tensors; these are all that hold one.
    if isinstance(processor, library.EncoderNoRepeatNGramLogitsProcessor):
        return type(processor)(processor.ngram_size, ids)
    if isinstance(processor, Guidance):
        return Guidance(processor.guidance_scale, *guide)
    bound = copy.copy(processor)
    if isinstance(processor, library.EncoderRepetitionPenaltyLogitsProcessor):
        bound.encoder_input_ids = ids
    if isinstance(vars(processor).get("prompt_ignore_length"), Tensor):
        bound.prompt_ignore_length = padding
    return bound

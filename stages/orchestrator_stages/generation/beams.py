"""Beam search on the device: the steps of transformers, over tensors whose size does not change from token to token.

What ``generate()`` does with a Python int, the length so far, is done here with a tensor: scores are divided by the
power of a length before they go to a step of the library, and tokens are written by us. The steps are the library's.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, TensorSpec
from orchestrator_stages.generation.processors import ProcessorChain, in_lanes, in_rows
from orchestrator_stages.generation.sampling import draw_tokens
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.stopping import StopStrings

__all__ = ["BeamStep", "beam_specs"]

steps: Any = importlib.import_module("transformers.generation.utils").GenerationMixin

WORST = -1.0e9
"""The score of a beam that is none, as in ``generate()``."""


def beam_specs(selection: Selection, rows: Dim) -> dict[str, TensorSpec]:
    """Returns what :class:`BeamStep` takes besides logits and gives again, in this order.

    Args:
        selection: How tokens are chosen.
        rows: The dim of the batch.
    """
    beams, new = selection.lanes, selection.new
    return {
        "step": TensorSpec((1,), torch.int64),
        "new_ids": TensorSpec((rows, beams, new), torch.int64),
        "running_scores": TensorSpec((rows, beams)),
        "running_beams": TensorSpec((rows, beams, new), torch.int32),
        "sequences": TensorSpec((rows, beams, new), torch.int64),
        "scores": TensorSpec((rows, beams)),
        "beams": TensorSpec((rows, beams, new), torch.int32),
        "is_complete": TensorSpec((rows, beams), torch.bool),
        "improvable": TensorSpec((rows, 1), torch.bool),
    }


def begin_beams(selection: Selection, is_filler: Tensor) -> dict[str, Tensor]:
    """Returns what the first step takes.

    Args:
        selection: How tokens are chosen.
        is_filler: ``[batch]``, bool: rows that fill up the batch.
    """
    device, rows, beams = is_filler.device, is_filler.shape[0], selection.lanes
    empty = torch.full((rows, beams, selection.new), selection.gap, dtype=torch.int64, device=device)
    nowhere = torch.full_like(empty, -1, dtype=torch.int32)
    # All beams are the same at first, so only the first one counts.
    first = torch.arange(beams, device=device) == 0
    return {
        "step": torch.zeros(1, dtype=torch.int64, device=device),
        "new_ids": empty,
        "running_scores": torch.where(first, 0.0, WORST).expand(rows, -1).contiguous(),
        "running_beams": nowhere,
        "sequences": empty.clone(),
        "scores": torch.full((rows, beams), WORST, device=device),
        "beams": nowhere.clone(),
        "is_complete": is_filler[:, None].expand(-1, beams).contiguous(),
        "improvable": ~is_filler[:, None],
    }


class BeamStep(nn.Module):
    """Goes on with the best beams of each row.

    Args:
        selection: How tokens are chosen.
        processors: Change the logarithms of probabilities; None: it was done before.
        stop: Looks for stop strings; None: there are none.

    Attributes:
        ports: What it takes behind the state of the beams, see
            :class:`~orchestrator_stages.generation.choose.NextToken`.
    """

    divisors: Tensor
    eos: Tensor
    is_top: Tensor

    def __init__(
        self, selection: Selection, processors: ProcessorChain | None, stop: StopStrings | None = None
    ) -> None:
        super().__init__()
        self.beams, self.new = selection.lanes, selection.new
        self.candidates = max(2, 1 + len(selection.eos)) * self.beams
        self.is_sampling = selection.is_sampling
        self.early_stopping = selection.config.early_stopping
        self.longest = selection.longest
        self.processors = processors
        self.stop = stop
        self.ports = selection.ports(processors, stop)
        penalty = float(selection.config.length_penalty)
        divisors = [length**penalty for length in range(1, self.new + 1)]
        # What a running beam may still become is judged by its length now, or by the longest there can be.
        self.is_patient = self.early_stopping == "never" and penalty > 0
        best = [divisors[-1]] * self.new if self.is_patient else divisors
        self.register_buffer("divisors", torch.tensor([divisors, best]), persistent=False)
        self.register_buffer("eos", torch.tensor(selection.eos, dtype=torch.int64), persistent=False)
        is_top = torch.arange(self.candidates) < self.beams
        self.register_buffer("is_top", is_top, persistent=False)

    @property
    def constants(self) -> dict[str, Any]:
        """What the step that keeps ended beams takes in every call: scores are divided already."""
        numbers = {"num_beams": self.beams, "cur_len": 0, "decoder_prompt_len": 0, "length_penalty": 0.0}
        return {**numbers, "top_num_beam_mask": self.is_top, "early_stopping": self.early_stopping}

    def forward(
        self,
        logits: Tensor,
        is_filler: Tensor,
        step: Tensor,
        new_ids: Tensor,
        running_scores: Tensor,
        running_beams: Tensor,
        sequences: Tensor,
        scores: Tensor,
        beams: Tensor,
        is_complete: Tensor,
        improvable: Tensor,
        *more: Tensor,
    ) -> dict[str, Tensor]:
        """Returns ``token`` and ``origin`` ``[batch, beams]``, ``done`` ``[1]`` and what the next call takes.

        ``origin`` says which beam of its row each beam goes on with: the cache has to be put into this order.

        Args:
            logits: ``[batch, beams, vocabulary]``, or ``[batch, vocabulary]`` for all beams, float32.
            is_filler: ``[batch]``, bool: rows that fill up the batch.
            step: See :func:`beam_specs`, like all that follow.
            new_ids: The tokens of the beams that run.
            running_scores: Their scores.
            running_beams: Which beam each of their tokens came from.
            sequences: The tokens of the best beams that ended.
            scores: Their scores.
            beams: Which beam each of their tokens came from.
            is_complete: Whether there are so many that ended.
            improvable: Whether a running beam may still become better than those.
            more: :attr:`ports`; and ``is_full`` ``[1]``, bool, in a loop that reads a part of the cache, which gives
                ``leave``: see :class:`~orchestrator_stages.generation.choose.NextToken`.
        """
        values = dict(zip(self.ports, more, strict=False))
        best, token, source = self._continuations(logits, step, new_ids, running_scores, values)
        offsets = torch.arange(new_ids.shape[0], device=step.device)[:, None] * self.beams
        continuations = steps._gather_beams(new_ids, source).index_copy(2, step, token[..., None])
        path = steps._gather_beams(running_beams, source)
        path = path.index_copy(2, step, (source + offsets).to(torch.int32)[..., None])
        # Those that end, of which the best are kept, and those that run on.
        hits = torch.isin(token, self.eos) | is_filler[:, None] | self._stops(continuations, step, values)
        new_ids, running_scores, running_beams = steps._get_running_beams_for_next_iteration(
            steps, best, continuations, path, hits, self.beams
        )
        now, longest = self._divisors(step, values)
        best_beams = {
            "sequences": sequences,
            "beam_scores": scores,
            "beam_indices": beams,
            "is_sent_finished": is_complete,
        }
        sequences, scores, beams, is_complete = steps._update_finished_beams(
            steps,
            **best_beams,
            topk_running_sequences=continuations,
            topk_log_probs=best / now,
            topk_running_beam_indices=path,
            is_early_stop_heuristic_unsatisfied=improvable,
            next_token_hits_stopping_criteria=hits,
            **self.constants,
        )
        # Whether any row may still get better; rows that fill up the batch neither can nor hold up others.
        improvable = steps._check_early_stop_heuristic(
            improvable, running_scores / longest, scores, is_complete, 1, 1, 0, self.early_stopping, 0.0
        )
        improvable = improvable & ~is_filler[:, None]
        is_complete = is_complete | is_filler[:, None]
        goes_on = steps._beam_search_has_unfinished_sequences(
            improvable, is_complete, hits, self.early_stopping
        )
        origin = running_beams.index_select(2, step)[..., 0].to(torch.int64) - offsets
        return {
            "token": new_ids.index_select(2, step)[..., 0],
            "origin": origin,
            **{"step": step + 1, "new_ids": new_ids},
            **{"running_scores": running_scores, "running_beams": running_beams},
            **{"sequences": sequences, "scores": scores, "beams": beams},
            **{"is_complete": is_complete, "improvable": improvable},
            **self._ends(~goes_on.reshape(1), more),
        }

    def _ends(self, done: Tensor, more: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What ends the loops, and this one where it reads a part of the cache."""
        return {"done": done, **({"leave": done | more[-1]} if len(more) > len(self.ports) else {})}

    def _divisors(self, step: Tensor, more: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What scores are divided by as they are, and what those of running beams are divided by at their best."""
        now, best = self.divisors[:, step].unbind(0)
        if self.longest is not None and self.is_patient:
            count = (self.longest - more["width"]).clamp(min=1, max=self.new)
            best = self.divisors[0, count - 1][:, None]
        return now, best

    def _stops(self, continuations: Tensor, step: Tensor, more: Mapping[str, Tensor]) -> Tensor:
        """Whether continuations end by something else than their last token, like ``[batch, candidates]``."""
        hits = step + 1 >= self.new
        if self.longest is not None:
            hits = (more["width"] + step + 1 >= self.longest)[:, None]
        if "is_over" in more:
            hits = hits | more["is_over"]
        if self.stop is not None:
            before = more["before"].repeat_interleave(self.candidates, 0)
            has_stopped = self.stop(before, continuations.flatten(0, 1), step + 1)
            hits = hits | has_stopped.view(-1, self.candidates)
        return hits

    def _continuations(
        self,
        logits: Tensor,
        step: Tensor,
        new_ids: Tensor,
        running_scores: Tensor,
        more: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, tokens and beams of the best continuations ``[batch, candidates]``, or of those that are drawn."""
        # Scores of all continuations, then more of them than there are beams, in case some end.
        rows, vocabulary = new_ids.shape[0], logits.shape[-1]
        values = in_lanes(logits, self.beams).flatten(0, 1)
        if self.processors is not None:
            values = torch.log_softmax(values, -1)
            prompts, beside = in_rows(more, self.beams)
            values = self.processors(values, step, new_ids.flatten(0, 1), *prompts, **beside)
        values = (values.view(rows, self.beams, vocabulary) + running_scores[..., None]).flatten(1)
        if self.is_sampling:
            places = draw_tokens(torch.softmax(values, -1), more["noise"].flatten(1), self.candidates)
            best = values.gather(1, places)
        else:
            best, places = values.topk(self.candidates)
        return best, places % vocabulary, places // vocabulary

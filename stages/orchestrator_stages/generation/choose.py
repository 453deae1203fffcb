"""The stages between logits and the next token, and what a sequence of tokens starts from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.generation.beams import begin_beams
from orchestrator_stages.generation.processors import ProcessorChain, in_lanes, in_rows, to_the_left
from orchestrator_stages.generation.sampling import draw_tokens
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.stopping import StopStrings

__all__ = ["BeginTokens", "JoinPrompt", "NextToken", "begin_choice", "token_specs"]

LENGTH = Dim.dynamic("length")
"""How many tokens the longest sequence of a request has."""


def token_specs(selection: Selection, rows: Dim) -> dict[str, TensorSpec]:
    """Returns what :class:`NextToken` takes besides logits and gives again.

    Args:
        selection: How tokens are chosen.
        rows: The dim of the batch.
    """
    dims = (rows, selection.lanes) if selection.lanes > 1 else (rows,)
    return {
        "step": TensorSpec((1,), torch.int64),
        "finished": TensorSpec(dims, torch.bool),
        "new_ids": TensorSpec((*dims, selection.new), torch.int64),
        **({"lengths": TensorSpec(dims, torch.int64)} if selection.counts_lengths else {}),
    }


def begin_choice(selection: Selection, is_filler: Tensor) -> dict[str, Tensor]:
    """Returns what the choice of the first token takes besides logits.

    Args:
        selection: How tokens are chosen.
        is_filler: ``[batch]``, bool: rows that fill up the batch, and are finished before they begin.
    """
    if selection.has_beams:
        return begin_beams(selection, is_filler)
    is_finished = is_filler
    if selection.lanes > 1:
        is_finished = is_filler[:, None].expand(-1, selection.lanes).contiguous()
    shape, device = (*is_finished.shape, selection.new), is_filler.device
    lengths = torch.zeros_like(is_finished, dtype=torch.int64)
    return {
        "step": torch.zeros(1, dtype=torch.int64, device=device),
        "finished": is_finished,
        "new_ids": torch.full(shape, selection.pad, dtype=torch.int64, device=device),
        **({"lengths": lengths} if selection.counts_lengths else {}),
    }


class BeginTokens(nn.Module):
    """Begins the sequences of new tokens.

    Args:
        selection: How tokens are chosen.
        filler: What stands before a prompt that is shorter than others, for processors that look at tokens; None: there
            are none, and no ``before``.
        longest: How many tokens a prompt has at most.
    """

    def __init__(self, selection: Selection, filler: int | None, longest: int) -> None:
        super().__init__()
        self.selection = selection
        self.filler = filler
        self.longest = longest

    def forward(self, attention_mask: Tensor, input_ids: Tensor | None = None) -> dict[str, Tensor]:
        """Returns what the choice of the first token takes.

        Args:
            attention_mask: ``[batch, tokens]``, int64, 0 where there is padding. A row of zeros fills up the batch: it
                is finished before it begins.
            input_ids: The same, below 0 where the bucket is larger than the request; where there is a filler.

        Returns:
            ``filler`` ``[batch]``, bool: rows that fill up the batch; where there is a filler, ``before``
            ``[batch, longest]``: the prompt with its own padding, as ``generate()`` gets it, and the filler before it,
            and ``is_token`` of the same shape, bool: neither the one nor the other; and what :func:`token_specs` or
            :func:`~orchestrator_stages.generation.beams.beam_specs` name.
        """
        is_filler = ~attention_mask.to(torch.bool).any(1)
        values = {"filler": is_filler}
        if input_ids is not None and self.filler is not None:
            # Padding goes to the left, and what only the bucket adds to the left of that; then there is one size for
            # all buckets, so that nothing has to be cut off behind it.
            ids, mask = to_the_left(attention_mask, input_ids, attention_mask)
            is_own = (ids >= 0).to(torch.int64)
            own, before, is_token = to_the_left(is_own, is_own, ids, mask)
            room = (self.longest - ids.shape[1], 0)
            before = torch.where(own.to(torch.bool), before, self.filler)
            values["before"] = pad(before, room, value=self.filler)
            values["is_token"] = pad((own * is_token).to(torch.bool), room)
        return values | begin_choice(self.selection, is_filler)


class NextToken(nn.Module):
    """Chooses the next token of each sequence and writes it down.

    Args:
        selection: How.
        processors: Change its scores; None: it was done before.
        stop: Looks for stop strings; None: there are none.

    Attributes:
        processors: Those that change scores here; None: none does.
        has_end: Whether there is a token that ends a sequence.
        ports: What it takes behind the state of the tokens, in this order: ``before`` and ``is_token`` where the
            tokens so far are looked at, see :class:`BeginTokens`; ``noise`` ``[batch, vocabulary]`` where they are
            drawn; ``is_over`` ``[1]``, bool, where time is limited; ``guide`` like ``logits``, those of a second run,
            where there is one; ``width`` ``[batch]``, int64, how many tokens a prompt has, where they are counted.
    """

    eos: Tensor

    def __init__(
        self, selection: Selection, processors: ProcessorChain | None, stop: StopStrings | None = None
    ) -> None:
        super().__init__()
        self.pad = selection.pad
        self.lanes = selection.lanes
        self.is_sampling = selection.is_sampling
        self.counts_lengths = selection.counts_lengths
        self.longest = selection.longest
        self.processors = processors if processors is not None and processors.reads else None
        self.stop = stop
        self.ports = selection.ports(processors, stop)
        self.has_end = bool(selection.eos)
        self.register_buffer("eos", torch.tensor(selection.eos, dtype=torch.int64), persistent=False)

    def forward(
        self,
        logits: Tensor,
        step: Tensor,
        is_finished: Tensor,
        new_ids: Tensor,
        *more: Tensor,
    ) -> dict[str, Tensor]:
        """Returns ``token``, ``done`` (whether there is to be none after it) and what the next call takes.

        Where several sequences are made of each row, ``lanes`` comes behind ``batch`` in all shapes.

        With ``is_full`` there is ``leave``, too: whether this loop has no further iteration.

        Args:
            logits: ``[batch, vocabulary]``, float32; of a prompt for all lanes.
            step: ``[1]``, int64: how many tokens were chosen before.
            is_finished: ``[batch]``, bool: sequences that get nothing but padding.
            new_ids: ``[batch, new]``, int64: the tokens.
            more: ``lengths`` ``[batch]``, int64, how many tokens came before the end of each sequence, where they are
                counted; :attr:`ports`; and ``is_full`` ``[1]``, bool, in a loop that reads a part of the cache: the
                next token needs more of it than was read.
        """
        # This runs for each token: what there is nothing of costs nothing. Lanes are rows while a token is chosen.
        values = dict(zip(self.ports, more[self.counts_lengths :], strict=False))
        prompts, beside = in_rows(values, self.lanes) if values else ([], {})
        scores = logits if self.lanes == 1 else in_lanes(logits, self.lanes).flatten(0, 1)
        if self.processors is not None:
            scores = self.processors(scores, step, new_ids.flatten(0, -2), *prompts, **beside)
        if self.is_sampling:
            token = draw_tokens(torch.softmax(scores, -1), values["noise"].reshape_as(scores))[:, 0]
        else:
            token = scores.argmax(-1)
        token = token if self.lanes == 1 else token.view(is_finished.shape)
        # Where no token ends a sequence, those that a string ended go on as long as others do, as in generate().
        if self.has_end or not self.counts_lengths:
            token = token.masked_fill(is_finished, self.pad)
        new_ids = new_ids.index_copy(-1, step, token.unsqueeze(-1))
        counts = {"lengths": more[0] + ~is_finished} if self.counts_lengths else {}
        is_finished = is_finished | torch.isin(token, self.eos)
        if self.stop is not None:
            has_stopped = self.stop(prompts[0], new_ids.flatten(0, -2), step + 1)
            is_finished = is_finished | has_stopped.view(is_finished.shape)
        if "is_over" in values:
            is_finished = is_finished | values["is_over"]
        if self.longest is not None:
            is_whole = beside["width"] + step + 1 >= self.longest
            is_finished = is_finished | is_whole.view(is_finished.shape)
        step = step + 1
        result = {
            "token": token,
            "step": step,
            "finished": is_finished,
            "new_ids": new_ids,
            **counts,
            "done": is_finished.flatten().all(0, keepdim=True),
        }
        if len(more) == self.counts_lengths + len(self.ports):
            return result
        # Which of the loops is the last depends on the prompt: it is this one if there is no place for a token left.
        done = result["done"] | (step >= new_ids.shape[-1])
        return {**result, "done": done, "leave": done | more[-1]}


class JoinPrompt(HostStage):
    """Host stage: prompts and what was added, as ``generate()`` returns them.

    Takes ``input_ids`` ``[batch, tokens]``, ``new_ids`` ``[batch, new]`` or ``[batch, lanes, new]``, of beam search
    ``beams`` of the same shape, below 0 behind the end, and ``lengths`` where they are counted. Gives ``tokens``
    ``[sequences, length]``, int64, with as many new columns as the longest sequence needs, and ``added``, these columns
    alone.

    Args:
        selection: How the tokens were chosen.
        rows: The dim of the batch.
    """

    def __init__(self, selection: Selection, rows: Dim) -> None:
        super().__init__(tag="finish")
        self.selection = selection
        self.inputs: dict[str, Any] = {"input_ids": None, "new_ids": None}
        self.inputs |= dict.fromkeys(
            ("beams",) if selection.has_beams else ("lengths",) * selection.counts_lengths
        )
        sequences = rows if selection.results == 1 else Dim.dynamic("sequences")
        self.outputs = {
            "tokens": TensorSpec((sequences, LENGTH), torch.int64),
            "added": TensorSpec((sequences, Dim.dynamic("added")), torch.int64),
        }

    def forward(self, input_ids: Tensor, new_ids: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """Joins them."""
        # The best sequences of each row, one row for each, as long as the longest of them.
        results = self.selection.results
        if self.selection.has_beams:
            lengths = (more[0][:, :results] >= 0).sum(-1).flatten()
            new_ids = new_ids[:, :results].flatten(0, 1)
        elif more:
            lengths, new_ids = more[0].flatten(), new_ids.flatten(0, -2)
        else:
            new_ids = new_ids.flatten(0, -2)
            is_end = torch.isin(new_ids, torch.tensor(self.selection.eos, dtype=torch.int64))
            lengths = (is_end.cumsum(1) - is_end.long() == 0).sum(1)
        count, longest = int(lengths.max()), self.selection.longest
        columns = new_ids[:, : count if longest is None else min(count, longest - input_ids.shape[1])]
        return torch.cat([input_ids.repeat_interleave(results, 0), columns], 1), columns

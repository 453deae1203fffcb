"""The stages between logits and the next token, and what a sequence of tokens starts from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.seq2seq.choose import Choose
from orchestrator_stages.seq2seq.rules import Rules

__all__ = ["BeginTokens", "JoinPrompt", "NextToken", "WithinReach", "token_specs"]

LENGTH = Dim.dynamic("length")
"""How many tokens the longest sequence of a request has."""


def token_specs(rows: Dim, new: int) -> dict[str, TensorSpec]:
    """Returns what :class:`NextToken` takes besides logits and gives again.

    Args:
        rows: The dim of the batch.
        new: How many tokens are added at most.
    """
    return {
        "step": TensorSpec((1,), torch.int64),
        "finished": TensorSpec((rows,), torch.bool),
        "chosen": TensorSpec((rows, new), torch.int64),
    }


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


class BeginTokens(nn.Module):
    """Brings a prompt into the form in which a model generates, and begins the sequences of new tokens.

    Args:
        new: How many tokens are added at most.
        pad: What stands where there is no token yet.
    """

    def __init__(self, new: int, pad: int) -> None:
        super().__init__()
        self.new = new
        self.pad = pad

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the prompt padded on the left and what :class:`NextToken` starts with.

        Args:
            input_ids: ``[batch, tokens]``, int64.
            attention_mask: The same, 0 where there is padding. A row of zeros fills up the batch: it is finished
                before it begins.
            position_ids: ``[axes, batch, tokens]``, int64, where a position has several dims.
        """
        rows, device = input_ids.shape[0], input_ids.device
        more = () if position_ids is None else (position_ids,)
        input_ids, mask, *more_left = to_the_left(attention_mask, input_ids, attention_mask, *more)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            **dict(zip(("position_ids",), more_left, strict=False)),
            "step": torch.zeros(1, dtype=torch.int64, device=device),
            "finished": ~mask.to(torch.bool).any(1),
            "chosen": torch.full((rows, self.new), self.pad, dtype=torch.int64, device=device),
        }


class NextToken(nn.Module):
    """Chooses the next token of each row and writes it down.

    Args:
        rules: How.
        vocabulary: Number of tokens.
    """

    def __init__(self, rules: Rules, vocabulary: int) -> None:
        super().__init__()
        self.choose = Choose(rules, vocabulary)

    def forward(
        self,
        logits: Tensor,
        step: Tensor,
        is_finished: Tensor,
        chosen: Tensor,
        numbers: Tensor | None = None,
        is_full: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns ``token`` ``[batch]``, ``done`` (whether there is to be none after it) and what the next call takes.

        With ``is_full`` there is ``leave``, too: whether this loop has no further iteration.

        Args:
            logits: ``[batch, vocabulary]``, float32.
            step: ``[1]``, int64: how many tokens were chosen before.
            is_finished: ``[batch]``, bool: rows that get nothing but padding.
            chosen: ``[batch, new]``, int64: the tokens.
            numbers: ``[new, batch]``, uniform in [0, 1); needed where tokens are drawn.
            is_full: ``[1]``, bool: the next token needs more of the cache than was read.
        """
        token, is_finished = self.choose(logits, step, is_finished, numbers)
        result = {
            "token": token,
            "step": step + 1,
            "finished": is_finished,
            "chosen": chosen.index_copy(1, step, token[:, None]),
            "done": is_finished.all(0, keepdim=True),
        }
        if is_full is None:
            return result
        # Which of the loops is the last depends on the prompt: it is this one if there is no place for a token left.
        done = result["done"] | (result["step"] >= chosen.shape[1])
        return {**result, "done": done, "leave": done | is_full}


class WithinReach(nn.Module):
    """Tells whether a loop that reads the first slots of the cache is to run.

    Args:
        reach: How many slots it reads.
    """

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, done: Tensor, position: Tensor) -> Tensor:
        """Returns ``[1]``, bool.

        Args:
            done: ``[1]``, bool: no row gets a further token.
            position: ``[1]``, int64: the slot of the next one.
        """
        return ~done & (position < self.reach)


class JoinPrompt(HostStage):
    """Host stage: prompts and what was added, as ``generate()`` returns them.

    Takes ``input_ids`` ``[batch, tokens]`` and ``chosen`` ``[batch, new]``. Gives ``tokens`` ``[batch, length]``,
    int64, with as many new columns as the longest row needs, and ``added``, these columns alone.

    Args:
        rules: How the tokens were chosen.
        rows: The dim of the batch.
    """

    def __init__(self, rules: Rules, rows: Dim) -> None:
        super().__init__(tag="finish")
        self.rules = rules
        self.inputs = {"input_ids": None, "chosen": None}
        self.outputs = {
            "tokens": TensorSpec((rows, LENGTH), torch.int64),
            "added": TensorSpec((rows, Dim.dynamic("added")), torch.int64),
        }

    def forward(self, input_ids: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Joins them."""
        is_end = (chosen[:, :, None] == torch.tensor(self.rules.eos, dtype=torch.int64)).any(2)
        before = is_end.cumsum(1) - is_end.long()
        added = chosen[:, : int((before == 0).sum(1).max())]
        return torch.cat([input_ids, added], 1), added

"""When a sequence ends besides by its last token: stop strings, by transformers' own class, and time."""

from __future__ import annotations

import importlib
import time
from typing import Any

import torch
from torch import Tensor

from orchestrator import HostStage, TensorSpec
from orchestrator_stages.generation.processors import LibraryObject, ids_so_far

__all__ = ["StartClock", "StopStrings", "TimeLimit", "make_stop_criterion"]

library: Any = importlib.import_module("transformers.generation.stopping_criteria")


def make_stop_criterion(tokenizer: Any, strings: Any) -> Any:
    """Returns what ``generate()`` makes of stop strings.

    Args:
        tokenizer: The tokenizer of the model.
        strings: One, or a list of them.

    Raises:
        ValueError: ``generate()`` refuses them.
    """
    texts = [strings] if isinstance(strings, str) else strings
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(
            f"stop_strings is a string or a list of strings, none of them empty, not {strings!r}"
        )
    if not texts:
        raise ValueError("stop_strings holds no string; pass stop_strings=None")
    try:
        return library.StopStringCriteria(tokenizer=tokenizer, stop_strings=list(texts))
    except ValueError as error:
        raise ValueError(
            f"StopStringCriteria cannot tell the texts of the tokens of {type(tokenizer).__name__} ({error})"
        ) from error


class StopStrings(LibraryObject):
    """Whether a sequence has just completed one of the stop strings.

    The class of the library looks at the last tokens, at most as many as a string has letters, in a table with a row
    for each token of the tokenizer and one more for what is none.

    Args:
        criterion: The criterion, as :func:`make_stop_criterion` makes it.
        filler: The id before the first token.
    """

    def __init__(self, criterion: Any, filler: int) -> None:
        super().__init__(criterion)
        self.filler = filler
        self.most = int(criterion.maximum_token_len)
        self.no_token = criterion.embedding_vec.shape[0] - 1

    def forward(self, before: Tensor, new_ids: Tensor, count: Tensor) -> Tensor:
        """Returns ``[rows]``, bool.

        Args:
            before: ``[rows, length]``: the prompts, see :func:`~orchestrator_stages.generation.processors.ids_so_far`.
            new_ids: ``[rows, new]``, int64.
            count: ``[1]``, int64: how many of these there are.
        """
        ids = ids_so_far(before[:, -self.most :], new_ids, count, self.filler)
        ids = torch.where(ids == self.filler, self.no_token, ids)
        result: Tensor = self.restore()(ids, None)
        return result


class StartClock(HostStage):
    """Host stage: ``started`` ``[1]``, float64, the time in seconds at which ``like``, any tensor, was there."""

    def __init__(self) -> None:
        super().__init__(tag="clock")
        self.inputs = {"like": None}
        self.outputs = {"started": TensorSpec((1,), torch.float64)}

    def forward(self, like: Tensor) -> Tensor:
        """Reads the clock."""
        del like
        return torch.tensor([time.time()], dtype=torch.float64)


class TimeLimit(HostStage):
    """Host stage: ``is_over`` ``[1]``, bool: whether more time has passed than there is.

    Takes ``started`` as :class:`StartClock` gives it, and ``position``, any tensor of what ran last.

    Args:
        seconds: How much time there is.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(tag="time")
        self.seconds = seconds
        self.inputs = {"started": None, "position": None}
        self.outputs = {"is_over": TensorSpec((1,), torch.bool)}

    def forward(self, started: Tensor, position: Tensor) -> Tensor:
        """Reads the clock."""
        del position
        return torch.tensor([time.time() - float(started) > self.seconds])

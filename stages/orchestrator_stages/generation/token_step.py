"""What runs a token of each sequence in an iteration of a loop, over all of the cache or the first slots of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator import Dim, TensorSpec
from orchestrator_stages.generation.lanes import join_lanes, split_lanes
from orchestrator_stages.generation.selection import Selection

__all__ = ["TokenDecoder", "TokenStep", "WithinReach"]


class TokenDecoder(Protocol):
    """What runs a token of a model: a module.

    Attributes:
        aliases: Of what is carried, what :attr:`decode` writes in place: each is itself, updated.
        training: As of any module.
    """

    aliases: dict[str, str]
    training: bool

    @property
    def decode(self) -> Callable[..., dict[str, Any]]:
        """Of tokens ``[batch]``, what every iteration reads, and what is carried: logits, and what is carried.

        With ``reach=`` no more slots of the cache are read, where no number can be had of how many are filled; with
        ``order=`` ``[batch]``, int64, its rows are put into this order first.
        """

    def specs(self, rows: Dim) -> dict[str, TensorSpec]:
        """Returns what is carried, in the order in which it is taken.

        Args:
            rows: The dim of the batch.
        """


class TokenStep(nn.Module):
    """Runs one token of each sequence; lanes, sequences of the same row, are rows while it runs.

    Args:
        decoder: What runs it.
        dims: Of what it takes behind the token, by name and in order, the dim of the batch; None: there is none.
        selection: How tokens are chosen.
        reach: How many slots of the cache are read; None: all.
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        dims: Mapping[str, int | None],
        selection: Selection,
        reach: int | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.dims = dict(dims)
        self.has_beams = selection.has_beams
        self.lanes = selection.lanes
        self.reach = reach
        self.training = decoder.training

    def forward(self, token: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
        """Returns what the decoder does and, of a part of the cache, ``full``: whether the next token needs more slots.

        Args:
            token: ``[batch]``, int64; of lanes ``[batch, lanes]``.
            tensors: Of beams first ``origin``, like ``token``, see
                :class:`~orchestrator_stages.generation.beams.BeamStep`: the cache is put into the order of the beams.
                Then :attr:`dims`; of lanes with a dim of lanes behind that of the batch.
        """
        # What is written in place is given back as it came, and not as the view of it that was written to.
        order, values = None, dict(zip(self.dims, tensors[self.has_beams :], strict=True))
        if self.has_beams:
            offsets = torch.arange(token.shape[0], device=token.device)[:, None] * self.lanes
            order = (tensors[0] + offsets).flatten()
        if self.lanes == 1:
            result = self.decoder.decode(token, *values.values(), reach=self.reach, order=order)
        else:
            rows = [join_lanes(tensor, self.dims[name]) for name, tensor in values.items()]
            result = self.decoder.decode(token.flatten(), *rows, reach=self.reach, order=order)
            aliases = self.decoder.aliases
            result = {
                name: values[name]
                if name in aliases
                else split_lanes(value, self.dims.get(name, 0), self.lanes)
                for name, value in result.items()
            }
        return result if self.reach is None else {**result, "full": result["position"] >= self.reach}


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

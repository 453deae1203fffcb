"""A conversation whose cache lives on, with pictures or recordings in any of its turns."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from orchestrator import GraphError, Pipeline
from orchestrator_stages.generation.continuation import BUCKET
from orchestrator_stages.generation.conversation import Conversation
from orchestrator_stages.generation.item_continuation import ItemContinuation
from orchestrator_stages.generation.items import ReadPrompts, rope_positions
from orchestrator_stages.generation.selfcheck import compare_logits

__all__ = ["ItemConversation"]


class ItemConversation(Conversation, ItemContinuation):
    """The same with pictures or recordings among the tokens of a turn: those of the turn are encoded, and no others."""

    def _refuse(self, context: int) -> None:
        super()._refuse(context)
        if self.rope is not None and self.processor is None:
            raise GraphError(
                f"{type(self.model).__name__} counts positions in several dims, by the {self.kind.label}s of all "
                "turns, which the tokens of one turn do not tell. Give the processor and messages=True.",
                option="context",
                model=self.model,
            )
        if (self.tokenizer is None) != (self.processor is None) or (self.tokenizer and self.chat is None):
            raise GraphError(
                f"context= takes the {self.kind.label}s of a turn within its messages: give the processor and "
                "messages=True, or neither processor= nor tokenizer=, and tokens as they are.",
                option="context",
            )

    def _reads_items(self) -> Any:
        return ReadPrompts(self.processor, self.kind, self.rows, self.tokens, self.items, BUCKET)

    def _prompt(self, pipeline: Pipeline) -> tuple[Any, Any]:
        ids, mask = super()._prompt(pipeline)
        if self._spoken:
            self._read = [self._spoken[port] for port in ("first", *self.kind.values)]
        return ids, mask

    def _place_counter(self) -> Any:
        return None if self.rope is None else functools.partial(rope_positions, self.rope, self.kind)

    def _places(self, *_: Any) -> Any:
        return self._spoken["places"]

    def _turn(self, pipeline: Pipeline, ids: Any, mask: Any) -> tuple[dict[str, Any], list[Any], Any]:
        ports, values = self._merge(pipeline, ids, mask)
        return ports, values, self.generator.extend_merged

    def _check_turns(self) -> None:
        """Compares the logits of a prompt with an item that comes in two parts with those of the whole.

        Raises:
            GraphError: They differ.
        """
        # The first part has an item in the first row; the second one has an item in the other row, where there is room.
        device = next(self.model.parameters()).device
        if device.type == "meta":
            return
        count = self.kind.count
        room = self.slots - count - 3
        words = [token for token in range(3, 12) if token != self.kind.token]
        item = [self.kind.token] * count if count + 2 <= room else []
        parts = [
            _rows([*words[:1], *[self.kind.token] * count, words[1]], words[2:4]),
            _rows(words[4:5], [*words[:1], *item, words[5]]),
        ]
        ids, mask = (torch.cat(pair, 1).to(device) for pair in zip(*parts, strict=True))
        with torch.no_grad():
            embeds, types = self._embed(ids)
            places = [] if self.rope is None else [rope_positions(self.rope, self.kind, ids, mask)]
            start, end = slice(parts[0][0].shape[1]), slice(parts[0][0].shape[1], None)
            prefill, extend = self.generator.prefill_merged, self.generator.extend_merged
            inputs = [
                (embeds[:, part], mask[:, part], types[:, part], *(item[..., part] for item in places))
                for part in (start, end)
            ]
            first = prefill(*inputs[0])
            state = [first[name] for name in ("mask", *self.generator.specs_names)]
            second = extend(*inputs[1], *state)
            whole = prefill(embeds, mask, types, *places)
        compare_logits(self.model, 1, second["logits"], whole["logits"])

    def _embed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens with features of any items in their places, and where these are."""
        numbers = (ids == self.kind.token).sum(1)
        generator = torch.Generator().manual_seed(0)
        features: Any = [
            torch.rand(2, *value.shape, generator=generator).to(ids.device, value.dtype)
            for value in self.kind.values.values()
        ]
        for encoder in self.encoders:
            features = [encoder(*features)]
        merged = self.generator.merge(ids, numbers.cumsum(0) - numbers, features[0])
        return merged["inputs_embeds"], merged["types"]


def _rows(*rows: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of tokens, padded on the left, and their mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([row[:1] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask

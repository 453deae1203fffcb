"""Draw a model whose prompts have pictures or recordings among their tokens: the encoder as well."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.generation.chat import PictureChatPrompt
from orchestrator_stages.generation.continuation import BUCKET, Continuation, ContinuationParts
from orchestrator_stages.generation.encoder import ItemEncoder
from orchestrator_stages.generation.follow import AXES, follow
from orchestrator_stages.generation.generator import Generator
from orchestrator_stages.generation.items import (
    ArrangeItems,
    ItemKind,
    ReadPrompts,
    RopePositions,
)

__all__ = ["ItemContinuation"]


class ItemContinuation(Continuation):
    """The same with pictures or recordings among the tokens of the prompt."""

    def __init__(self, parts: ContinuationParts) -> None:
        model, selection = parts.model, parts.selection
        self.kind: ItemKind = parts.kind
        self.processor = parts.processor
        self.items: Dim = parts.items
        self._read: list[Any] = []
        self.encoders: tuple[ItemEncoder, ...] = ()
        owners = (getattr(model, "model", None), model)
        self.rope = next((owner for owner in owners if hasattr(owner, "get_rope_index")), None)
        if selection.is_guided and self.rope is not None:
            raise GraphError(
                f"guidance_scale runs the model a second time, over text alone, and {type(model).__name__} counts the "
                "positions of both runs in one place: its own generate() counts those of the prompt anew there. Leave "
                "guidance_scale out, or take a model whose positions are numbers.",
                option="guidance_scale",
                model=model,
            )
        super().__init__(parts)

    def _follow(self, vocabulary: int) -> Generator:
        """The model as functions of tensors, the encoder of items among them."""
        stages = follow(self.model, self.slots, vocabulary, self.kind, self.rope)
        self.encoders = stages.encoders
        shape, dtype = stages.features
        self.features = TensorSpec((self.items, *shape), dtype, pad=0)
        return stages.generator

    def _prefill(self, pipeline: Pipeline, ids: Any, mask: Any) -> Any:
        """Draws the encoder, what puts its features into the prompt, and what runs that."""
        ports, values = self._merge(pipeline, ids, mask)
        return pipeline.add("prefill", self.generator.prefill_merged, inputs=ports)(*values)

    def _merge(self, pipeline: Pipeline, ids: Any, mask: Any) -> tuple[dict[str, Any], list[Any]]:
        """Draws the encoder, and what puts its features into the prompt; returns ports and values of what runs that."""
        # Features stay where they were made until they are merged into what the tokens of text are embedded as.
        first, *features = self._read
        names = ("vision" if self.kind.label == "image" else self.kind.label, "projector")
        for name, encoder in zip(names, self.encoders, strict=False):
            features = [pipeline.add(name, encoder, inputs=self._ports(name))(*features)]
        # Where the host works on prompts in between, they were cut to a request's own size, and grow again as a prompt
        # does: by padding. Elsewhere they keep the size that they came with, which may be one fixed size.
        dims = (self.rows, self.tokens)
        is_cut = self.processor is not None or self.rope is not None
        padded_ids = TensorSpec(dims, torch.int64, pad=BUCKET) if is_cut else None
        ports = {"input_ids": padded_ids, "first": None, "features": self.features}
        embeddings = pipeline.add("merge", self.generator.merge, inputs=ports)(ids, first, features[0])
        padded_mask = TensorSpec(dims, torch.int64, pad=0) if is_cut else None
        embeds = TensorSpec((*dims, self.features.dims[-1]), self.generator.dtype, pad=0) if is_cut else None
        ports = {"inputs_embeds": embeds, "attention_mask": padded_mask, "types": padded_mask}
        values = [embeddings["inputs_embeds"], mask, embeddings["types"]]
        if self.rope is not None:
            ports["places"] = TensorSpec((AXES, *dims), torch.int64, pad=0)
            values.append(self._places(pipeline, ids, mask))
        if self.selection.is_guided:
            ports["input_ids"] = padded_ids
            values.append(ids)
        return ports, values

    def _places(self, pipeline: Pipeline, ids: Any, mask: Any) -> Any:
        """Draws what counts positions in several dims."""
        positions = RopePositions(self.rope, self.kind, (self.rows, self.tokens), AXES)
        return pipeline.add("positions", positions, device="host")(ids, mask)

    def _prompt(self, pipeline: Pipeline) -> tuple[Any, Any]:
        """Draws what reads prompts and items together where there is a processor for both."""
        if self.processor is None:
            # Whether items and their tokens match is known from the request alone: before anything else is run.
            ids, mask = super()._prompt(pipeline)
            self._read = self._arrange(pipeline, ids)
            return ids, mask
        arguments = (self.processor, self.kind, self.rows, self.tokens, self.items, BUCKET)
        if self.chat is not None:
            converse = pipeline.add("converse", PictureChatPrompt(*arguments), device="host")
            ids, mask, *self._read = converse(pipeline.input("messages", list))
            return ids, mask
        read = pipeline.add("read", ReadPrompts(*arguments), device="host")
        values = pipeline.input("text", list), pipeline.input(self.kind.label, list)
        ids, mask, *self._read = read(*values)
        return ids, mask

    def _arrange(self, pipeline: Pipeline, ids: Any) -> list[Any]:
        """Draws what takes items as a processor gave them."""
        values = [pipeline.input(name, torch.Tensor) for name in self.kind.values]
        # One prompt is one in a pipeline around this one, too, which need not call it a dim.
        rows = 1 if self.rows.buckets == (1,) else self.rows
        stage = ArrangeItems(self.kind, rows, self.items)
        return list(pipeline.add("arrange", stage, device="host")(ids, *values))

    def _ports(self, name: str) -> tuple[str, ...]:
        """What a stage of the encoder takes."""
        return ("states",) if name == "projector" else tuple(self.kind.values)

"""Pictures among the tokens that an encoder reads, such as those of Florence-2: features in front of the encoder."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.generation.encoder import ItemEncoder, trace_features
from orchestrator_stages.generation.items import ArrangeItems, ItemKind, merge_features, read_item
from orchestrator_stages.generation.tree import embed_any_item, own_tree
from orchestrator_stages.seq2seq.families import ModelFamily
from orchestrator_stages.seq2seq.forward import visible_tokens
from orchestrator_stages.seq2seq.trial import Trial, check_logits

__all__ = ["PictureEncoder", "read_pictures"]


class EmbeddedEncoder(nn.Module):
    """Runs an encoder of texts over embeddings that have features in them.

    Args:
        model: The model.
        kind: What an item is.
    """

    def __init__(self, model: Any, kind: ItemKind) -> None:
        super().__init__()
        self.embedding = model.get_input_embeddings()
        self.encoder = model.get_encoder()
        self.token = kind.token
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, first: Tensor, features: Tensor
    ) -> dict[str, Tensor]:
        """Returns ``encoding`` ``[batch, tokens, width]``.

        Args:
            input_ids: ``[batch, tokens]``, int64.
            attention_mask: The same, 0 where there is padding.
            first: ``[batch]``, int64: how many tokens that stand for items are in the rows before.
            features: ``[items, count, width]``.
        """
        embeds = merge_features(self.embedding, self.token, input_ids, first, features)["inputs_embeds"]
        result = self.encoder(inputs_embeds=embeds, attention_mask=visible_tokens(attention_mask))
        return {"encoding": result.last_hidden_state}


class PictureEncoder:
    """What makes an encoding of texts with pictures among their tokens.

    Args:
        model: The model.
        kind: What a picture is.
        trial: The model, tried on texts alone.
        start: The first token of a sequence.

    Raises:
        GraphError: The model cannot be followed so far, or gives other logits than its ``generate()`` sees.
    """

    def __init__(self, model: Any, kind: ItemKind, trial: Trial, start: int) -> None:
        tree: Any = own_tree(model)
        embed_any_item(tree, kind.token)
        if trial.readings != ("encoding", "attention_mask"):
            raise GraphError(
                f"The encoder of {type(model).__name__} gives more than its states, which is not followed where "
                "pictures are among its tokens.",
                model=model,
            )
        graph = trace_features(tree, kind)
        self.kind = kind
        self.features = graph.shape, graph.dtype
        self.stages = tuple(ItemEncoder(part) for part in graph.stages)
        self.encoder = EmbeddedEncoder(tree, kind)
        self._check(model, trial, start)

    def _check(self, model: Any, trial: Trial, start: int) -> None:
        """Compares logits of two texts with a picture in the second."""
        device = next(model.parameters()).device
        if device.type == "meta":
            return
        vocabulary, kind = self.encoder.embedding.weight.shape[0], self.kind
        words = [token for token in range(vocabulary // 2, vocabulary) if token != kind.token][:2]
        picture = [words[0], *[kind.token] * kind.count, words[1]]
        ids = torch.tensor([words + [0] * kind.count, picture], device=device)
        mask = torch.ones_like(ids)
        mask[0, 2:] = 0
        generator = torch.Generator().manual_seed(0)
        values = [
            torch.rand(value.shape, generator=generator).to(value.dtype).to(device)
            for value in kind.values.values()
        ]

        def encode() -> dict[str, Tensor]:
            features: Any = [value[None] for value in values]
            for stage in self.stages:
                features = [stage(*features)]
            return {**self.encoder(ids, mask, ids.new_zeros(2), features[0]), "attention_mask": mask}

        reference = own_tree(model)
        embed_any_item(reference, kind.token)
        request = {"input_ids": ids, "attention_mask": mask, **dict(zip(kind.values, values, strict=True))}
        check_logits(reference, encode, trial.decoder, {**request, **kind.arguments(ids)}, start)

    def draw(self, pipeline: Pipeline, values: Mapping[str, Any], rows: Dim, items: Dim) -> Any:
        """Draws the stages; returns what the last of them gives.

        Args:
            pipeline: The pipeline.
            values: Ids and mask.
            rows: The dim of the texts.
            items: The dim of the pictures of all texts.
        """
        ids, mask = values["input_ids"], values["attention_mask"]
        numbers = [pipeline.input(name, Tensor) for name in self.kind.values]
        arrange = pipeline.add("arrange", ArrangeItems(self.kind, rows, items), device="host")
        first, *features = arrange(ids, *numbers)
        for name, stage in zip(("vision", "projector"), self.stages, strict=False):
            names = ("states",) if name == "projector" else tuple(self.kind.values)
            features = [pipeline.add(name, stage, inputs=names)(*features)]
        shape, dtype = self.features
        ports = {
            "input_ids": None,
            "attention_mask": None,
            "first": None,
            "features": TensorSpec((items, *shape), dtype, pad=0),
        }
        return pipeline.add("encode", self.encoder, inputs=ports)(ids, mask, first, features[0])


def read_pictures(
    model: Any, family: ModelFamily, example: Mapping[str, Any] | None, *, is_prepared: bool
) -> ItemKind | None:
    """Returns what pictures are of a model whose encoder reads them among its tokens; None: it reads none.

    Args:
        model: The model.
        family: Its family.
        example: What its processor gives for a text with one picture.
        is_prepared: There is a tokenizer or a processor.

    Raises:
        GraphError: It cannot be told, or they would have to be prepared.
    """
    if family.modality != "text" or "pixel_values" not in inspect.signature(model.forward).parameters:
        return None
    if is_prepared:
        raise GraphError(
            f"What a processor of {type(model).__name__} gives is not prepared here; leave out tokenizer= and "
            "processor=, and give the pipeline what it gives.",
            option="processor",
        )
    return read_item(model, example)

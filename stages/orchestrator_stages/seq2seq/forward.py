"""The encoder and the decoder of any family, by the family's own forward over a cache of ours.

:class:`Encoder` runs once. :class:`DecoderForward` reads one token: what its layers read of the encoder and the tokens
before it lie in a cache whose tensors are handed in and out, so that a loop can carry them on a device. Nothing is
written here for a family but how its forward is called.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator_stages.generation.cache import empty_cross_cache
from orchestrator_stages.generation.static_forward import forward_context

__all__ = ["DecoderForward", "Encoder"]

outputs: Any = importlib.import_module("transformers.modeling_outputs")


@dataclass
class EncoderOutput(outputs.BaseModelOutput):  # type: ignore[misc]
    """What an encoder gave, as decoders of all families take it.

    Attributes:
        attention_mask: Where the encoder tells which of its tokens are padding: this.
    """

    attention_mask: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        # What encoders of some families tell besides, such as where a router sent each token, changes no token.
        if name.startswith("__"):
            raise AttributeError(name)


def visible_tokens(mask: Tensor) -> Tensor:
    """Returns a mask without empty rows: a row that pads the batch sees everything, lest it become no number."""
    return torch.where(mask.bool().any(1, keepdim=True), mask, 1)


def is_composite(model: Any) -> bool:
    """Tells whether a model is two models, an encoder and a decoder of any kind."""
    return isinstance(getattr(model, "encoder", None), nn.Module) and hasattr(model.config, "decoder")


class Encoder(nn.Module):
    """Runs the encoder of a model, and fits its width to the decoder's where they differ.

    Args:
        model: The model.
        is_static: See :class:`~orchestrator_stages.generation.static_forward.StaticForward`.
    """

    def __init__(self, model: Any, *, is_static: bool) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.is_static = is_static
        self.takes_mask = "attention_mask" in inspect.signature(self.encoder.forward).parameters
        self.projection: nn.Module | None = None
        if is_composite(model):
            decoder = model.decoder.config
            is_wide = getattr(decoder, "cross_attention_hidden_size", None) is not None
            if model.encoder.config.hidden_size != decoder.hidden_size and not is_wide:
                self.projection = model.enc_to_dec_proj

    def forward(self, values: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """Returns ``encoding`` ``[batch, tokens, width]``, and ``encoding_mask`` where the encoder gives one.

        Args:
            values: Ids, pixels or sound, as the model takes them.
            attention_mask: 0 where there is padding; None: there is none.
        """
        options = {}
        if self.takes_mask and attention_mask is not None:
            options["attention_mask"] = visible_tokens(attention_mask)
        with forward_context(self.is_static):
            result = self.encoder(values, **options)
            states = result.last_hidden_state
            states = states if self.projection is None else self.projection(states)
        mask = getattr(result, "attention_mask", None)
        return {"encoding": states} | ({} if mask is None else {"encoding_mask": mask})


def without_encoder(model: Any) -> Any:
    """Returns a model that shares everything with another, but has no encoder: what it cannot run, it does not hold."""
    encoder = model.get_encoder()
    path = next(name for name, module in model.named_modules() if module is encoder)
    view = owner = _shallow(model)
    *parents, last = path.split(".")
    for name in parents:
        owner._modules[name] = _shallow(owner._modules[name])
        owner = owner._modules[name]
    owner._modules[last] = None
    return view


def _shallow(module: nn.Module) -> Any:
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


class DecoderForward(nn.Module):
    """Reads tokens with the decoder of a model.

    Args:
        model: The model.
        slots: How many tokens its cache holds.
        is_static: See :class:`~orchestrator_stages.generation.static_forward.StaticForward`.

    Attributes:
        is_writing: The decoder writes into what it reads of the encoder, so it gets a copy of that.
    """

    def __init__(self, model: Any, slots: int, *, is_static: bool) -> None:
        super().__init__()
        self.is_composite = is_composite(model)
        self.model = model.decoder if self.is_composite else without_encoder(model)
        self.config = self.model.config if self.is_composite else model.get_decoder().config
        self.slots = slots
        self.is_static = is_static
        self.is_writing = False
        self.own_mask = "attention_mask" if self.is_composite else "decoder_attention_mask"
        self.parameter_names = frozenset(inspect.signature(self.model.forward).parameters)

    def first(self, ids: Tensor, encodings: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """Returns the logits after the first tokens of a sequence, and a cache with them and the encoder's part.

        Args:
            ids: ``[batch, tokens]``, int64.
            encodings: What :class:`Encoder` gave, and its ``attention_mask``.
        """
        cache = empty_cross_cache(self.config, self.slots)
        return self._read(ids, encodings, cache, {self.own_mask: torch.ones_like(ids)})

    def next(
        self,
        token: Tensor,
        encodings: Mapping[str, Tensor],
        cache: Any,
        position: Tensor,
        reach: int | None = None,
    ) -> tuple[Tensor, Any]:
        """Returns the logits after a token, ``[batch, vocabulary]``, float32, and the cache with it.

        Args:
            token: ``[batch]``, int64.
            encodings: What :class:`Encoder` gave, and its ``attention_mask``.
            cache: The cache.
            position: ``[1]``, int64: how many tokens came before.
            reach: How many slots of the cache are read, filled or not; None: those that are filled.
        """
        # The mask says which slots are filled; a version of the library that counts for itself is told the position.
        options = {"cache_position": position}
        if reach is not None:
            filled = (torch.arange(reach, device=token.device) <= position).to(torch.int64)
            options[self.own_mask] = filled.expand(token.shape[0], -1)
        return self._read(token[:, None], encodings, cache, options)

    def _read(
        self, ids: Tensor, encodings: Mapping[str, Tensor], cache: Any, options: Mapping[str, Tensor]
    ) -> tuple[Tensor, Any]:
        mask, encoding = encodings.get("attention_mask"), encodings["encoding"]
        encoding = encoding.clone() if self.is_writing else encoding
        arguments: dict[str, Any] = {
            name: item for name, item in options.items() if name in self.parameter_names
        }
        if self.is_composite:
            arguments |= {"input_ids": ids, "encoder_hidden_states": encoding}
            arguments["encoder_attention_mask"] = mask
        else:
            arguments["decoder_input_ids"] = ids
            arguments["encoder_outputs"] = EncoderOutput(
                last_hidden_state=encoding, attention_mask=encodings.get("encoding_mask")
            )
            if "attention_mask" in self.parameter_names:
                arguments["attention_mask"] = mask
        with forward_context(self.is_static):
            result = self.model(**arguments, past_key_values=cache, use_cache=True)
        return result.logits[:, -1].to(torch.float32), result.past_key_values

"""Try a model on fake tensors, which computes nothing: can it be followed, what does its cache hold, is it right?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, GraphError, TensorSpec
from orchestrator_stages.generation.checks import following
from orchestrator_stages.generation.families import family_of
from orchestrator_stages.generation.selfcheck import compare_logits, generate_logits
from orchestrator_stages.generation.state import CacheTemplate, state_of
from orchestrator_stages.generation.static_forward import without_values
from orchestrator_stages.generation.tree import fake_weights, own_tree
from orchestrator_stages.seq2seq.forward import DecoderForward, Encoder

__all__ = ["Trial", "check_logits", "try_model"]

TEXT = 6
"""Tokens of the texts that are compared."""

BATCHES = (2, 3)
"""Two sizes of a batch: what differs between them is the dim of the batch."""


@dataclass(frozen=True)
class Trial:
    """What a model gave.

    Attributes:
        encoder: The stage that encodes.
        decoder: What reads a token.
        template: Of the decoder's cache.
        readings: What the decoder reads of the encoder: ``encoding``, and masks.
        vocabulary: Number of tokens that the decoder tells apart.
        shapes: Of the readings and the tensors of the cache: shapes at both sizes of batch and tokens, and the dtype.
        lengths: The two numbers of tokens.
    """

    encoder: nn.Module
    decoder: DecoderForward
    template: CacheTemplate
    readings: tuple[str, ...]
    vocabulary: int
    shapes: dict[str, tuple[torch.Size, torch.Size, torch.dtype]]
    lengths: tuple[int, int]

    def specs(self, batch: Dim, tokens: Dim | int) -> dict[str, TensorSpec]:
        """Returns the specs of what is read of the encoder, and of the tensors of the cache.

        Args:
            batch: The dim of the sequences.
            tokens: The dim of what the encoder reads, or its size.
        """
        names = {BATCHES: batch, self.lengths: tokens}
        specs = {}
        for name, (small, large, dtype) in self.shapes.items():
            dims = [
                one if one == other else names.get((one, other))
                for one, other in zip(small, large, strict=True)
            ]
            if None in dims:
                raise GraphError(
                    f"{name} is {tuple(small)} for {self.lengths[0]} tokens and {tuple(large)} for {self.lengths[1]}, "
                    "so its length is none that has a name; give one length: tokens=(length,).",
                    option="tokens",
                )
            specs[name] = TensorSpec(tuple(dim for dim in dims if dim is not None), dtype)
        return specs


def try_model(
    model: Any,
    specs: Mapping[str, TensorSpec],
    batch: Dim,
    tokens: Dim | int,
    slots: int,
    encoder: nn.Module | None = None,
    start: int | None = None,
) -> Trial:
    """Runs a model on fake tensors, and for a few tokens on real ones, where they are compared with ``generate()``.

    Args:
        model: The model.
        specs: What its encoder reads by name, and the mask over that, if there is one.
        batch: The dim of the rows.
        tokens: The dim of the length of what is read, or its size.
        slots: How many tokens the decoder's cache holds.
        encoder: What encodes, in place of the model's own encoder.
        start: The first token of a sequence; None: nothing is compared.

    Raises:
        GraphError: Its forward cannot be followed, or gives other logits than its ``generate()`` sees.
    """
    # Without answers to what a forward asks of values first: most ask nothing, and then nothing comes between.
    name, longest = (tokens.name, tokens.buckets[-1]) if isinstance(tokens, Dim) else ("", tokens)
    lengths = (longest, longest - 1) if name and longest > 1 else (longest, longest)
    reasons: list[Exception] = []
    for is_static in (False, True):
        tree = family_of(model).prepare(own_tree(model))
        encode = encoder or Encoder(tree, is_static=is_static)
        decoder = DecoderForward(tree, slots, is_static=is_static)
        try:
            with fake_weights(encode, decoder) as mode, mode, torch.no_grad():
                runs = [
                    _run(
                        encode,
                        decoder,
                        [spec.shape({batch.name: rows, name: length}) for spec in specs.values()],
                        tuple(specs.values()),
                    )
                    for rows, length in zip(BATCHES, lengths, strict=True)
                ]
                logits = _read_next(decoder, *runs[0])
            if start is not None:
                _check_texts(model, encode, decoder, specs, longest, start)
        except Exception as error:
            reasons.append(error)
            continue
        (readings, cache), (others, other_cache) = runs
        small, large = readings | state_of(cache), others | state_of(other_cache)
        shapes = {name: (value.shape, large[name].shape, value.dtype) for name, value in small.items()}
        template = CacheTemplate(cache)
        return Trial(encode, decoder, template, tuple(readings), logits.shape[-1], shapes, lengths)
    # A model that its own generate() cannot run either is told so. What the first try met is nearer to the model,
    # unless only the second had something to say about it.
    if start is not None and next(model.parameters()).device.type != "meta":
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            request = _request(model, specs, min(longest, TEXT), next(model.parameters()).device)
            generate_logits(own_tree(model), {**request, "decoder_start_token_id": start})
    with following(model):
        raise next((error for error in reasons if isinstance(error, GraphError)), reasons[0])


def _run(
    encoder: nn.Module,
    decoder: DecoderForward,
    shapes: Sequence[tuple[int, ...]],
    specs: Sequence[TensorSpec],
) -> tuple[dict[str, Tensor], Any]:
    """Encodes, and reads one token; returns what the decoder reads of the encoder, and its cache."""
    device = next(decoder.parameters()).device
    values, *masks = (
        torch.ones(shape, dtype=spec.dtype, device=device) for shape, spec in zip(shapes, specs, strict=True)
    )
    readings = {**encoder(values, *masks), **({"attention_mask": masks[0]} if masks else {})}
    token = torch.zeros(len(values), 1, dtype=torch.int64, device=device)
    version = readings["encoding"]._version
    _, cache = decoder.first(token, readings)
    decoder.is_writing |= readings["encoding"]._version != version
    return readings, cache


def _read_next(decoder: DecoderForward, readings: dict[str, Tensor], cache: Any) -> Tensor:
    """Reads a second token, as a loop does: over a cache that was handed out and in; returns the logits."""
    token = torch.zeros(len(readings["encoding"]), dtype=torch.int64, device=readings["encoding"].device)
    position = token[:1]
    later = CacheTemplate(cache).cache(tuple(state_of(cache).values()), position)
    logits, _ = decoder.next(token, readings, later, position, decoder.slots)
    return logits


def check_logits(
    model: Any,
    encode: Callable[[], Mapping[str, Tensor]],
    decoder: DecoderForward,
    request: Mapping[str, Tensor],
    start: int,
) -> None:
    """Compares logits with those that ``generate()`` sees.

    Args:
        model: The model; what its ``generate()`` leaves in it stays.
        encode: Gives what the decoder reads of the encoder.
        decoder: The decoder, followed.
        request: Two short requests in one batch.
        start: The first token of a sequence.

    Raises:
        GraphError: They differ, or ``generate()`` fails.
    """
    device = next(model.parameters()).device
    # What is compared is what a device runs: no forward sees a value, but that of the library.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sequences, right = generate_logits(model, {**request, "decoder_start_token_id": start})
    with torch.no_grad(), without_values():
        tokens = sequences[:, -len(right) - 1 :]
        readings = encode()
        logits, cache = decoder.first(tokens[:, :1], readings)
        # Each later token goes into a cache of the same form, behind those before it: one as a device does it that
        # compiles, the next as it is done where the position can be read.
        template = CacheTemplate(cache)
        for number, expected in enumerate(right[: decoder.slots]):
            if number:
                position = torch.full((1,), number, dtype=torch.int64, device=device)
                slot, reach = (position, decoder.slots) if number % 2 else (number, None)
                later = template.cache(tuple(state_of(cache).values()), slot)
                logits, cache = decoder.next(tokens[:, number], readings, later, position, reach)
            compare_logits(model, number, logits, expected)


def _check_texts(
    model: Any,
    encoder: nn.Module,
    decoder: DecoderForward,
    specs: Mapping[str, TensorSpec],
    longest: int,
    start: int,
) -> None:
    """Compares logits of two short requests, the second with padding."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    request = _request(model, specs, min(longest, TEXT), device)
    values, *masks = request.values()

    def encode() -> dict[str, Tensor]:
        return {**encoder(values, *masks), **({"attention_mask": masks[0]} if masks else {})}

    check_logits(own_tree(model), encode, decoder, request, start)


def _request(
    model: Any, specs: Mapping[str, TensorSpec], length: int, device: torch.device
) -> dict[str, Tensor]:
    """Two rows of what a model reads; a mask hides a quarter of the second."""
    generator = torch.Generator().manual_seed(0)
    request = {}
    for name, spec in specs.items():
        shape = [
            dim if isinstance(dim, int) else 2 if place == 0 else length
            for place, dim in enumerate(spec.dims)
        ]
        if name == "attention_mask":
            value = torch.ones(shape, dtype=spec.dtype)
            value[1, shape[1] - max(1, shape[1] // 4) if shape[1] > 1 else 1 :] = 0
        elif spec.dtype.is_floating_point:
            value = torch.rand(shape, generator=generator).to(spec.dtype)
        else:
            vocabulary = model.get_encoder().get_input_embeddings().weight.shape[0]
            value = torch.randint(vocabulary // 2, vocabulary, shape, generator=generator)
        request[name] = value.to(device)
    return request

"""Whether a model generates here what it generates by itself: a few tokens, on its real weights, when it is taken.

A model's own forward over another cache may differ in ways that nobody can list: a cache of its own, a position that
it counts itself, options that only its ``generate()`` reads. So both are run on two short prompts of different lengths,
and their logits are compared token by token.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import GraphError
from orchestrator_stages.generation.generator import Generator
from orchestrator_stages.generation.items import ItemKind, rope_positions
from orchestrator_stages.generation.static_forward import without_values

__all__ = ["check_logits", "compare_logits", "generate_logits"]

PROMPT, NEW = 4, 3
"""Text tokens of the longer prompt, and tokens that are added."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference, relative to the largest logit: rounding in another order of work."""


def check_logits(
    model: Any,
    generator: Generator,
    vocabulary: int,
    kind: ItemKind | None = None,
    encoders: Sequence[nn.Module] = (),
    rope: Any = None,
) -> None:
    """Compares logits of a generator with those that ``generate()`` sees.

    Args:
        model: The model; what its ``generate()`` leaves in it stays.
        generator: The same model, followed.
        vocabulary: Number of tokens.
        kind: The items among the tokens of prompts; None: there are none.
        encoders: What makes features of items, one after the other.
        rope: What has the method ``get_rope_index``; None: positions are numbers.

    Raises:
        GraphError: They differ, or ``generate()`` fails.
    """
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    ids, mask = _prompts(generator.slots, vocabulary, kind, device)
    values = [] if kind is None else [_numbers(value).to(device) for value in kind.values.values()]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        items = {} if kind is None else {**kind.arguments(ids), **dict(zip(kind.values, values, strict=True))}
        sequences, right = generate_logits(model, {"input_ids": ids, "attention_mask": mask, **items})
        tokens = sequences[:, -len(right) :]
        more = () if rope is None or kind is None else (rope_positions(rope, kind, ids, mask),)
        if kind is None:
            out = generator.prefill(ids, mask)
        else:
            features: Any = [value[None] for value in values]
            for encoder in encoders:
                features = [encoder(*features)]
            numbers = (ids == kind.token).sum(1)
            embeddings = generator.merge(ids, numbers.cumsum(0) - numbers, features[0])
            out = generator.prefill_merged(embeddings["inputs_embeds"], mask, embeddings["types"], *more)
        state = list(generator.specs_names)
        # A cache that is full has no room for what would be compared next. One token is made as a device makes it that
        # compiles, the next as it is made where the position can be read.
        for number, reference in enumerate(right[: generator.slots - ids.shape[1] + 1]):
            if number:
                token, after = tokens[:, number - 1], [out[name] for name in state]
                is_blind = number % 2 == 1
                with without_values() if is_blind else contextlib.nullcontext():
                    out |= generator.decode(token, out["mask"], *after, is_masked=is_blind)
            compare_logits(model, number, out["logits"], reference)


def _prompts(slots: int, vocabulary: int, kind: ItemKind | None, device: Any) -> tuple[Tensor, Tensor]:
    """Two prompts, the second padded on the left; the first has an item where there are any."""
    items = [] if kind is None else [kind.token] * kind.count
    text = min(PROMPT, slots - len(items) - 1)
    if text < 1:
        raise GraphError(
            f"A prompt with one item has more than {len(items)} tokens, which no bucket of tokens= holds.",
            option="tokens",
        )
    special = set(items)
    words = [
        token
        for place in range(2 * text + len(special))
        if (token := (7 * place + 5) % vocabulary) not in special
    ]
    length = len(items) + text
    first = [*words[:1], *items, *words[1:text]]
    second = words[text : text + max(1, text - 2)]
    padding = length - len(second)
    ids = torch.tensor([first, [words[0]] * padding + second], device=device)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    return ids, mask


def _numbers(like: Tensor) -> Tensor:
    """Numbers that are not the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(like.shape, generator=generator).to(like.dtype)


def generate_logits(model: Any, request: Mapping[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
    """Returns the sequences that ``generate()`` gives for two short prompts, and the logits of each token it adds.

    Args:
        model: The model.
        request: The prompts.

    Raises:
        GraphError: It fails.
    """
    try:
        result = model.generate(
            **request,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            stop_strings=None,
            max_time=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    except Exception as error:
        raise GraphError(
            f"generate() of {type(model).__name__} fails on two short prompts: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
            model=model,
        ) from error
    return result.sequences, result.logits


def compare_logits(model: Any, number: int, ours: Tensor, reference: Tensor) -> None:
    """Refuses a model whose logits over a cache of ours differ from those of its own ``generate()``.

    Args:
        model: The model.
        number: How many tokens came before.
        ours: ``[batch, vocabulary]``, float32.
        reference: The same, of any dtype.

    Raises:
        GraphError: They do.
    """
    reference = reference.to(torch.float32)
    tolerance = TOLERANCES.get(next(model.parameters()).dtype, 1e-3)
    difference = (ours - reference).abs().max() / reference.abs().max().clamp(min=1e-6)
    if ours.shape != reference.shape or not difference <= tolerance:
        raise GraphError(
            f"The forward of {type(model).__name__} over a cache of fixed size gives other logits than its generate(): "
            f"those of token {number + 1} after a short prompt differ by {float(difference):.2g} of the largest. It "
            "keeps or counts something that the cache does not show, or tells places by how many keys there are. Run "
            "its own generate() in a host stage.",
            model=model,
        )

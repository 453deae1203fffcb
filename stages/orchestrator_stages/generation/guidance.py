"""Guidance of text: the model runs a second time for each token, over what it was not asked.

``generate()`` does so from a logits processor that holds the model. Here the second run stands beside the first: it has
a cache of its own, which begins with the last token of the prompt, or with a negative prompt, and goes on with the same
tokens. What it gives are logits that the processor is told.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator import Dim, TensorSpec
from orchestrator_stages.generation.generator import Generator
from orchestrator_stages.generation.processors import to_the_left

__all__ = ["GuidedGenerator"]

PREFIX = "guide_"
"""What stands before the names of what the second run carries."""


class GuidedGenerator(nn.Module):
    """Runs a prompt and then token by token, and besides each time what is not to be said.

    Args:
        generator: Runs the model.
        negative: The ids of a negative prompt; empty: the last token of the prompt is one.
        new: How many tokens are added at most.

    Attributes:
        aliases: Of what is carried, what :meth:`decode` writes in place: each is itself, updated.
    """

    negative: Tensor

    def __init__(self, generator: Generator, negative: tuple[int, ...], new: int) -> None:
        super().__init__()
        self.generator = generator
        self.guide = generator.with_slots(max(len(negative), 1) + new)
        self.register_buffer("negative", torch.tensor([negative], dtype=torch.int64), persistent=False)
        self.train(generator.training)
        guide_aliases = {PREFIX + name: PREFIX + name for name in self.guide.aliases}
        self.aliases = generator.aliases | guide_aliases
        self._count = len(generator.specs_names) - 1

    def specs(self, rows: Dim) -> dict[str, TensorSpec]:
        """Returns what is carried from token to token, in the order of :meth:`decode`; ``rows``: of the batch."""
        guide_specs = {PREFIX + name: spec for name, spec in self.guide.specs(rows).items()}
        return self.generator.specs(rows) | guide_specs

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings of tokens."""
        return self.generator.dtype

    def merge(self, input_ids: Tensor, first: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Puts features into the embeddings of a prompt, as :meth:`Generator.merge` does."""
        return self.generator.merge(input_ids, first, features)

    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Runs a prompt, as :meth:`Generator.prefill` does; returns that, and ``guide``, the logits beside it."""
        return self.generator.prefill(input_ids, attention_mask) | self._guide(input_ids, attention_mask)

    def prefill_merged(
        self, inputs_embeds: Tensor, attention_mask: Tensor, types: Tensor, input_ids: Tensor
    ) -> dict[str, Tensor]:
        """The same of a prompt that is embedded already; what is beside it sees no features.

        Args:
            inputs_embeds: As :meth:`merge` gives them, ``[batch, tokens, width]``.
            attention_mask: ``[batch, tokens]``, int64, 0 where there is padding, on any side.
            types: The same, 1 where there are features.
            input_ids: ``[batch, tokens]``, int64.
        """
        result = self.generator.prefill_merged(inputs_embeds, attention_mask, types)
        return result | self._guide(input_ids, attention_mask)

    def _guide(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Runs what the second run begins with."""
        (tokens,) = to_the_left(attention_mask, input_ids)
        rows = tokens.shape[0]
        ids = self.negative.expand(rows, -1) if self.negative.shape[1] else tokens[:, -1:]
        guide = self.guide.prefill(ids, torch.ones_like(ids))
        del guide["mask"]
        return _named(guide)

    def decode(
        self,
        token: Tensor,
        mask: Tensor,
        position: Tensor,
        *state: Tensor,
        reach: int | None = None,
        order: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Runs one token twice.

        Args:
            token: ``[batch]``, int64.
            mask: ``[batch, slots]``, 0 where the prompt has padding.
            position: ``[1]``, int64: the slot of the token.
            state: What else is carried.
            reach: How many slots are read of what follows the prompt; None: all.
            order: As of :meth:`Generator.decode`; as in ``generate()``, what runs beside beams keeps its place when
                they change theirs.

        Returns:
            As :meth:`Generator.decode`, and ``guide`` ``[batch, vocabulary]``, the logits beside it.
        """
        own, guide = state[: self._count], state[self._count :]
        result = self.generator.decode(token, mask, position, *own, reach=reach, order=order)
        return result | _named(self.guide.decode(token, self._mask(mask), *guide))

    def _mask(self, mask: Tensor) -> Tensor:
        """The mask of the second run, which has no padding."""
        return mask.new_ones(mask.shape[0], self.guide.slots)


def _named(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the second run gives, by the names of :class:`GuidedGenerator`."""
    logits = {"guide": values.pop("logits")}
    return logits | {PREFIX + name: value for name, value in values.items()}

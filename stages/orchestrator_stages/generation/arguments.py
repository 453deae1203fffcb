"""What `from_transformers` was called with, as one record for all kinds of models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import GraphError

__all__ = ["BATCH", "ITEMS", "TOKENS", "ImportArguments"]

BATCH = (1, 2, 4, 8)
"""Sizes of a batch."""

TOKENS = (16, 32, 64, 128, 256, 512)
"""Lengths of a text."""

ITEMS = (1, 2, 4, 8)
"""How many pictures or recordings a request may have."""


@dataclass(frozen=True)
class ImportArguments:
    """The arguments of :func:`~orchestrator_stages.generation.build.from_transformers`, which says what they are.

    Attributes:
        model: The model itself, out of what torch wraps around it.
        tokenizer: Its tokenizer.
        processor: Its processor.
        options: The options of ``generate()``, ``max_new_tokens`` among them.
        batch: Sizes of a batch.
        tokens: Lengths of a text.
        cache: Lengths of the cache.
        check_every: Tokens between two looks at the end.
        name: The name of the pipeline.
        messages: Whether requests are conversations.
        example: What a processor gives for an item.
        items: Numbers of items.
        context: How many tokens the cache of a conversation holds.
    """

    model: Any
    tokenizer: Any
    processor: Any
    options: Mapping[str, Any]
    batch: Iterable[int]
    tokens: Iterable[int] | None
    cache: Iterable[int] | None
    check_every: int
    name: str
    messages: bool
    example: Mapping[str, Any] | None
    items: Iterable[int]
    context: int | None

    def __post_init__(self) -> None:
        """Refuses what cannot prepare a request."""
        if self.tokenizer is not None and not (
            callable(self.tokenizer) and hasattr(self.tokenizer, "decode")
        ):
            raise GraphError(
                f"tokenizer= is a tokenizer of transformers, not {self.tokenizer!r:.80}.", option="tokenizer"
            )
        if self.processor is not None and not callable(self.processor):
            raise GraphError(
                f"processor= is a processor of transformers, not {self.processor!r:.80}.", option="processor"
            )

    @property
    def reader(self) -> Any:
        """What reads tokens: the tokenizer, else that of the processor, else the processor."""
        return self.tokenizer or getattr(self.processor, "tokenizer", self.processor)

    @property
    def chat(self) -> Any:
        """What has the template of conversations; None: there are none."""
        return self.processor or self.tokenizer if self.messages else None

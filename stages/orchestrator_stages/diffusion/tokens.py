"""The host's part of reading a prompt: text to token ids, with the checks that a user of diffusers expects.

A text encoder takes a fixed number of tokens. A shorter prompt is filled up as the tokenizer does it. A longer
one is refused, since the picture would not show what its end says; or it is cut with a warning, as diffusers
does, where the pipeline was built to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orchestrator import Dim, HostStage, TensorSpec

Texts = str | Sequence[str] | None


class PromptTokenizer(NamedTuple):
    """How the prompts for one text encoder are read.

    Attributes:
        tokenizer: A tokenizer of transformers.
        length: How many tokens the encoder takes.
        convert: Replaces what textual inversion taught the tokenizer: ``(texts, tokenizer) -> texts``; or None.
    """

    tokenizer: Any
    length: int
    convert: Callable[[list[str], Any], list[str]] | None = None

    def ids(self, texts: list[str], *, truncate: bool) -> Tensor:
        """Returns ``[len(texts), length]``, int64.

        Raises:
            ValueError: A text is too long, and is not to be cut.
        """
        if self.convert is not None:
            texts = self.convert(texts, self.tokenizer)
        whole = self.tokenizer(texts, padding=False, truncation=False, verbose=False).input_ids
        for text, tokens in zip(texts, whole, strict=True):
            if len(tokens) > self.length:
                self._report_length(text, len(tokens), truncate)
        encodings = self.tokenizer(
            texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = encodings.input_ids
        return ids

    def _report_length(self, text: str, tokens: int, truncate: bool) -> None:
        problem = f"The prompt {text!r} has {tokens} tokens, but its text encoder takes {self.length} at most"
        if not truncate:
            raise ValueError(
                f"{problem}. Shorten it, or build the pipeline with from_diffusers(..., truncate=True), which cuts it."
            )
        warnings.warn(f"{problem}; its end was cut off.", stacklevel=2)


def as_list(texts: Texts, name: str, count: int | None = None) -> list[str]:
    """Returns texts as a list.

    Args:
        texts: One text, or several; None is the empty text.
        name: What they are called, for messages.
        count: How many there must be; one text stands for all.

    Raises:
        TypeError: It is no text.
        ValueError: There is none, or not ``count`` of them.
    """
    items: Any = [texts or ""] if texts is None or isinstance(texts, str) else texts
    if not isinstance(items, (list, tuple)) or not all(isinstance(text, str) for text in items):
        raise TypeError(f"{name} is a text or a list of texts, not {texts!r}.")
    items = list(items) * count if count is not None and len(items) == 1 else list(items)
    if not items or (count is not None and len(items) != count):
        raise ValueError(f"{name} has {len(items)} texts" + (f" for {count} prompts." if items else "."))
    return items  # type: ignore[no-any-return]


class Tokens(HostStage):
    """Host stage: prompts to token ids for one or two text encoders.

    Takes ``prompt``, a text or a list of them; ``negative_prompt``, likewise, or None; ``prompt_2`` and
    ``negative_prompt_2``, which the second encoder reads instead if they are given; and
    ``num_images_per_prompt``. Gives, for each encoder ``N``, ``ids_N`` and with guidance ``negative_ids_N``
    ``[images, length]``; ``count``, the number of images; and with guidance ``negated``, a scalar: whether there
    was a negative prompt.

    Args:
        tokenizers: One for each text encoder.
        images: The dim of images.
        negative: There is a negative prompt.
        truncate: A prompt that is too long is cut with a warning, not refused.
    """

    def __init__(
        self, tokenizers: Sequence[PromptTokenizer], images: Dim, *, negative: bool, truncate: bool = False
    ) -> None:
        super().__init__(tag="tokens")
        self.tokenizers = tuple(tokenizers)
        self.negative = negative
        self.truncate = truncate
        # Ports are named by prefix and number: the second encoder reads `prompt_2` and gives `ids_2`.
        kinds = ("", "negative_") if negative else ("",)
        self.inputs = {
            f"{kind}prompt{second}": object for second in ("", "_2")[: len(tokenizers)] for kind in kinds
        }
        self.inputs["num_images_per_prompt"] = int
        specs = {
            f"{kind}ids_{number}": TensorSpec((images, tokenizer.length), torch.int64, pad="repeat_first")
            for kind in kinds
            for number, tokenizer in enumerate(self.tokenizers, 1)
        }
        self.outputs = {**specs, "count": int}
        if negative:
            self.outputs = {**self.outputs, "negated": TensorSpec((), torch.bool)}

    def forward(
        self,
        prompt: Texts,
        negative_prompt: Texts = None,
        prompt_2: Texts = None,
        negative_prompt_2: Texts = None,
        num_images_per_prompt: int = 1,
    ) -> dict[str, Any]:
        """Reads the prompts of one request."""
        if prompt is None:
            raise TypeError("prompt is a text or a list of texts, not None.")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is at least 1, not {num_images_per_prompt}.")
        # For each kind of prompt the texts of both encoders; the second reads the first's where it has none.
        first = as_list(prompt, "prompt")
        count = len(first)
        texts = {"": [first, as_list(prompt_2, "prompt_2", count) if prompt_2 else first]}
        if self.negative:
            negative = as_list(negative_prompt, "negative_prompt", count)
            second = as_list(negative_prompt_2, "negative_prompt_2", count) if negative_prompt_2 else negative
            texts["negative_"] = [negative, second]
        # All images of a prompt stand together, as the latents of one request do.
        ids = {
            f"{kind}ids_{number}": tokenizer.ids(both[number - 1], truncate=self.truncate).repeat_interleave(
                num_images_per_prompt, dim=0
            )
            for kind, both in texts.items()
            for number, tokenizer in enumerate(self.tokenizers, 1)
        }
        outputs: dict[str, Any] = {**ids, "count": count * num_images_per_prompt}
        if self.negative:
            outputs["negated"] = torch.tensor(negative_prompt is not None)
        return outputs

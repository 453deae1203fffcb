"""Which models are supported, and what each is made of: an encoder, a decoder, and what its sequences begin with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from orchestrator import GraphError, TensorSpec
from orchestrator.specs import Dim
from orchestrator_stages.seq2seq.bart import NORM_FIRST, bart_parts
from orchestrator_stages.seq2seq.decoder import DecoderParts
from orchestrator_stages.seq2seq.encoders import AudioEncoder, ImageEncoder, TextEncoder
from orchestrator_stages.seq2seq.gpt2 import gpt2_parts
from orchestrator_stages.seq2seq.t5 import t5_parts

__all__ = ["SUPPORTED", "Family", "family_of"]

SUPPORTED = (
    "T5 and mT5, BART, Marian, mBART and Pegasus, Whisper, and VisionEncoderDecoderModel with a TrOCR, BART, mBART or "
    "GPT-2 decoder"
)


@dataclass(frozen=True)
class Family:
    """How models of a kind are taken apart.

    Attributes:
        kind: What they read: ``text``, ``audio`` or ``image``.
        encoder: Of a model, the stage that encodes.
        decoder: Of a model and the length of its past, the parts of its decoder.
        prompt: Of the generation options, the tokens after the start that the model is given.
        positions: Of a model, how many tokens its encoder can count; None: any number.
    """

    kind: str
    encoder: Callable[[Any], nn.Module]
    decoder: Callable[[Any, int], DecoderParts]
    prompt: Callable[[Mapping[str, Any]], tuple[int | None, ...]] = lambda _: ()
    positions: Callable[[Any], int | None] = lambda _: None

    def input(self, model: Any, batch: Dim) -> TensorSpec:
        """Returns what a request gives to a model that reads audio or images.

        Rows that fill up a batch repeat the first, so that they end when it does.
        """
        if self.kind == "audio":
            frames = 2 * model.config.max_source_positions
            return TensorSpec((batch, model.config.num_mel_bins, frames), pad="repeat_first")
        config = model.encoder.config
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return TensorSpec((batch, config.num_channels, height, width), pad="repeat_first")


def _bart(model: Any, length: int) -> DecoderParts:  # noqa: ARG001
    return bart_parts(model.model.decoder, model.lm_head, getattr(model, "final_logits_bias", None))


def _whisper(model: Any, length: int) -> DecoderParts:  # noqa: ARG001
    return bart_parts(model.model.decoder, model.proj_out)


def _image(model: Any, length: int) -> DecoderParts:  # noqa: ARG001
    decoder = model.decoder
    kind = decoder.config.model_type
    if kind == "gpt2":
        return gpt2_parts(decoder)
    if kind not in ("trocr", "bart", "mbart"):
        raise _unsupported(f"VisionEncoderDecoderModel with a decoder of type {kind!r}", decoder)
    stack = decoder.model.decoder
    if not isinstance(stack.embed_positions, nn.Embedding):
        raise _unsupported("a TrOCR decoder without learned positions", decoder)
    head = decoder.output_projection if kind == "trocr" else decoder.lm_head
    return bart_parts(stack, head)


def _counted(model: Any) -> int | None:
    return int(model.config.max_position_embeddings)


def whisper_prompt(options: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Returns what Whisper is given after the start: language, task, and that there be no timestamps.

    Raises:
        GraphError: The language or the task is unknown.
    """
    language, task = options.get("language"), options.get("task")
    languages, tasks = options.get("lang_to_id") or {}, options.get("task_to_id") or {}
    old = options.get("forced_decoder_ids") if language is None and task is None else None
    prompt: list[int | None] = [token for _, token in sorted(old or ())]
    if language is not None:
        prompt = [_named("language", _tag(str(language)), languages)]
    elif not prompt and languages:
        prompt = [None]
    if task is not None or (language is not None and tasks):
        prompt.append(_named("task", task or "transcribe", tasks))
    last = options.get("no_timestamps_token_id")
    if last is not None and prompt[-1:] != [last]:
        prompt.append(last)
    return tuple(prompt)


def _tag(language: str) -> str:
    codes = importlib.import_module("transformers.models.whisper.tokenization_whisper").TO_LANGUAGE_CODE
    language = language.lower()
    return language if language.startswith("<|") else f"<|{codes.get(language, language)}|>"


def _named(what: str, name: str, known: Mapping[str, int]) -> int:
    if name not in known:
        listed = ", ".join(known) or "none: it knows one language and one task"
        raise GraphError(f"This Whisper model has no {what} {name!r}; it has {listed}.", option=what)
    return known[name]


_TEXT = Family("text", lambda model: TextEncoder(model.get_encoder()), _bart, positions=_counted)
_T5 = Family("text", lambda model: TextEncoder(model.get_encoder()), t5_parts)
_AUDIO = Family("audio", lambda model: AudioEncoder(model.model.encoder), _whisper, whisper_prompt)

#: Model types to families.
FAMILIES: Mapping[str, Family] = {
    "t5": _T5,
    "mt5": _T5,
    **{kind: _TEXT for kind in NORM_FIRST if kind not in ("whisper", "trocr")},
    "whisper": _AUDIO,
    "vision-encoder-decoder": Family("image", ImageEncoder, _image),
}


def _unsupported(what: str, model: object) -> GraphError:
    return GraphError(f"from_transformers does not support {what}. It supports {SUPPORTED}.", model=model)


def family_of(model: Any) -> Family:
    """Returns the family of a model.

    Raises:
        GraphError: It is no model of transformers that generates, or of a family that is not supported.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or kind is None:
        raise _unsupported(f"{model!r:.80}, which is no model of transformers", model)
    if kind not in FAMILIES:
        raise _unsupported(f"{type(model).__name__}, a model of type {kind!r}", model)
    if not hasattr(model, "generation_config") or not hasattr(model, "prepare_inputs_for_generation"):
        raise _unsupported(
            f"{type(model).__name__}, which generates nothing; take ...ForConditionalGeneration", model
        )
    return FAMILIES[kind]


def dtype_of(model: nn.Module) -> torch.dtype:
    """Returns the dtype of a model's weights."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())

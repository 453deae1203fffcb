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
from orchestrator_stages.origin import check_unchanged, library_class
from orchestrator_stages.seq2seq.bart import bart_parts
from orchestrator_stages.seq2seq.checks import check_model, check_stack
from orchestrator_stages.seq2seq.decoder import DecoderParts
from orchestrator_stages.seq2seq.encoders import AudioEncoder, ImageEncoder, TextEncoder
from orchestrator_stages.seq2seq.gpt2 import gpt2_parts
from orchestrator_stages.seq2seq.t5 import t5_parts

__all__ = ["SUPPORTED", "ModelFamily", "family_of"]

SUPPORTED = (
    "T5 and mT5, BART, Marian, mBART and Pegasus, Whisper, and VisionEncoderDecoderModel with a TrOCR, BART, mBART or "
    "GPT-2 decoder"
)


@dataclass(frozen=True)
class ModelFamily:
    """How models of a kind are taken apart.

    Attributes:
        modality: What they read: ``text``, ``audio`` or ``image``.
        encoder: Of a model, the stage that encodes.
        decoder: Of a model and the length of its past, the parts of its decoder.
        prompt: Of the generation options, the tokens after the start that the model is given.
        positions: Of a model, how many tokens its encoder can count; None: any number.
    """

    modality: str
    encoder: Callable[[Any], nn.Module]
    decoder: Callable[[Any, int], DecoderParts]
    prompt: Callable[[Mapping[str, Any]], tuple[int | None, ...]] = lambda _: ()
    positions: Callable[[Any], int | None] = lambda _: None

    def input(self, model: Any, batch: Dim) -> TensorSpec:
        """Returns what a request gives to a model that reads audio or images.

        Rows that fill up a batch repeat the first, so that they end when it does.
        """
        if self.modality == "audio":
            frames = 2 * model.config.max_source_positions
            return TensorSpec((batch, model.config.num_mel_bins, frames), pad="repeat_first")
        config = model.encoder.config
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return TensorSpec((batch, config.num_channels, height, width), pad="repeat_first")


def _bart(model: Any, length: int) -> DecoderParts:  # noqa: ARG001
    check_stack(model.model.decoder, dtype_of(model))
    return bart_parts(model.model.decoder, model.lm_head, getattr(model, "final_logits_bias", None))


def _t5(model: Any, length: int) -> DecoderParts:
    check_stack(model.decoder, dtype_of(model))
    return t5_parts(model, length)


def _whisper(model: Any, length: int) -> DecoderParts:  # noqa: ARG001
    check_stack(model.model.encoder, dtype_of(model), "encoder")
    check_stack(model.model.decoder, dtype_of(model))
    return bart_parts(model.model.decoder, model.proj_out)


def _image(model: Any, length: int) -> DecoderParts:  # noqa: ARG001
    # The decoder is a model of its own, so it is checked as one; only then is its stack of layers looked at.
    decoder = model.decoder
    kind = decoder.config.model_type
    base = library_class(decoder, DECODERS)
    if base is None:
        raise _unsupported_model(
            f"VisionEncoderDecoderModel with a decoder {type(decoder).__name__} of type {kind!r}", decoder
        )
    check_unchanged(decoder, base, "the model's decoder")
    if not decoder.config.add_cross_attention and kind == "gpt2":
        raise GraphError(
            "The GPT-2 decoder has no cross-attention; make it with add_cross_attention=True.",
            option="add_cross_attention",
        )
    if kind == "gpt2":
        check_stack(decoder.transformer, dtype_of(decoder))
        return gpt2_parts(decoder)
    stack = decoder.model.decoder
    if not isinstance(stack.embed_positions, nn.Embedding):
        raise _unsupported_model("a TrOCR decoder without learned positions", decoder)
    check_stack(stack, dtype_of(decoder))
    head = decoder.output_projection if kind == "trocr" else decoder.lm_head
    return bart_parts(stack, head)


def _text_positions(model: Any) -> int | None:
    return int(model.config.max_position_embeddings)


def whisper_prompt(options: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Returns what Whisper is given after the start: language, task, and that there be no timestamps.

    Raises:
        GraphError: The language or the task is unknown, or there is one for each row.
    """
    language, task = options.get("language"), options.get("task")
    languages, tasks = options.get("lang_to_id") or {}, options.get("task_to_id") or {}
    prompt = _old_prompt(options.get("forced_decoder_ids")) if language is None and task is None else []
    if language is not None:
        if not isinstance(language, str):
            raise GraphError(
                f"language is one for all rows, such as 'de', not {language!r}.", option="language"
            )
        prompt = [_token_of("language", _tag(language), languages)]
    elif not prompt and languages:
        prompt = [None]
    if not languages:  # Nothing to choose a language from: generate() leaves it out.
        prompt = [token for token in prompt if token is not None]
    if task is not None or (language is not None and tasks):
        prompt.append(_token_of("task", task or "transcribe", tasks))
    last = options.get("no_timestamps_token_id")
    if last is not None and prompt[-1:] != [last]:
        prompt.append(last)
    return tuple(prompt)


def _old_prompt(forced_ids: Any) -> list[int | None]:
    """Returns the tokens of ``forced_decoder_ids``, pairs of a place and a token, as old checkpoints have them."""
    pairs = [(int(place), token) for place, token in forced_ids or ()]
    if not pairs or pairs[0][0] != 1:
        return []
    if [place for place, _ in pairs] != list(range(1, len(pairs) + 1)):
        raise GraphError(
            f"forced_decoder_ids has gaps: {forced_ids!r}; generate() refuses it as well.",
            option="forced_decoder_ids",
        )
    return [token for _, token in pairs]


def _tag(language: str) -> str:
    codes = importlib.import_module("transformers.models.whisper.tokenization_whisper").TO_LANGUAGE_CODE
    language = language.lower()
    return language if language.startswith("<|") else f"<|{codes.get(language, language)}|>"


def _token_of(what: str, name: str, tokens: Mapping[str, int]) -> int:
    if name not in tokens:
        names = ", ".join(tokens) or "none: it knows one language and one task"
        raise GraphError(f"This Whisper model has no {what} {name!r}; it has {names}.", option=what)
    return tokens[name]


_TEXT = ModelFamily("text", lambda model: TextEncoder(model.get_encoder()), _bart, positions=_text_positions)
_T5 = ModelFamily("text", lambda model: TextEncoder(model.get_encoder()), _t5)
_AUDIO = ModelFamily("audio", lambda model: AudioEncoder(model.model.encoder), _whisper, whisper_prompt)
_PICTURE = ModelFamily("image", ImageEncoder, _image)

#: Classes of transformers to families.
FAMILIES: Mapping[str, ModelFamily] = {
    "transformers.models.t5.modeling_t5:T5ForConditionalGeneration": _T5,
    "transformers.models.mt5.modeling_mt5:MT5ForConditionalGeneration": _T5,
    "transformers.models.bart.modeling_bart:BartForConditionalGeneration": _TEXT,
    "transformers.models.marian.modeling_marian:MarianMTModel": _TEXT,
    "transformers.models.mbart.modeling_mbart:MBartForConditionalGeneration": _TEXT,
    "transformers.models.pegasus.modeling_pegasus:PegasusForConditionalGeneration": _TEXT,
    "transformers.models.whisper.modeling_whisper:WhisperForConditionalGeneration": _AUDIO,
    "transformers.models.vision_encoder_decoder.modeling_vision_encoder_decoder:VisionEncoderDecoderModel": _PICTURE,
}

#: Classes of transformers that may be the decoder of a VisionEncoderDecoderModel.
DECODERS = (
    "transformers.models.gpt2.modeling_gpt2:GPT2LMHeadModel",
    "transformers.models.trocr.modeling_trocr:TrOCRForCausalLM",
    "transformers.models.bart.modeling_bart:BartForCausalLM",
    "transformers.models.mbart.modeling_mbart:MBartForCausalLM",
)


def _unsupported_model(what: str, model: object) -> GraphError:
    return GraphError(f"from_transformers does not support {what}. It supports {SUPPORTED}.", model=model)


def family_of(model: Any) -> ModelFamily:
    """Returns the family of a model.

    Raises:
        GraphError: It is no model of transformers that generates, or of a family that is not supported, or it was
            changed, or something is missing.
    """
    # The nearest thing that is wrong is told: no model, a model without generation, a wrapper, another family.
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or kind is None:
        raise _unsupported_model(f"{model!r:.80}, which is no model of transformers", model)
    base = library_class(model, FAMILIES)
    if base is None:
        cls = type(model)
        description = f"{cls.__name__} of {cls.__module__}, a model of type {kind!r}"
        kinds = {path.split(".")[2] for path in FAMILIES}
        if kind in kinds and not hasattr(model, "generation_config"):
            description = f"{cls.__name__}, which generates nothing; take ...ForConditionalGeneration"
        elif hasattr(model, "peft_config"):
            description = f"{cls.__name__}, a model in a wrapper of peft; call its merge_and_unload()"
        raise _unsupported_model(description, model)
    check_model(model, base)
    return FAMILIES[f"{base.__module__}:{base.__name__}"]


def dtype_of(model: nn.Module) -> torch.dtype:
    """Returns the dtype of a model's weights."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())

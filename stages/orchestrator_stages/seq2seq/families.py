"""Which models are supported: what each reads, and what its sequences begin with."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from orchestrator import GraphError, TensorSpec
from orchestrator.specs import Dim
from orchestrator_stages.seq2seq.checks import check_model

__all__ = ["SUPPORTED", "ModelFamily", "dtype_of", "family_of", "positions_of"]

LIBRARY = "transformers.models."
"""Where the library's classes of models are."""

SUPPORTED = (
    "models of transformers whose encoder is run by itself and whose decoder goes on with its encoder_outputs=: T5, "
    "BART, Marian, Whisper, VisionEncoderDecoderModel with any decoder that reads it, and all others of that form"
)


@dataclass(frozen=True)
class ModelFamily:
    """What models of a kind read, and how they generate.

    Attributes:
        inputs: Of a model and the dims of its batch and of what it reads, what a request gives to the encoder: names to
            specs, the mask last if there is one. Rows of a text that fill up a batch are hidden by its mask; others
            repeat the first, so that they end when it does.
        modality: ``text``, ``audio``, ``image``, or ``example`` where an example says what is read.
        has_length: What it reads has a length of its own, which :attr:`inputs` are told.
        speech: Its ``generate()`` is that of Whisper.
    """

    inputs: Callable[[Any, Dim, Dim | int], dict[str, TensorSpec]]
    modality: str
    has_length: bool = True
    speech: bool = False

    def prompt(self, options: Mapping[str, Any]) -> tuple[int | None, ...]:
        """Returns the tokens after the start that the model is given, of the options of ``generate()``."""
        return whisper_prompt(options) if self.speech else ()


def _text(model: Any, batch: Dim, tokens: Dim | int) -> dict[str, TensorSpec]:  # noqa: ARG001
    dims = (batch, tokens)
    return {
        "input_ids": TensorSpec(dims, torch.int64, pad=0),
        "attention_mask": TensorSpec(dims, torch.int64, pad=0),
    }


def _mels(model: Any, batch: Dim, frames: Dim | int) -> dict[str, TensorSpec]:
    width = model.config.input_feat_per_channel * model.config.input_channels
    return {
        "input_features": TensorSpec((batch, frames, width), dtype_of(model), pad="repeat_first"),
        "attention_mask": TensorSpec((batch, frames), torch.int64, pad="repeat_first"),
    }


def _samples(model: Any, batch: Dim, samples: Dim | int) -> dict[str, TensorSpec]:
    return {
        "input_values": TensorSpec((batch, samples), dtype_of(model), pad="repeat_first"),
        "attention_mask": TensorSpec((batch, samples), torch.int64, pad="repeat_first"),
    }


def _whisper(model: Any, batch: Dim, _: Dim | int) -> dict[str, TensorSpec]:
    shape = (batch, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return {"input_features": TensorSpec(shape, dtype_of(model), pad="repeat_first")}


def _pixels(model: Any, batch: Dim, _: Dim | int) -> dict[str, TensorSpec]:
    config = model.encoder.config
    side = config.image_size
    sides = (side, side) if isinstance(side, int) else tuple(side)
    return {
        "pixel_values": TensorSpec((batch, config.num_channels, *sides), dtype_of(model), pad="repeat_first")
    }


def whisper_prompt(options: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Returns what Whisper is given after the start: language, task, and that there be no times unless there are.

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
    if options.get("return_timestamps"):
        return tuple(prompt[:-1] if prompt[-1:] == [last] else prompt)
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


def _shaped_as(rows: Mapping[str, torch.Tensor]) -> ModelFamily:
    """The family of a model that reads what an example has: numbers of one shape, and a mask over them."""

    def inputs(model: Any, batch: Dim, _: Dim | int) -> dict[str, TensorSpec]:
        dtypes = {
            name: dtype_of(model) if row.is_floating_point() else row.dtype for name, row in rows.items()
        }
        return {
            name: TensorSpec((batch, *row.shape[1:]), dtypes[name], pad="repeat_first")
            for name, row in rows.items()
        }

    return ModelFamily(inputs, "example", has_length=False)


#: Classes of transformers to families, of those that read no texts.
FAMILIES: Mapping[str, ModelFamily] = {
    f"transformers.models.{path}": family
    for path, family in {
        "moonshine.modeling_moonshine:MoonshineForConditionalGeneration": ModelFamily(_samples, "audio"),
        "speech_to_text.modeling_speech_to_text:Speech2TextForConditionalGeneration": ModelFamily(
            _mels, "audio"
        ),
        "vision_encoder_decoder.modeling_vision_encoder_decoder:VisionEncoderDecoderModel": ModelFamily(
            _pixels, "image", has_length=False
        ),
        "whisper.modeling_whisper:WhisperForConditionalGeneration": ModelFamily(
            _whisper, "audio", has_length=False, speech=True
        ),
    }.items()
}


def _unsupported_model(what: str, model: object) -> GraphError:
    return GraphError(f"from_transformers does not support {what}. It supports {SUPPORTED}.", model=model)


def family_of(model: Any, example: Mapping[str, Any] | None = None) -> ModelFamily:
    """Returns the family of a model.

    Args:
        model: The model.
        example: What its processor gives for one row, where neither texts are read nor the config says all.

    Raises:
        GraphError: It is no model of transformers that generates, or of a form that is not supported, or it was
            changed, or something is missing.
    """
    # The nearest thing that is wrong is told: no model, a model without generation, a wrapper, another form.
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, nn.Module) or kind is None:
        raise _unsupported_model(f"{model!r:.80}, which is no model of transformers", model)
    base = next((cls for cls in type(model).__mro__ if cls.__module__.startswith(LIBRARY)), None)
    name = type(model).__name__
    if base is not None and not hasattr(model, "generation_config"):
        raise _unsupported_model(f"{name}, which generates nothing; take ...ForConditionalGeneration", model)
    parameters = set(inspect.signature(getattr(base, "forward", model.forward)).parameters)
    if base is None or not {"encoder_outputs", "decoder_input_ids"} <= parameters:
        wrapper = ", a model in a wrapper of peft; call its merge_and_unload()"
        wrapper = (
            wrapper
            if hasattr(model, "peft_config")
            else f" of {type(model).__module__}, a model of type {kind!r}"
        )
        raise _unsupported_model(f"{name}{wrapper}", model)
    check_model(model, base)
    family = FAMILIES.get(f"{base.__module__}:{base.__name__}")
    if family is not None and example is None:
        return family
    main = str(getattr(model, "main_input_name", "input_ids"))
    if main == "input_ids":
        return ModelFamily(_text, "text")
    if example is None or not isinstance(example.get(main), torch.Tensor):
        raise GraphError(
            f"How large what {name} reads is depends on its processor. Say what that gives for one row, with {main!r} "
            "in it: example=processor(..., return_tensors='pt').",
            option="example",
        )
    return _shaped_as({name: example[name] for name in (main, "attention_mask") if name in example})


def positions_of(module: nn.Module) -> int | None:
    """Returns how many tokens an encoder or decoder can count; None: any number.

    Args:
        module: The encoder or decoder.
    """
    for path, part in module.named_modules():
        if path.rpartition(".")[2] in ("embed_positions", "position_embeddings", "wpe"):
            weight = getattr(part, "weight", getattr(part, "weights", None))
            if not isinstance(weight, torch.Tensor):
                break
            # Before the first token: those up to the padding of RoBERTa and M2M100, or two of BART.
            padding = getattr(part, "padding_idx", None)
            return weight.shape[0] - int(getattr(part, "offset", 0) if padding is None else padding + 1)
    longest: int | None = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return longest


def dtype_of(model: nn.Module) -> torch.dtype:
    """Returns the dtype of a model's weights."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())

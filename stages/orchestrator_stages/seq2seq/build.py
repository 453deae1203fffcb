"""Turn a loaded encoder-decoder model of transformers into a pipeline.

    text -> tokenise -> encode -> begin -> decode: step, step, ... -> finish -> detokenise -> text

The encoder runs once. ``begin`` lays down what every layer of the decoder reads of it, once, and makes a cache. The
loop ``decode`` carries the cache, the last token and which sequences have ended; they stay on the device. Only whether
all have ended is read by the host in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.origin import unwrap
from orchestrator_stages.seq2seq.checks import check_prepared
from orchestrator_stages.seq2seq.families import ModelFamily, family_of, positions_of
from orchestrator_stages.seq2seq.host import Detokenise, FinishSequences, Numbers, Tokenise
from orchestrator_stages.seq2seq.loop import Decoding
from orchestrator_stages.seq2seq.options import length_of, read_options
from orchestrator_stages.seq2seq.pictures import PictureEncoder, read_pictures
from orchestrator_stages.seq2seq.prepare import Extract, Process
from orchestrator_stages.seq2seq.rules import Rules, read_rules
from orchestrator_stages.seq2seq.trial import try_model

__all__ = ["from_transformers"]

BATCH = (1, 2, 4, 8)
ITEMS = (1, 2, 4, 8)
TOKENS = (16, 32, 64, 128, 256, 512)


def from_transformers(
    model: Any,
    tokenizer: Any = None,
    processor: Any = None,
    *,
    max_new_tokens: int | None = None,
    batch: Iterable[int] = BATCH,
    tokens: Iterable[int] | None = None,
    check_every: int = 1,
    name: str | None = None,
    example: Mapping[str, Any] | None = None,
    items: Iterable[int] = ITEMS,
    **options: Any,
) -> Pipeline:
    """Builds a pipeline that gives what ``model.generate()`` gives.

    Its output ``tokens`` ``[batch, length]``, int64, equals what ``generate()`` returns; with a tokenizer there is also
    ``text``, a list of strings. Its input depends on the model and on what prepares it:

    =========== ============================================ ==================================================
    model       without tokenizer or processor               with one
    =========== ============================================ ==================================================
    text        ``input_ids``, ``attention_mask``            ``text``, a list of strings
                ``[batch, tokens]``, int64, padded on the
                right
    Whisper     ``input_features`` ``[batch, mels, frames]`` ``audio``, a list of waveforms at 16 kHz
    Speech2Text ``input_features``                           none
                ``[batch, length, mels]``, ``attention_mask``
                ``[batch, length]``
    Moonshine   ``input_values``, ``attention_mask``         none
                ``[batch, length]``
    image       ``pixel_values``                             ``image``, a list of pictures
                ``[batch, channels, height, width]``
    others      what ``example=`` has, and a mask if there   none
                is one
    =========== ============================================ ==================================================

    With ``do_sample=True`` there is an input ``seed``, an int. A request whose texts are longer than the largest bucket
    is refused.

    Args:
        model: An encoder-decoder model as ``docs/how-to/encoder-decoder.md`` says, in eval mode. Its
            weights are used as they are, and numbers of a request have their dtype.
        tokenizer: Its tokenizer.
        processor: Its processor, feature extractor or image processor.
        max_new_tokens: How many tokens are added at most; by default as its generation config says.
        batch: Sizes of a batch that are compiled.
        tokens: Lengths of a text that are compiled; by default powers of two from 16 to 512 that the model can count.
            Of Speech2Text and Moonshine the one length of recordings, in frames or samples.
        check_every: How many tokens are made between two looks at whether all sequences have ended; the result does
            not depend on it.
        name: The pipeline's name; by default the model's type.
        example: What its processor gives for one row, where the config does not say how large what is read is.
        items: How many pictures of all texts together are compiled for, where there are some among their tokens.
        options: Options of ``generate()``, over those of the model's generation config: ``do_sample``,
            ``temperature``, ``top_k``, ``top_p``, ``min_length``, ``suppress_tokens``, ``language`` and the like; and
            ``decoder_input_ids``, one row that all sequences begin with, such as the task of Donut.

    Raises:
        GraphError: The model's family or an option is not supported; the message says which are.
    """
    # Who the model is, then what its options say, then how its forward is called, found on fake tensors.
    check_prepared(tokenizer, processor)
    model = unwrap(model)
    family = family_of(model, example)
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    beginning = None if family.speech else options.pop("decoder_input_ids", None)
    options = read_options(model, family, options)
    prompt = family.prompt(options)
    if beginning is not None:
        options["decoder_start_token_id"], *rest = _beginning(model, options, beginning)
        prompt = tuple(rest)
    new = length_of(model, family, options, 1 + len(prompt))
    rules = read_rules({**options, "max_new_tokens": new}, prompt, speech=family.speech)
    _check_length(positions_of(model.get_decoder()), rules)
    # Numbers are drawn by the place of a row, and results are as wide as the longest one: rows are a batch only where
    # host stages on both sides of the networks see all of them.
    rows = Dim("batch", buckets=batch, batch=_is_prepared(family, tokenizer, processor))
    length = _length(model, family, tokens)
    specs = family.inputs(model, rows, length)
    if "input_ids" in specs:
        specs["input_ids"] = dataclasses.replace(specs["input_ids"], pad=rules.pad)
    kind = read_pictures(model, family, example, is_prepared=bool(tokenizer or processor))
    # Embeddings that pictures are put into are those of the model and not of its encoder: they are compared later.
    start = None if family.speech or kind is not None else rules.start
    trial = try_model(model, specs, rows, length, rules.steps, start=start)
    rules.check(trial.vocabulary)

    pipeline = Pipeline(name or model.config.model_type)
    reader = tokenizer or getattr(processor, "tokenizer", None)
    values = _inputs(pipeline, family, specs, reader, processor)
    encodings = (
        pipeline.add("encode", trial.encoder, inputs=tuple(specs))(*values.values())
        if kind is None
        else PictureEncoder(model, kind, trial, rules.start).draw(
            pipeline, values, rows, Dim("items", buckets=items)
        )
    )
    readings = {name: values[name] if name in values else encodings[name] for name in trial.readings}
    decoding = Decoding(trial, rules, rows, length)
    initial_values = decoding.begin(pipeline, readings)
    sequences = _draw_loop(pipeline, decoding, initial_values, next(iter(values.values())), check_every)
    finish = pipeline.add("finish", FinishSequences(rules, rows, bare=family.speech), device="host")
    ids = finish(sequences)
    pipeline.output("tokens", ids)
    if reader is not None:
        read = pipeline.add("detokenise", Detokenise(reader), device="host")
        pipeline.output("text", read(ids))
    return pipeline


def _draw_loop(
    pipeline: Pipeline, decoding: Decoding, initial_values: Mapping[str, Any], request: Any, check_every: int
) -> Any:
    """Draws the loop, with the numbers that it chooses by; returns the sequences."""
    numbers = None
    if decoding.rules.sampling is not None:
        draw = pipeline.add("numbers", Numbers(decoding.rules.steps, decoding.batch), device="host")
        numbers = draw(pipeline.input("seed", int), request)
    return decoding.draw(pipeline, "decode", initial_values, numbers, check_every)


def _beginning(model: Any, options: Mapping[str, Any], ids: Any) -> list[int]:
    """Returns the tokens that every sequence begins with, as ``generate()`` reads ``decoder_input_ids``."""
    tokens = torch.as_tensor(ids)
    if tokens.dim() != 2 or tokens.shape[0] != 1 or not tokens.shape[1] or tokens.is_floating_point():
        raise GraphError(
            f"decoder_input_ids is one row of ids that all sequences begin with, such as [[5, 6]], not {ids!r:.80}.",
            option="decoder_input_ids",
        )
    row: list[int] = tokens[0].tolist()
    # Donut begins with its task alone; all others with their start, whether it was given or not.
    start = options.get("decoder_start_token_id")
    start = options.get("bos_token_id") if start is None else start
    is_donut = "donut" in getattr(getattr(model.config, "encoder", None), "model_type", "")
    return row if is_donut or row[0] == start or not isinstance(start, int) else [start, *row]


def _check_length(positions: int | None, rules: Rules) -> None:
    if positions is not None and rules.steps > positions:
        raise GraphError(
            f"The decoder counts {positions} tokens, but max_new_tokens={rules.new} asks for {rules.steps} with its "
            "prompt.",
            option="max_new_tokens",
        )


def _is_prepared(family: ModelFamily, tokenizer: Any, processor: Any) -> bool:
    """Tells whether a host stage decides how many rows there are, and the stages around the loop see all of them."""
    if family.modality == "text":
        return tokenizer is not None or getattr(processor, "tokenizer", None) is not None
    return processor is not None


def _length(model: Any, family: ModelFamily, sizes: Iterable[int] | None) -> Dim | int:
    """Returns the dim of what the encoder reads; 0 where its length is fixed."""
    if not family.has_length:
        if sizes is not None:
            raise GraphError("tokens= are lengths of texts; this model reads none.", option="tokens")
        return 0
    if family.modality == "audio":
        lengths = list(sizes or ())
        if len(lengths) != 1:
            raise GraphError(
                f"{type(model).__name__} reads recordings whose end has an influence on the rest, so nothing is added "
                f"to them: give their one length, tokens=(length,), in place of {sizes!r}.",
                option="tokens",
            )
        return int(lengths[0])
    limit = positions_of(model.get_encoder())
    most = limit if limit is not None else max(TOKENS)
    buckets = [size for size in TOKENS if size <= most] or [most] if sizes is None else list(sizes)
    dim = Dim("tokens", buckets=buckets)
    if limit is not None and dim.buckets and dim.buckets[-1] > limit:
        raise GraphError(
            f"The encoder counts {limit} tokens, so tokens= cannot go up to {dim.buckets[-1]}.",
            option="tokens",
        )
    return dim


def _inputs(
    pipeline: Pipeline, family: ModelFamily, specs: Mapping[str, TensorSpec], tokenizer: Any, processor: Any
) -> dict[str, Any]:
    """Draws the inputs of a request, and what makes of them what the encoder reads; returns that by name."""
    if family.modality == "text":
        if tokenizer is None:
            return {name: pipeline.input(name, spec) for name, spec in specs.items()}
        rows, tokens, pad = (*specs["input_ids"].dims, specs["input_ids"].pad)
        texts = Tokenise(tokenizer, cast("Dim", rows), cast("Dim", tokens), cast("int", pad))
        ids, mask = pipeline.add("tokenise", texts, device="host")(pipeline.input("text", list))
        return {"input_ids": ids, "attention_mask": mask}
    if family.has_length and processor is not None:
        raise GraphError(
            "Recordings of any length are not prepared for this model; leave out processor=, and give what it gives.",
            option="processor",
        )
    if family.has_length or processor is None:
        return {name: pipeline.input(name, spec) for name, spec in specs.items()}
    ((name, spec),) = specs.items()
    is_audio = family.modality == "audio"
    preparer = getattr(processor, "feature_extractor" if is_audio else "image_processor", processor)
    stage = Extract(preparer, spec) if is_audio else Process(preparer, spec)
    items = pipeline.input("audio" if is_audio else "image", list)
    return {name: pipeline.add("extract" if is_audio else "process", stage, device="host")(items)}

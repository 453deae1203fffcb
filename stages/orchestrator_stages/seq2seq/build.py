"""Turn a loaded encoder-decoder model of transformers into a pipeline.

    text -> tokenise -> encode -> begin -> decode: decode, choose, decode, choose, ... -> finish -> detokenise -> text

The encoder runs once. ``begin`` runs what sequences begin with: it lays down what every layer of the decoder reads of
the encoder, once, and makes a cache. The loop ``decode`` carries the cache, the last token and which sequences have
ended; they stay on the device. Only whether all have ended is read by the host in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, cast

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.generation.arguments import TOKENS, ImportArguments
from orchestrator_stages.seq2seq.decoding import Decoder, Decoding
from orchestrator_stages.seq2seq.families import ModelFamily, family_of, positions_of
from orchestrator_stages.seq2seq.host import Detokenise, FinishSequences, FinishSpeech, Tokenise
from orchestrator_stages.seq2seq.options import read_beginning
from orchestrator_stages.seq2seq.pictures import PictureEncoder, read_pictures
from orchestrator_stages.seq2seq.prepare import Extract, Process
from orchestrator_stages.seq2seq.trial import try_model

__all__ = ["draw_encoder_decoder"]


def draw_encoder_decoder(arguments: ImportArguments) -> Pipeline:
    """Draws a model with an encoder and a decoder.

    Args:
        arguments: What `from_transformers` was called with.

    Raises:
        GraphError: The model's family or an option is not supported; the message says which are.
    """
    # Who the model is, then what its options say, then how its forward is called, found on fake tensors.
    model, processor = arguments.model, arguments.processor
    for option, value in (("messages", arguments.messages or None), ("context", arguments.context)):
        if value is not None:
            raise GraphError(
                f"{option}={value!r} is for models that go on with a prompt; one with an encoder and a decoder has no "
                "conversation to go on with.",
                option=option,
            )
    family = family_of(model, arguments.example)
    tokenizer = arguments.tokenizer or getattr(processor, "tokenizer", None)
    beginning, selection = read_beginning(model, family, arguments.options, tokenizer)
    slots = len(beginning.ids) - 1 + selection.new
    _check_length(positions_of(model.get_decoder()), selection.new, slots)
    # Results are as wide as the longest one: rows are a batch only where host stages on both sides of the networks see
    # all of them, and nothing between them does.
    is_prepared = tokenizer is not None if family.modality == "text" else processor is not None
    rows = Dim("batch", buckets=arguments.batch, batch=is_prepared and selection.is_by_row)
    length = _length(model, family, arguments.tokens)
    specs = family.inputs(model, rows, length)
    if "input_ids" in specs:
        specs["input_ids"] = dataclasses.replace(specs["input_ids"], pad=selection.pad)
    beginning.check(model.get_output_embeddings().weight.shape[0])
    kind = read_pictures(model, family, arguments.example, is_prepared=bool(tokenizer or processor))
    # Embeddings that pictures are put into are those of the model and not of its encoder: they are compared later.
    start = beginning.ids[0]
    compared = None if family.speech or kind is not None else start
    trial = try_model(model, specs, rows, length, slots, start=compared)

    # The encoder runs once, then the loop of the decoder.
    pipeline = Pipeline(arguments.name)
    values = _inputs(pipeline, family, specs, tokenizer, processor)
    if kind is None:
        encodings = pipeline.add("encode", trial.encoder, inputs=tuple(specs))(*values.values())
    else:
        items = Dim("items", buckets=arguments.items)
        encodings = PictureEncoder(model, kind, trial, cast("int", start)).draw(pipeline, values, rows, items)
    values |= {name: encodings[name] for name in trial.readings if name not in values}
    decoder = Decoder(trial, beginning, selection, rows, length)
    decoding = Decoding(decoder, rows, trial.vocabulary, length if "input_ids" in specs else None)
    choices = decoding.draw(pipeline, values, arguments.check_every, arguments.cache)
    finish = (
        FinishSpeech(selection, rows, beginning)
        if family.speech
        else FinishSequences(selection, rows, [token for token in beginning.ids if token is not None])
    )
    ids, _ = pipeline.add("finish", finish, device="host")(*choices)
    pipeline.output("tokens", ids)
    if tokenizer is not None:
        read = pipeline.add("detokenise", Detokenise(tokenizer), device="host")
        pipeline.output("text", read(ids))
    return pipeline


def _check_length(positions: int | None, new: int, slots: int) -> None:
    if positions is not None and slots > positions:
        raise GraphError(
            f"The decoder counts {positions} tokens, but max_new_tokens={new} asks for {slots} with its prompt.",
            option="max_new_tokens",
        )


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

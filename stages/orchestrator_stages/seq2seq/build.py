"""Turn a loaded encoder-decoder model of transformers into a pipeline.

    text -> tokenise -> encode -> begin -> decode: step, step, ... -> finish -> detokenise -> text

The encoder runs once. ``begin`` makes the keys and values that every layer of the decoder reads of it, once, and an
empty cache. The loop ``decode`` carries the cache, the last token and which sequences have ended; they stay on the
device. Only whether all have ended is read by the host in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.origin import unwrap
from orchestrator_stages.seq2seq.checks import check_prepared
from orchestrator_stages.seq2seq.families import ModelFamily, dtype_of, family_of
from orchestrator_stages.seq2seq.host import Detokenise, FinishSequences, Numbers, Tokenise
from orchestrator_stages.seq2seq.loop import Decoding
from orchestrator_stages.seq2seq.options import length_of, read_options
from orchestrator_stages.seq2seq.prepare import Extract, Process
from orchestrator_stages.seq2seq.rules import read_rules

__all__ = ["from_transformers"]

BATCH = (1, 2, 4, 8)
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
    image       ``pixel_values``                             ``image``, a list of pictures
                ``[batch, channels, height, width]``
    =========== ============================================ ==================================================

    With ``do_sample=True`` there is an input ``seed``, an int. A request whose texts are longer than the largest bucket
    is refused.

    Args:
        model: A model of the T5, BART (Marian, mBART, Pegasus) or Whisper family, or a ``VisionEncoderDecoderModel``
            with a TrOCR, BART, mBART or GPT-2 decoder, in eval mode. Its weights are used as they are.
        tokenizer: Its tokenizer.
        processor: Its processor, feature extractor or image processor.
        max_new_tokens: How many tokens are added at most; by default as its generation config says.
        batch: Sizes of a batch that are compiled.
        tokens: Lengths of a text that are compiled; by default powers of two from 16 to 512 that the model can count.
        check_every: How many tokens are made between two looks at whether all sequences have ended; the result does
            not depend on it.
        name: The pipeline's name; by default the model's type.
        options: Options of ``generate()``, over those of the model's generation config: ``do_sample``,
            ``temperature``, ``top_k``, ``top_p``, ``min_length``, ``suppress_tokens``, ``language`` and the like.

    Raises:
        GraphError: The model's family or an option is not supported; the message says which are.
    """
    check_prepared(tokenizer, processor)
    model = unwrap(model)
    family = family_of(model)
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    options = read_options(model, family, options)
    speech = family.modality == "audio"
    prompt = family.prompt(options)
    new = length_of(model, family, options, 1 + len(prompt))
    rules = read_rules({**options, "max_new_tokens": new}, prompt, speech=speech)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rules.check(vocabulary)
    parts = family.decoder(model, rules.steps)
    if parts.positions is not None and rules.steps > parts.positions:
        raise GraphError(
            f"The decoder counts {parts.positions} tokens, but max_new_tokens={rules.new} asks for {rules.steps} with "
            f"its prompt.",
            option="max_new_tokens",
        )
    # Numbers are drawn by the place of a row, and results are as wide as the longest one: rows are a batch only where
    # host stages on both sides of the networks see all of them.
    rows = Dim("batch", buckets=batch, batch=_is_prepared(family, tokenizer, processor))
    pipeline = Pipeline(name or model.config.model_type)
    source = _EncoderInput(model, family, tokenizer, processor, rows, rules.pad)
    encoding, mask, length = source.draw(pipeline, tokens)
    decoding = Decoding(parts, rules, vocabulary, dtype_of(model), rows, length)
    initial_values = pipeline.add("begin", decoding.begin())(encoding, *mask)
    numbers = None
    if rules.sampling is not None:
        draw = pipeline.add("numbers", Numbers(rules.steps, rows), device="host")
        numbers = draw(pipeline.input("seed", int), source.like)
    sequences = decoding.draw(pipeline, "decode", initial_values, numbers, check_every)
    finish = pipeline.add("finish", FinishSequences(rules, rows, bare=speech), device="host")
    ids = finish(sequences)
    pipeline.output("tokens", ids)
    if source.tokenizer is not None:
        read = pipeline.add("detokenise", Detokenise(source.tokenizer), device="host")
        pipeline.output("text", read(ids))
    return pipeline


def _is_prepared(family: ModelFamily, tokenizer: Any, processor: Any) -> bool:
    """Tells whether a host stage decides how many rows there are, and the stages around the loop see all of them."""
    if family.modality == "text":
        return tokenizer is not None or getattr(processor, "tokenizer", None) is not None
    return processor is not None


class _EncoderInput:
    """What the encoder reads, and where it comes from.

    Attributes:
        like: A value that has the batch in front, for whom only its size matters.
        tokenizer: The tokenizer, if there is one.
    """

    def __init__(
        self, model: Any, family: ModelFamily, tokenizer: Any, processor: Any, batch: Dim, pad: int
    ) -> None:
        self.model = model
        self.family = family
        self.tokenizer = tokenizer if tokenizer is not None else getattr(processor, "tokenizer", None)
        self.processor = processor
        self.batch = batch
        self.pad = pad
        self.like: Any = None

    def draw(
        self, pipeline: Pipeline, tokens: Iterable[int] | None
    ) -> tuple[Any, tuple[Any, ...], Dim | int]:
        """Draws inputs and encoder; returns what was encoded, its mask if it has one, and its length."""
        encode = pipeline.add("encode", self.family.encoder(self.model))
        if self.family.modality == "text":
            length = self._tokens(tokens)
            ids, mask = self._text(pipeline, length)
            self.like = ids
            return encode(ids, mask), (mask,), length
        if tokens is not None:
            raise GraphError("tokens= are lengths of texts; this model reads none.", option="tokens")
        spec = self.family.input(self.model, self.batch)
        self.like = self._preprocess(pipeline, spec)
        return encode(self.like), (), _encoded_length(self.family.encoder(self.model), spec)

    def _tokens(self, sizes: Iterable[int] | None) -> Dim:
        limit = self.family.positions(self.model)
        most = limit if limit is not None else max(TOKENS)
        buckets = [size for size in TOKENS if size <= most] or [most] if sizes is None else list(sizes)
        dim = Dim("tokens", buckets=buckets)
        if limit is not None and dim.buckets and dim.buckets[-1] > limit:
            raise GraphError(
                f"The encoder counts {limit} tokens, so tokens= cannot go up to {dim.buckets[-1]}.",
                option="tokens",
            )
        return dim

    def _text(self, pipeline: Pipeline, length: Dim) -> tuple[Any, Any]:
        if self.tokenizer is not None:
            stage = Tokenise(self.tokenizer, self.batch, length, self.pad)
            ids, mask = pipeline.add("tokenise", stage, device="host")(pipeline.input("text", list))
            return ids, mask
        dims = (self.batch, length)
        return (
            pipeline.input("input_ids", TensorSpec(dims, torch.int64, pad=self.pad)),
            pipeline.input("attention_mask", TensorSpec(dims, torch.int64, pad=0)),
        )

    def _preprocess(self, pipeline: Pipeline, spec: TensorSpec) -> Any:
        audio = self.family.modality == "audio"
        part = "feature_extractor" if audio else "image_processor"
        preparer = getattr(self.processor, part, self.processor)
        if preparer is None:
            return pipeline.input("input_features" if audio else "pixel_values", spec)
        stage = Extract(preparer, spec) if audio else Process(preparer, spec)
        items = pipeline.input("audio" if audio else "image", list)
        return pipeline.add("extract" if audio else "process", stage, device="host")(items)


def _encoded_length(encoder: nn.Module, spec: TensorSpec) -> int:
    """How many tokens an encoder gives, found without computing anything."""
    state = {
        name: value.to("meta") for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]
    }
    example = torch.empty(spec.shape({"batch": 1}), dtype=spec.dtype, device="meta")
    with torch.no_grad():
        encoding: Tensor = torch.func.functional_call(encoder, state, (example,))
    return encoding.shape[1]

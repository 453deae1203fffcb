"""Turn a loaded model of transformers that generates into a pipeline.

    text -> tokenise -> prefill -> choose -> decode: decode, choose, decode, choose, ... -> finish -> text

The prompt runs once, in a bucket of its length, and lays down its keys and values in a cache. The loop ``decode``
carries the cache, the last token and which rows have ended; they stay on the device. Only whether all have ended is
read by the host in between.

A cache that may become long is read in buckets of its length: there is a loop for each, ``decode-256``, ``decode-512``
and so on, over one buffer. Each runs while what is filled fits into its bucket, and not at all if it never does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator import Dim, GraphError, Pipeline
from orchestrator_stages.generation.arguments import BATCH, ITEMS, TOKENS, ImportArguments
from orchestrator_stages.generation.chat import check_template
from orchestrator_stages.generation.checks import check_generates
from orchestrator_stages.generation.continuation import Continuation, ContinuationParts
from orchestrator_stages.generation.conversation import Conversation, check_context
from orchestrator_stages.generation.families import family_of
from orchestrator_stages.generation.item_continuation import ItemContinuation
from orchestrator_stages.generation.item_conversation import ItemConversation
from orchestrator_stages.generation.items import (
    read_item,
    show_item,
)
from orchestrator_stages.generation.options import prompt_selection
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.origin import unwrap
from orchestrator_stages.seq2seq.build import draw_encoder_decoder

__all__ = ["from_transformers"]


def from_transformers(
    model: Any,
    tokenizer: Any = None,
    processor: Any = None,
    *,
    max_new_tokens: int | None = None,
    batch: Iterable[int] = BATCH,
    tokens: Iterable[int] | None = None,
    cache: Iterable[int] | None = None,
    check_every: int = 1,
    name: str | None = None,
    messages: bool = False,
    example: Mapping[str, Any] | None = None,
    items: Iterable[int] = ITEMS,
    context: int | None = None,
    **options: Any,
) -> Pipeline:
    """Builds a pipeline that gives what ``model.generate()`` gives.

    Its output ``tokens`` ``[batch, length]``, int64, equals what ``generate()`` returns; with a tokenizer there is also
    ``text``, a list of strings: of a model that goes on with its prompt, what was added. Its input depends on the model
    and on what prepares it:

    =========== ============================================ ==================================================
    model       without tokenizer or processor               with one
    =========== ============================================ ==================================================
    text        ``input_ids``, ``attention_mask``            ``text``, a list of strings
                ``[batch, tokens]``, int64, padded on
                either side
    Whisper     ``input_features`` ``[batch, mels, frames]`` ``audio``, a list of waveforms at 16 kHz
    Speech2Text ``input_features``                           none
                ``[batch, length, mels]``, ``attention_mask``
                ``[batch, length]``
    Moonshine   ``input_values``, ``attention_mask``         none
                ``[batch, length]``
    image       ``pixel_values``                             ``image``, a list of pictures
                ``[batch, channels, height, width]``
    others with what ``example=`` has, and a mask if there   none
    an encoder  is one
    text with   as its processor gives them: ``input_ids``,  ``text``, with the processor's mark for each picture
    pictures    ``attention_mask`` and the numbers of all    or recording, and ``image`` or ``audio``, a list of
    or sound    pictures or recordings, such as              all of them in the order of their marks
                ``pixel_values``
    =========== ============================================ ==================================================

    With ``messages=True`` there is an input ``messages`` in place of ``text``: a conversation, or a list of
    conversations, read by the chat template of the tokenizer or processor; see
    :class:`~orchestrator_stages.generation.chat.ChatPrompt`.

    With ``do_sample=True`` there is an input ``seed``, an int. A request whose texts are longer than the largest bucket
    is refused. Padding of prompts is moved to the left before a model goes on with them, where ``generate()`` expects
    it; ``tokens`` begins with the prompts as they came.

    Args:
        model: A loaded model of transformers that generates, in eval mode. Its weights are used as they are.
        tokenizer: Its tokenizer.
        processor: Its processor, feature extractor or image processor.
        max_new_tokens: How many tokens are added at most; by default as its generation config says.
        batch: Sizes of a batch that are compiled.
        tokens: Lengths of a text that are compiled; by default powers of two from 16 to 512 that the model can count.
            Of Speech2Text and Moonshine the one length of recordings, in frames or samples.
        cache: How many tokens of the cache are read: each new token reads the fewest of these that hold all before it.
            The longest prompt with what is added is always one. By default doublings from 256 on. On the CPU what is
            filled is read, and no more, whatever is said here; of a layer with a sliding window, its window.
        check_every: How many tokens are made between two looks at whether all sequences have ended; the result does
            not depend on it. Where the cache is read in several lengths, it is looked at for each token.
        name: The pipeline's name; by default the model's type.
        messages: Take conversations, not texts.
        example: Of a model whose prompts have pictures or recordings among their tokens, what its processor gives for
            one of them and a prompt; by default a picture of the size that the config says. Numbers are inputs of the
            pipeline, integers (a grid of patches, sizes) are the same for each picture.
        items: How many pictures or recordings of all prompts together are compiled for.
        context: How many tokens the cache of a conversation holds, prompts and answers of all turns with their padding:
            the cache is an input and an output then, and a request gives what is new in its turn, be it tokens, texts
            or messages; what was said before is the input and output ``history``; see
            :func:`~orchestrator_stages.generation.conversation.begin_conversation`. None: a request is the whole.
        options: Options of ``generate()``, over those of the model's generation config: ``do_sample``,
            ``temperature``, ``num_beams``, ``no_repeat_ngram_size``, ``suppress_tokens``, ``language`` and so on; of a
            model with a decoder behind an encoder ``decoder_input_ids``, one row that all sequences begin with,
            such as the task of Donut.

    Raises:
        GraphError: The model's family or an option is not supported, and the message says which are; or there is no
            chat template for messages.
    """
    bare = unwrap(model)
    config = getattr(bare, "config", None)
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    arguments = ImportArguments(
        bare,
        tokenizer,
        processor,
        options,
        batch,
        tokens,
        cache,
        check_every,
        name or str(getattr(config, "model_type", "")),
        messages,
        example,
        items,
        context,
    )
    if config is None or getattr(config, "is_encoder_decoder", False) or hasattr(config, "decoder"):
        if config is not None:
            arguments = dataclasses.replace(arguments, example=_example(bare, None, example))
        return draw_encoder_decoder(arguments)
    return _draw_continuation(arguments)


def _draw_continuation(arguments: ImportArguments) -> Pipeline:
    """Draws a model that goes on with its prompt."""
    model, processor = arguments.model, arguments.processor
    check_generates(model)
    if arguments.messages:
        check_template(arguments.chat)
    selection = prompt_selection(model, arguments.options, arguments.reader)
    prompts = _prompt_dim(model, arguments.tokens, selection)
    # Conversations come with pictures only where there is a processor that reads them.
    reads_items = not arguments.messages or processor is not None
    kind = read_item(model, _example(model, processor, arguments.example)) if reads_items else None
    if selection.is_guided and arguments.context is not None:
        raise GraphError(
            "guidance_scale runs the model a second time, over what begins with each request, which does not go with "
            "context=; leave one of them out.",
            option="guidance_scale",
        )
    # Results are as wide as the longest one: rows are a batch only where host stages on both sides of the networks see
    # all of them, and nothing between them does.
    reader = arguments.reader if arguments.messages or kind is not None else arguments.tokenizer
    is_prepared = reader is not None if kind is None else processor is not None
    # The cache of a conversation holds its rows together.
    is_batch = is_prepared and selection.is_by_row and arguments.context is None
    rows = Dim("batch", buckets=arguments.batch, batch=is_batch)
    parts = ContinuationParts(
        model,
        selection,
        rows,
        prompts,
        reader,
        arguments.chat,
        arguments.context,
        processor,
        kind,
        Dim("items", buckets=arguments.items) if kind is not None else None,
    )
    if arguments.context is None:
        draw_class = Continuation if kind is None else ItemContinuation
    else:
        check_context(arguments.context)
        draw_class = Conversation if kind is None else ItemConversation
    return draw_class(parts).draw(arguments.name, arguments.cache, arguments.check_every)


def _example(model: Any, processor: Any, example: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What the processor gives for one item: as the user says, else as the model's family does, else as it does."""
    make_example = family_of(model).example
    if example is None and make_example is not None:
        return make_example(model)
    return show_item(processor, model) if example is None and processor is not None else example


def _prompt_dim(model: Any, sizes: Iterable[int] | None, selection: Selection) -> Dim:
    """The dim of the prompt's tokens.

    Raises:
        GraphError: The model cannot count that many, and those that are added.
    """
    # Without a length of the whole, any prompt leaves room for all new tokens; with one, for one token at least.
    new, longest = selection.new, selection.longest
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if longest is not None:
        if limit is not None and longest > limit:
            raise GraphError(
                f"The model counts {limit} tokens, so max_length= cannot be {longest}.", option="max_length"
            )
        every = sorted({size for size in TOKENS if size < longest} | {min(longest - 1, max(TOKENS))})
        buckets = every if sizes is None else list(sizes)
        if max(buckets, default=0) >= longest:
            raise GraphError(
                f"max_length={longest} counts the prompt, so tokens= cannot go up to {max(buckets)}.",
                option="tokens",
            )
        return Dim("tokens", buckets=buckets)
    most = max(TOKENS) if limit is None else int(limit) - new
    buckets = [size for size in TOKENS if size <= most] or [most] if sizes is None else list(sizes)
    if limit is not None and (most < 1 or max(buckets, default=0) > most):
        raise GraphError(
            f"The model counts {limit} tokens, so with max_new_tokens={new} tokens= cannot go up to "
            f"{max(buckets, default=0)}.",
            option="tokens",
        )
    return Dim("tokens", buckets=buckets)

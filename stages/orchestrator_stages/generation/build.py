"""Turn a loaded model of transformers that generates into a pipeline.

    text -> tokenise -> prefill -> choose -> decode: decode, choose, decode, choose, ... -> finish -> text

The prompt runs once, in a bucket of its length, and lays down its keys and values in a cache. The loop ``decode``
carries the cache, the last token and which rows have ended; they stay on the device. Only whether all have ended is
read by the host in between.

A cache that may become long is read in buckets of its length: there is a loop for each, ``decode-256``, ``decode-512``
and so on, over one buffer. Each runs while what is filled fits into its bucket, and not at all if it never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.generation.beams import BeamStep, beam_specs
from orchestrator_stages.generation.chat import ChatPrompt, PictureChatPrompt, check_template
from orchestrator_stages.generation.checks import check_generates
from orchestrator_stages.generation.choose import BeginTokens, JoinPrompt, NextToken, WithinReach, token_specs
from orchestrator_stages.generation.encoder import ItemEncoder
from orchestrator_stages.generation.families import family_of
from orchestrator_stages.generation.follow import AXES, follow
from orchestrator_stages.generation.generator import Generator, ShortDecode
from orchestrator_stages.generation.items import (
    ArrangeItems,
    ItemKind,
    ReadPrompts,
    RopePositions,
    read_item,
    show_item,
)
from orchestrator_stages.generation.lanes import SpreadState, lane_specs
from orchestrator_stages.generation.options import prompt_selection
from orchestrator_stages.generation.processors import HostProcessors
from orchestrator_stages.generation.sampling import Noise, SeedState, random_spec
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.origin import unwrap
from orchestrator_stages.seq2seq import build as seq2seq
from orchestrator_stages.seq2seq.build import BATCH, TOKENS
from orchestrator_stages.seq2seq.checks import check_prepared
from orchestrator_stages.seq2seq.host import Detokenise, Tokenise

__all__ = ["from_transformers"]

READ = 256
"""Below so many tokens, how much of the cache is read makes no difference to speak of."""

ITEMS = (1, 2, 4, 8)
"""How many pictures or recordings a request may have."""
BUCKET = -1
"""What fills a prompt up to its bucket: less than any token."""


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
    image       ``pixel_values``                             ``image``, a list of pictures
                ``[batch, channels, height, width]``
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
        cache: How many tokens of the cache are read: each new token reads the fewest of these that hold all before it.
            The longest prompt with what is added is always one. By default doublings from 256 on. A model that has an
            encoder reads all.
        check_every: How many tokens are made between two looks at whether all sequences have ended; the result does
            not depend on it. Where the cache is read in several lengths, it is looked at for each token.
        name: The pipeline's name; by default the model's type.
        messages: Take conversations, not texts.
        example: Of a model whose prompts have pictures or recordings among their tokens, what its processor gives for
            one of them and a prompt; by default a picture of the size that the config says. Numbers are inputs of the
            pipeline, integers (a grid of patches, sizes) are the same for each picture.
        items: How many pictures or recordings of all prompts together are compiled for.
        options: Options of ``generate()``, over those of the model's generation config: ``do_sample``,
            ``temperature``, ``top_k``, ``top_p``, ``min_length``, ``suppress_tokens``, ``language`` and the like.

    Raises:
        GraphError: The model's family or an option is not supported, and the message says which are; or there is no
            chat template for messages.
    """
    bare = unwrap(model)
    config = getattr(bare, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False) or hasattr(config, "decoder"):
        if messages:
            raise GraphError(
                "messages=True is for models that go on with a prompt; one with an encoder and a decoder has no "
                "conversation to go on with.",
                option="messages",
            )
        return seq2seq.from_transformers(
            model,
            tokenizer,
            processor,
            max_new_tokens=max_new_tokens,
            batch=batch,
            tokens=tokens,
            check_every=check_every,
            name=name,
            **options,
        )
    check_prepared(tokenizer, processor)
    check_generates(bare)
    if messages:
        check_template(processor or tokenizer)
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    selection = prompt_selection(bare, options)
    # Numbers are drawn for all rows one after another, and results are as wide as the longest one: rows are a batch
    # only where host stages on both sides of the networks see all of them, and none between them.
    is_prepared = (tokenizer is not None or messages) and not selection.is_sampling
    rows = Dim("batch", buckets=batch, batch=is_prepared)
    chat = processor or tokenizer if messages else None
    reader = tokenizer or getattr(chat, "tokenizer", chat)
    prompts = _prompt_dim(bare, tokens, selection.new)
    # Conversations come with pictures only where there is a processor that reads them.
    reads_items = not messages or processor is not None
    kind = read_item(bare, _example(bare, processor, example)) if reads_items else None
    if kind is None:
        text_only = _Continuation(bare, selection, rows, prompts, reader, chat)
        return text_only.draw(name or config.model_type, cache, check_every)
    name = name or config.model_type
    rows, every = Dim("batch", buckets=batch, batch=processor is not None), Dim("items", buckets=items)
    reader = tokenizer or getattr(processor, "tokenizer", None)
    preparer = processor if messages else None
    follower = _ItemContinuation(bare, selection, rows, prompts, reader, preparer, processor, kind, every)
    return follower.draw(name, cache, check_every)


def _example(model: Any, processor: Any, example: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What the processor gives for one item: as the user says, else as the model's family does, else as it does."""
    known = family_of(model).example
    if example is None and known is not None:
        return known(model)
    return show_item(processor, model) if example is None and processor is not None else example


def _prompt_dim(model: Any, sizes: Iterable[int] | None, new: int) -> Dim:
    """The dim of the prompt's tokens.

    Raises:
        GraphError: The model cannot count that many, and those that are added.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    most = max(TOKENS) if limit is None else int(limit) - new
    buckets = [size for size in TOKENS if size <= most] or [most] if sizes is None else list(sizes)
    if limit is not None and (most < 1 or max(buckets, default=0) > most):
        raise GraphError(
            f"The model counts {limit} tokens, so with max_new_tokens={new} tokens= cannot go up to "
            f"{max(buckets, default=0)}.",
            option="tokens",
        )
    return Dim("tokens", buckets=buckets)


def _reaches(sizes: Iterable[int] | None, prompts: Dim, new: int) -> list[int]:
    """How much of the cache is read, loop by loop; the last is all of it.

    Raises:
        GraphError: A size is none.
    """
    longest = prompts.buckets[-1] + new
    if sizes is None:
        sizes = (READ << power for power in range((longest // READ).bit_length()))
    sizes = list(sizes)
    wrong = [size for size in sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
    if wrong:
        raise GraphError(f"cache= has lengths, ints of at least 1, not {wrong[0]!r}.", option="cache")
    # The first token after the prompt is read by the first loop at the earliest, in the slot behind it.
    return [*sorted({size for size in sizes if prompts.buckets[0] < size < longest}), longest]


class _Continuation:
    """A model that goes on with its prompt, and what its pipeline is drawn of."""

    def __init__(
        self, model: Any, selection: Selection, rows: Dim, tokens: Dim, tokenizer: Any, chat: Any = None
    ) -> None:
        self.selection = selection
        self.rows = rows
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.chat = chat
        self.slots = tokens.buckets[-1] + selection.new
        self.model = model
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.generator = self._follow(self.vocabulary)
        self.processors = selection.follow(self.vocabulary)
        self.choose = (BeamStep if selection.has_beams else NextToken)(selection, self.processors)

    def _follow(self, vocabulary: int) -> Generator:
        """The model as functions of tensors."""
        return follow(self.model, self.slots, vocabulary).generator

    def _prefill(self, pipeline: Pipeline, ids: Any, mask: Any) -> Any:
        """Draws what runs the prompt, and returns what comes of it."""
        return pipeline.add("prefill", self.generator.prefill)(ids, mask)

    def draw(self, name: str, cache: Iterable[int] | None, check_every: int) -> Pipeline:
        """Draws the pipeline.

        Args:
            name: Its name.
            cache: How much of the cache may be read by itself; None: as usual.
            check_every: Iterations between two looks at what ends a loop; of several loops none may run too often, so
                each iteration is looked at.
        """
        # The prompt, and the first token after it; then loops for all others.
        pipeline = Pipeline(name)
        ids, mask = self._prompt(pipeline)
        begin = pipeline.add("begin", BeginTokens(self.selection, self.vocabulary))(ids, mask)
        prompt = self._prefill(pipeline, ids, mask)
        values = {port: begin[port] for port in ("filler", *self._choice_specs)} | {"ids": ids, "seen": mask}
        values["mask"] = prompt["mask"]
        if "before" in self._constants:
            values["before"] = begin["before"]
        if self.selection.is_sampling:
            values["random"] = pipeline.add("seed", SeedState(), device="host")(pipeline.input("seed", int))
        values |= self._choose(pipeline, prompt["logits"], values)
        names = tuple(self.generator.specs(self.rows))
        state = [prompt[port] for port in names]
        if self.selection.lanes > 1:
            dims = self.generator.batch_dims()
            spread = pipeline.add("spread", SpreadState(names, dims, self.selection.lanes), inputs=names)
            outputs = spread(*state)
            state = [outputs[port] for port in names]
        values |= dict(zip(names, state, strict=True))
        results = ("sequences", "beams") if self.selection.has_beams else ("chosen",)
        inputs = {port: values[port] for port in self._constants}
        carries = {port: values[port] for port in self._carries}
        # Beams, lanes and what the host does in between read all of the cache.
        is_plain = (
            self.selection.lanes == 1 and self.processors is not None and not self.selection.is_sampling
        )
        reaches = _reaches(cache, self.tokens, self.selection.new)
        if len(reaches) == 1 or not is_plain:
            body, most = self._body(), self.selection.new - 1
            chosen = pipeline.loop(
                "decode",
                body,
                carry=carries,
                inputs=inputs,
                until="done",
                max_steps=most,
                check_every=check_every,
                outputs=results,
            )
        else:
            chosen = self._chain(pipeline, {**carries, "done": values["done"]}, inputs, reaches)
        # What comes out is as generate() returns it, prompts first.
        finish = pipeline.add("finish", JoinPrompt(self.selection, self.rows), device="host")
        sequences, added = finish(ids, *(chosen if len(results) > 1 else (chosen,)))
        pipeline.output("tokens", sequences)
        if self.tokenizer is not None:
            read = pipeline.add("detokenise", Detokenise(self.tokenizer), device="host")
            pipeline.output("text", read(added))
        return pipeline

    def _chain(
        self,
        pipeline: Pipeline,
        carries: Mapping[str, Any],
        inputs: Mapping[str, Any],
        reaches: Sequence[int],
    ) -> Any:
        """Draws a loop for each bucket of the cache, one after the other; returns what was chosen."""
        # A loop begins where the one before it ended, or behind the prompt: it has no more slots of its own than that.
        start = self.tokens.buckets[0]
        for reach in reaches:
            enters = pipeline.add(f"within-{reach}", WithinReach(reach))(carries["done"], carries["position"])
            results = pipeline.loop(
                f"decode-{reach}",
                self._body(reach),
                carry=carries,
                inputs=inputs,
                until="leave",
                condition=enters,
                max_steps=min(reach - start, self.selection.new - 1),
                outputs=tuple(carries),
            )
            carries, start = {port: results[port] for port in carries}, reach
        return carries["chosen"]

    def _prompt(self, pipeline: Pipeline) -> tuple[Any, Any]:
        # What a bucket adds to a request is no padding of its own: it is below every id.
        if self.chat is not None:
            converse = ChatPrompt(self.chat, self.rows, self.tokens, BUCKET)
            ids, mask = pipeline.add("converse", converse, device="host")(pipeline.input("messages", list))
            return ids, mask
        if self.tokenizer is not None:
            stage = Tokenise(self.tokenizer, self.rows, self.tokens, BUCKET, side="left")
            ids, mask = pipeline.add("tokenise", stage, device="host")(pipeline.input("text", list))
            return ids, mask
        dims = (self.rows, self.tokens)
        return (
            pipeline.input("input_ids", TensorSpec(dims, torch.int64, pad=BUCKET)),
            pipeline.input("attention_mask", TensorSpec(dims, torch.int64, pad=0)),
        )

    @property
    def _choice_specs(self) -> dict[str, TensorSpec]:
        """What the choice of a token takes besides logits, and gives to the next one."""
        return (beam_specs if self.selection.has_beams else token_specs)(self.selection, self.rows)

    @property
    def _carries(self) -> Sequence[str]:
        """What one iteration gives to the next."""
        given = ("token", "origin") if self.selection.has_beams else ("token",)
        random = ("random",) if self.selection.is_sampling else ()
        return (*given, *self._choice_specs, *random, *self.generator.specs(self.rows))

    @property
    def _constants(self) -> dict[str, TensorSpec]:
        """What every iteration reads."""
        prompts = TensorSpec((self.rows, self.tokens), torch.int64)
        constants = {"mask": TensorSpec((self.rows, self.slots), torch.int64)}
        if self.selection.has_beams:
            constants["filler"] = TensorSpec((self.rows,), torch.bool)
        if self.selection.is_sampling or self.processors is None:
            constants["ids"] = prompts
        if self.processors is None:
            constants["seen"] = prompts
        elif self.processors.reads_ids:
            constants["before"] = prompts
        return constants

    def _choose(self, pipeline: Pipeline, logits: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Draws the choice of a token; returns what it gives by name.

        Args:
            pipeline: The pipeline, or the body of its loop.
            logits: The logits.
            values: What is there by name: what the choice takes, the prompts, ``random``, and ``is_full`` in a loop
                that reads a part of the cache.
        """
        # What only the host can do comes first: random numbers, and processors that no device follows.
        lanes = (self.selection.lanes,) if self.selection.lanes > 1 else ()
        shape = TensorSpec((self.rows, *lanes, self.vocabulary), pad=1)
        more: list[tuple[str, Any]] = []
        random = {}
        if self.processors is None:
            stage = HostProcessors(
                self.selection.processors,
                shape,
                self.selection.lanes,
                self.selection.before,
                is_normal=self.selection.has_beams,
            )
            process = pipeline.add("process", stage, device="host")
            logits = process(logits, *(values[port] for port in ("step", "chosen", "ids", "seen")))
        elif self.processors.reads_ids:
            more += [(port, values[port]) for port in ("before", "mask")]
        if self.selection.is_sampling:
            noise = pipeline.add("noise", Noise(shape), device="host")(values["random"], values["ids"])
            more.append(("noise", noise["noise"]))
            random = {"random": noise["random"]}
        leave: tuple[str, ...] = ()
        if "is_full" in values:
            more.append(("is_full", values["is_full"]))
            leave = ("leave",)
        names = (*(("filler",) if self.selection.has_beams else ()), *self._choice_specs)
        ports = ("logits", *names, *(name for name, _ in more))
        step = pipeline.add("choose", self.choose, inputs=ports)
        result = step(logits, *(values[name] for name in names), *(value for _, value in more))
        given = ("token", "origin", "done") if self.selection.has_beams else ("token", "done")
        return {port: result[port] for port in (*given, *leave, *self._choice_specs)} | random

    def _body(self, reach: int | None = None) -> Pipeline:
        """One iteration: a token in, the next one out.

        Args:
            reach: How many slots of the cache are read; None: all, and it is left when all rows are done.
        """
        body = Pipeline("next-token")
        lanes = self.selection.lanes
        given = TensorSpec((self.rows, lanes) if lanes > 1 else (self.rows,), torch.int64)
        state = lane_specs(self.generator.specs(self.rows), self.rows, lanes)
        specs = {"token": given, "origin": given, **self._constants, **state, **self._choice_specs}
        if self.selection.is_sampling:
            specs["random"] = random_spec()
        if reach is not None:
            specs["done"] = TensorSpec((1,), torch.bool)
        names = (*self._carries, *self._constants, *["done"] * (reach is not None))
        values: dict[str, Any] = {port: body.input(port, specs[port]) for port in names}
        has_beams = self.selection.has_beams
        several = self.generator.decode_beams if has_beams else self.generator.decode_lanes
        decode: Any = self.generator.decode if lanes == 1 else several
        if reach is not None:
            decode = ShortDecode(self.generator, reach)
        ports = ("token", *(("origin",) if has_beams else ()), "mask", *state)
        aliases = {} if has_beams else self.generator.aliases
        step = body.add("decode", decode, inputs=ports, aliases=aliases)
        token = step(*(values[port] for port in ports))
        full = {} if reach is None else {"is_full": token["full"]}
        following = self._choose(body, token["logits"], {**values, **full})
        for port in (*self._carries, "done", *["leave"] * (reach is not None)):
            body.output(port, token[port] if port in state else following[port])
        return body


class _ItemContinuation(_Continuation):
    """The same with pictures or recordings among the tokens of the prompt."""

    def __init__(
        self,
        model: Any,
        selection: Selection,
        rows: Dim,
        tokens: Dim,
        tokenizer: Any,
        chat: Any,
        processor: Any,
        kind: ItemKind,
        items: Dim,
    ) -> None:
        self.kind = kind
        self.processor = processor
        self._read: list[Any] = []
        self.items = items
        self.encoders: tuple[ItemEncoder, ...] = ()
        owners = (getattr(model, "model", None), model)
        self.rope = next((owner for owner in owners if hasattr(owner, "get_rope_index")), None)
        super().__init__(model, selection, rows, tokens, tokenizer, chat)

    def _follow(self, vocabulary: int) -> Generator:
        """The model as functions of tensors, the encoder of items among them."""
        stages = follow(self.model, self.slots, vocabulary, self.kind, self.rope)
        self.encoders = stages.encoders
        shape, dtype = stages.features
        self.features = TensorSpec((self.items, *shape), dtype, pad=0)
        return stages.generator

    def _prefill(self, pipeline: Pipeline, ids: Any, mask: Any) -> Any:
        """Draws the encoder, what puts its features into the prompt, and what runs that."""
        # Features stay where they were made until they are merged into what the tokens of text are embedded as.
        first, *features = self._read or self._arrange(pipeline, ids)
        names = ("vision" if self.kind.label == "image" else self.kind.label, "projector")
        for name, encoder in zip(names, self.encoders, strict=False):
            features = [pipeline.add(name, encoder, inputs=self._ports(name))(*features)]
        # What was cut to a request's own size between host stages grows again as a prompt does: by padding.
        dims = (self.rows, self.tokens)
        padded_ids = TensorSpec(dims, torch.int64, pad=self.selection.pad)
        ports = {"input_ids": padded_ids, "first": None, "features": self.features}
        merged = pipeline.add("merge", self.generator.merge, inputs=ports)(ids, first, features[0])
        padded_mask = TensorSpec(dims, torch.int64, pad=0)
        embeds = TensorSpec((*dims, self.features.dims[-1]), self.generator.dtype, pad=0)
        ports = {"inputs_embeds": embeds, "attention_mask": padded_mask, "types": padded_mask}
        places = []
        if self.rope is not None:
            ports["places"] = TensorSpec((AXES, *dims), torch.int64, pad=0)
            positions = RopePositions(self.rope, self.kind, dims, AXES)
            places = [pipeline.add("positions", positions, device="host")(ids, mask)]
        prefill = pipeline.add("prefill", self.generator.prefill_merged, inputs=ports)
        return prefill(merged["inputs_embeds"], mask, merged["types"], *places)

    def _prompt(self, pipeline: Pipeline) -> tuple[Any, Any]:
        """Draws what reads prompts and items together where there is a processor for both."""
        if self.processor is None:
            return super()._prompt(pipeline)
        if "before" in self._constants:
            raise GraphError(
                "Logits processors that look at the prompt are not supported where a processor reads pictures; leave "
                "out processor= and give the pipeline what it gives.",
                option="processor",
            )
        arguments = (self.processor, self.kind, self.rows, self.tokens, self.items, self.selection.pad)
        if self.chat is not None:
            converse = pipeline.add("converse", PictureChatPrompt(*arguments), device="host")
            ids, mask, *self._read = converse(pipeline.input("messages", list))
            return ids, mask
        read = pipeline.add("read", ReadPrompts(*arguments), device="host")
        values = pipeline.input("text", list), pipeline.input(self.kind.label, list)
        ids, mask, *self._read = read(*values)
        return ids, mask

    def _arrange(self, pipeline: Pipeline, ids: Any) -> list[Any]:
        """Draws what takes items as a processor gave them."""
        values = [pipeline.input(name, torch.Tensor) for name in self.kind.values]
        stage = ArrangeItems(self.kind, self.rows, self.items)
        return list(pipeline.add("arrange", stage, device="host")(ids, *values))

    def _ports(self, name: str) -> tuple[str, ...]:
        """What a stage of the encoder takes."""
        return ("states",) if name == "projector" else tuple(self.kind.values)

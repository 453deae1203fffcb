"""Draw a model that goes on with its prompt: the prompt, the first token, and a loop for all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.generation.beams import BeamStep, beam_specs
from orchestrator_stages.generation.chat import ChatPrompt
from orchestrator_stages.generation.choose import BeginTokens, JoinPrompt, NextToken, WithinReach, token_specs
from orchestrator_stages.generation.follow import follow
from orchestrator_stages.generation.generator import Generator, ShortDecode
from orchestrator_stages.generation.lanes import SpreadState, lane_specs
from orchestrator_stages.generation.processors import PROMPTS, HostProcessors
from orchestrator_stages.generation.sampling import SampleNoise, SeedState, random_spec
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.stopping import StartClock, TimeLimit
from orchestrator_stages.seq2seq.host import Detokenise, Tokenise

__all__ = ["Continuation"]

BUCKET = -1
"""What fills a prompt up to its bucket: less than any token."""

FULL = ("finished", "is_complete", "filler", "noise", "mask")
"""What is 1 in a row that fills up a batch: it ended before it began; all else is 0."""

READ = 256
"""Below so many tokens, how much of the cache is read makes no difference to speak of."""


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


class Continuation:
    """A model that goes on with its prompt, and what its pipeline is drawn of."""

    def __init__(
        self,
        model: Any,
        selection: Selection,
        rows: Dim,
        tokens: Dim,
        tokenizer: Any,
        chat: Any = None,
        slots: int | None = None,
    ) -> None:
        self.selection = selection
        self.rows = rows
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.chat = chat
        self.longest = tokens.buckets[-1]
        self.slots = self.longest + selection.new if slots is None else slots
        self.model = model
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.generator = self._follow(self.vocabulary)
        self.processors = selection.follow(self.vocabulary)
        stop = selection.follow_stop(self.vocabulary)
        self.choose = (BeamStep if selection.has_beams else NextToken)(selection, self.processors, stop)

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
        clock = {}
        if self.selection.max_time is not None:
            clock["started"] = pipeline.add("clock", StartClock(), device="host")(ids)
        prompts = PROMPTS if "before" in self.constants else ()
        ports = ("attention_mask", "input_ids") if prompts else ("attention_mask",)
        start = BeginTokens(self.selection, self.vocabulary if prompts else None, self.longest)
        begin = pipeline.add("begin", start, inputs=ports)(*(mask, ids)[: len(ports)])
        prompt = self._prefill(pipeline, ids, mask)
        values = {port: begin[port] for port in ("filler", *prompts, *self._choice_specs)}
        values |= {"ids": ids, "seen": mask, "mask": prompt["mask"], **clock}
        if self.selection.is_sampling:
            values["random"] = pipeline.add("seed", SeedState(), device="host")(pipeline.input("seed", int))
        values |= self._choose(pipeline, prompt["logits"], values | {"position": prompt["position"]})
        specs = self._filled(self.generator.specs(self.rows))
        names = tuple(specs)
        state = [prompt[port] for port in names]
        if self.selection.lanes > 1:
            dims = self.generator.batch_dims()
            spread = pipeline.add("spread", SpreadState(names, dims, self.selection.lanes), inputs=specs)
            outputs = spread(*state)
            state = [outputs[port] for port in names]
        values |= dict(zip(names, state, strict=True))
        choices = self.draw_loops(pipeline, values, cache, check_every)
        # What comes out is as generate() returns it, prompts first.
        finish = pipeline.add("finish", JoinPrompt(self.selection, self.rows), device="host")
        sequences, new_tokens = finish(ids, *choices)
        pipeline.output("tokens", sequences)
        if self.tokenizer is not None:
            read = pipeline.add("detokenise", Detokenise(self.tokenizer), device="host")
            pipeline.output("text", read(new_tokens))
        return pipeline

    def draw_loops(
        self, pipeline: Pipeline, values: Mapping[str, Any], cache: Iterable[int] | None, check_every: int = 1
    ) -> tuple[Any, ...]:
        """Draws what chooses all tokens after the first; returns the tokens, the beams of beam search, and lengths.

        Args:
            pipeline: The pipeline.
            values: What is there after the first token, by name: ``done``, and what :attr:`carries` and
                :attr:`constants` name.
            cache: As of :meth:`draw`.
            check_every: Likewise.
        """
        inputs = {port: values[port] for port in self.constants}
        carries = {port: values[port] for port in self.carries}
        # Beams, lanes and what the host does in between read all of the cache.
        is_on_device = self.processors is not None and not {"noise", "is_over"} & {*self.choose.ports}
        is_plain = self.selection.lanes == 1 and is_on_device
        counts = ("lengths",) * self.selection.counts_lengths
        results = ("sequences", "beams") if self.selection.has_beams else ("new_ids", *counts)
        reaches = _reaches(cache, self.tokens, self.selection.new)
        if len(reaches) > 1 and is_plain:
            carries = self._chain(pipeline, {**carries, "done": values["done"]}, inputs, reaches)
            return tuple(carries[port] for port in results)
        choices = pipeline.loop(
            "decode",
            self._body(),
            carry=carries,
            inputs=inputs,
            until="done",
            max_steps=self.selection.new - 1,
            check_every=check_every,
            outputs=results,
        )
        return tuple(choices) if len(results) > 1 else (choices,)

    def _chain(
        self,
        pipeline: Pipeline,
        carries: Mapping[str, Any],
        inputs: Mapping[str, Any],
        reaches: Sequence[int],
    ) -> dict[str, Any]:
        """Draws a loop for each bucket of the cache, one after the other; returns what the last one gives, by name."""
        # A loop begins where the one before it ended, or behind the prompt: it has no more slots of its own than that.
        start = self.tokens.buckets[0]
        for reach in reaches:
            enters = pipeline.add(f"within-{reach}", WithinReach(reach))(carries["done"], carries["position"])
            outputs = pipeline.loop(
                f"decode-{reach}",
                self._body(reach),
                carry=carries,
                inputs=inputs,
                until="leave",
                condition=enters,
                max_steps=min(reach - start, self.selection.new - 1),
                outputs=tuple(carries),
            )
            carries, start = {port: outputs[port] for port in carries}, reach
        return dict(carries)

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
    def carries(self) -> dict[str, TensorSpec]:
        """What one iteration gives to the next."""
        rows, lanes = self.rows, self.selection.lanes
        tokens = ("token", "origin") if self.selection.has_beams else ("token",)
        specs = dict.fromkeys(tokens, TensorSpec((rows, lanes) if lanes > 1 else (rows,), torch.int64))
        random = {"random": random_spec()} if self.selection.is_sampling else {}
        return {
            **specs,
            **self._choice_specs,
            **random,
            **lane_specs(self.generator.specs(rows), rows, lanes),
        }

    @property
    def constants(self) -> dict[str, TensorSpec]:
        """What every iteration reads."""
        prompts = TensorSpec((self.rows, self.tokens), torch.int64)
        constants = {"mask": TensorSpec((self.rows, self.slots), torch.int64)}
        if self.selection.has_beams:
            constants["filler"] = TensorSpec((self.rows,), torch.bool)
        if self.selection.is_sampling or self.processors is None:
            constants["ids"] = prompts
        if self.processors is None:
            constants["seen"] = prompts
        if "before" in self.choose.ports:
            constants["before"] = TensorSpec((self.rows, self.longest), torch.int64)
            constants["is_token"] = TensorSpec((self.rows, self.longest), torch.bool)
        if "is_over" in self.choose.ports:
            constants["started"] = TensorSpec((1,), torch.float64)
        return constants

    def _filled(self, specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Returns specs that say what fills up rows; where these are a batch, any of them does."""
        if self.rows.batch:
            return specs
        return {
            name: TensorSpec(spec.dims, spec.dtype, pad=int(name in FULL)) if self.rows in spec.dims else spec
            for name, spec in specs.items()
        }

    def _choose(self, pipeline: Pipeline, logits: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Draws the choice of a token; returns what it gives by name.

        Args:
            pipeline: The pipeline, or the body of its loop.
            logits: The logits.
            values: What is there by name: what the choice takes, the prompts, ``random``, ``started``, ``position`` of
                what ran last, and ``is_full`` in a loop that reads a part of the cache.
        """
        # What only the host can do comes first: random numbers, processors that no device follows, and the clock.
        lanes = (self.selection.lanes,) if self.selection.lanes > 1 else ()
        shape = TensorSpec((self.rows, *lanes, self.vocabulary), pad=1)
        values = dict(values)
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
            logits = process(logits, *(values[port] for port in ("step", "new_ids", "ids", "seen")))
        if self.selection.is_sampling:
            noise = pipeline.add("noise", SampleNoise(shape), device="host")(values["random"], values["ids"])
            values["noise"] = noise["noise"]
            random = {"random": noise["random"]}
        if self.selection.max_time is not None:
            limit = pipeline.add("time", TimeLimit(self.selection.max_time), device="host")
            values["is_over"] = limit(values["started"], values["position"])
        full, leave = (("is_full",), ("leave",)) if "is_full" in values else ((), ())
        filler = ("filler",) if self.selection.has_beams else ()
        names = (*filler, *self._choice_specs, *self.choose.ports, *full)
        # Before the loop all lanes have the logits of the prompt.
        has_lanes = "token" in values or self.processors is None
        specs = {"logits": shape if has_lanes else TensorSpec((self.rows, self.vocabulary)), "noise": shape}
        specs = self._filled({**specs, **self.constants, **self._choice_specs})
        step = pipeline.add(
            "choose", self.choose, inputs={name: specs.get(name) for name in ("logits", *names)}
        )
        result = step(logits, *(values[name] for name in names))
        tokens = ("token", "origin", "done") if self.selection.has_beams else ("token", "done")
        return {port: result[port] for port in (*tokens, *leave, *self._choice_specs)} | random

    def _body(self, reach: int | None = None) -> Pipeline:
        """One iteration: a token in, the next one out.

        Args:
            reach: How many slots of the cache are read; None: all, and it is left when all rows are done.
        """
        body = Pipeline("next-token")
        specs = {**self.carries, **self.constants}
        if reach is not None:
            specs["done"] = TensorSpec((1,), torch.bool)
        values: dict[str, Any] = {port: body.input(port, spec) for port, spec in self._filled(specs).items()}
        state = self.generator.specs(self.rows)
        has_beams = self.selection.has_beams
        several = self.generator.decode_beams if has_beams else self.generator.decode_lanes
        lanes = self.selection.lanes
        decode: Any = self.generator.decode if lanes == 1 else several
        if reach is not None:
            decode = ShortDecode(self.generator, reach)
        ports = ("token", *(("origin",) if has_beams else ()), "mask", *state)
        aliases = {} if has_beams else self.generator.aliases
        step = body.add("decode", decode, inputs=ports, aliases=aliases)
        token = step(*(values[port] for port in ports))
        full = {"position": token["position"], **({} if reach is None else {"is_full": token["full"]})}
        following = self._choose(body, token["logits"], {**values, **full})
        for port in (*self.carries, "done", *["leave"] * (reach is not None)):
            body.output(port, token[port] if port in state else following[port])
        return body

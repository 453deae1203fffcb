"""The loop that makes tokens, of any model: what runs one, how the next one is chosen, and what is carried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.generation.beams import BeamStep, beam_specs
from orchestrator_stages.generation.choose import NextToken, token_specs
from orchestrator_stages.generation.lanes import SpreadState, lane_specs
from orchestrator_stages.generation.processors import HostProcessors
from orchestrator_stages.generation.sampling import SampleNoise, SeedState, random_spec
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.stopping import StartClock, TimeLimit
from orchestrator_stages.generation.token_step import TokenDecoder, TokenStep, WithinReach

__all__ = ["TokenLoop"]

FULL = ("finished", "is_complete", "filler", "noise", "mask", "attention_mask", "encoding_mask")
"""What is 1 in a row that fills up a batch: it ended before it began; all else is 0."""

READ = 256
"""Below so many tokens, how much of the cache is read makes no difference to speak of."""


class TokenLoop:
    """Draws how tokens are chosen, and the loop around that.

    Args:
        selection: How they are chosen.
        rows: The dim of the batch.
        vocabulary: Number of tokens.
        decoder: Runs a token.
        readings: What it reads in every iteration, before what is carried.
        prompt: Of the tokens before the first new one, ``ids``.
        longest: How many there are at most.
        encoding: Of the tokens that an encoder read, ``encoded``; None: processors that look at such look at ``ids``.

    Attributes:
        taken: What the decoder takes behind the token, in order, without lanes.
    """

    def __init__(
        self,
        selection: Selection,
        rows: Dim,
        vocabulary: int,
        decoder: TokenDecoder,
        readings: Mapping[str, TensorSpec],
        prompt: TensorSpec,
        longest: int,
        encoding: TensorSpec | None = None,
    ) -> None:
        self.selection = selection
        self.rows = rows
        self.vocabulary = vocabulary
        self.decoder = decoder
        self.readings = lane_specs(readings, rows, selection.lanes)
        self.taken = {**readings, **decoder.specs(rows)}
        self.prompt = prompt
        self.longest = longest
        self.encoding = encoding
        self.processors = selection.follow(vocabulary)
        stop = selection.follow_stop(vocabulary)
        self.choice = (BeamStep if selection.has_beams else NextToken)(selection, self.processors, stop)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """What the choice of a token takes besides logits, and gives to the next one."""
        return (beam_specs if self.selection.has_beams else token_specs)(self.selection, self.rows)

    @property
    def carries(self) -> dict[str, TensorSpec]:
        """What one iteration gives to the next."""
        rows, lanes = self.rows, self.selection.lanes
        tokens = ("token", "origin") if self.selection.has_beams else ("token",)
        specs = dict.fromkeys(tokens, TensorSpec((rows, lanes) if lanes > 1 else (rows,), torch.int64))
        random = {"random": random_spec()} if self.selection.is_sampling else {}
        return {**specs, **self.specs, **random, **lane_specs(self.decoder.specs(rows), rows, lanes)}

    @property
    def constants(self) -> dict[str, TensorSpec]:
        """What every iteration reads."""
        constants = dict(self.readings)
        if self.selection.has_beams:
            constants["filler"] = TensorSpec((self.rows,), torch.bool)
        if self.selection.is_sampling or self.processors is None:
            constants["ids"] = self.prompt
        if self.processors is None:
            constants |= {"seen": self.prompt} if self.encoding is None else {"encoded": self.encoding}
        if "before" in self.choice.ports:
            constants["before"] = TensorSpec((self.rows, self.longest), torch.int64)
            constants["is_token"] = TensorSpec((self.rows, self.longest), torch.bool)
        if "width" in self.choice.ports:
            constants["width"] = TensorSpec((self.rows,), torch.int64)
        if "is_over" in self.choice.ports:
            constants["started"] = TensorSpec((1,), torch.float64)
        return constants

    @property
    def results(self) -> tuple[str, ...]:
        """What is read of the last iteration."""
        counts = ("lengths",) * self.selection.counts_lengths
        return ("sequences", "beams") if self.selection.has_beams else ("new_ids", *counts)

    def begin(self, pipeline: Pipeline, like: Any) -> dict[str, Any]:
        """Draws what the host does once before the first token; returns what it gives by name.

        Args:
            pipeline: The pipeline.
            like: Something of the request.
        """
        values = {}
        if self.selection.max_time is not None:
            values["started"] = pipeline.add("clock", StartClock(), device="host")(like)
        if self.selection.is_sampling:
            values["random"] = pipeline.add("seed", SeedState(), device="host")(pipeline.input("seed", int))
        return values

    def spread(self, pipeline: Pipeline, values: Mapping[str, Any]) -> dict[str, Any]:
        """Draws what gives every sequence of a row what its prompt left, if there are several; returns that by name.

        Args:
            pipeline: The pipeline.
            values: By name :attr:`taken`.
        """
        # What has no rows is the same for all lanes.
        taken = {port: values[port] for port in self.taken}
        if self.selection.lanes == 1:
            return taken
        dims = {port: dim for port, dim in self._dims.items() if dim is not None}
        specs = self.padded_specs({port: self.taken[port] for port in dims})
        stage = SpreadState(self.decoder, dims, self.selection.lanes)
        outputs = pipeline.add("spread", stage, inputs=specs)(*(values[port] for port in dims))
        return taken | {port: outputs[port] for port in dims}

    @property
    def _dims(self) -> dict[str, int | None]:
        """The dim of the batch of each of :attr:`taken`."""
        return {
            name: spec.dims.index(self.rows) if self.rows in spec.dims else None
            for name, spec in self.taken.items()
        }

    def padded_specs(self, specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Returns specs that say what fills up rows; where these are a batch, any of them does."""
        if self.rows.batch:
            return specs
        return {
            name: TensorSpec(spec.dims, spec.dtype, pad=int(name in FULL)) if self.rows in spec.dims else spec
            for name, spec in specs.items()
        }

    def choose(self, pipeline: Pipeline, logits: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Draws the choice of a token; returns what it gives by name.

        Args:
            pipeline: The pipeline, or the body of its loop.
            logits: The logits.
            values: What is there by name: what the choice takes, the prompts, ``random``, ``started``, ``position`` of
                what ran last, ``guide`` of a second run, and ``is_full`` in a loop that reads a part of the cache.
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
                is_encoded=self.encoding is not None,
                is_guided=self.selection.is_guided,
                counting=self.selection.counting,
            )
            process = pipeline.add("process", stage, device="host")
            logits = process(logits, *(values[port] for port in stage.ports))
        if self.selection.is_sampling:
            noise = pipeline.add("noise", SampleNoise(shape), device="host")(values["random"], values["ids"])
            values["noise"] = noise["noise"]
            random = {"random": noise["random"]}
        if self.selection.max_time is not None:
            limit = pipeline.add("time", TimeLimit(self.selection.max_time), device="host")
            values["is_over"] = limit(values["started"], values["position"])
        full, leave = (("is_full",), ("leave",)) if "is_full" in values else ((), ())
        filler = ("filler",) if self.selection.has_beams else ()
        names = (*filler, *self.specs, *self.choice.ports, *full)
        # Before the loop all lanes have the logits of the prompt.
        has_lanes = "token" in values or self.processors is None
        scores = shape if has_lanes else TensorSpec((self.rows, self.vocabulary))
        specs = {"logits": scores, "guide": scores, "noise": shape}
        specs = self.padded_specs({**specs, **self.constants, **self.specs})
        step = pipeline.add(
            "choose", self.choice, inputs={name: specs.get(name) for name in ("logits", *names)}
        )
        result = step(logits, *(values[name] for name in names))
        tokens = ("token", "origin", "done") if self.selection.has_beams else ("token", "done")
        return {port: result[port] for port in (*tokens, *leave, *self.specs)} | random

    def body(self, reach: int | None = None) -> Pipeline:
        """Returns one iteration as a pipeline: a token in, the next one out.

        Args:
            reach: How many slots of the cache it reads; where the next token needs more, the loop ends as well. None:
                all.
        """
        # What is carried and what is constant goes in; a token is run, the next one is chosen.
        body = Pipeline("next-token")
        has_beams, is_part = self.selection.has_beams, reach is not None
        specs = {**self.carries, **self.constants}
        if is_part:
            specs["done"] = TensorSpec((1,), torch.bool)
        values: dict[str, Any] = {
            port: body.input(port, spec) for port, spec in self.padded_specs(specs).items()
        }
        is_plain = self.selection.lanes == 1 and not is_part
        decode = (
            self.decoder.decode if is_plain else TokenStep(self.decoder, self._dims, self.selection, reach)
        )
        ports = ("token", *(("origin",) if has_beams else ()), *self.taken)
        step = body.add("decode", decode, inputs=ports, aliases=self.decoder.aliases)
        token = step(*(values[port] for port in ports))
        full = {"position": token["position"], **({"is_full": token["full"]} if is_part else {})}
        full |= {"guide": token["guide"]} if self.selection.is_guided else {}
        following = self.choose(body, token["logits"], {**values, **full})
        for port in (*self.carries, "done", *["leave"] * is_part):
            body.output(port, token[port] if port in self.taken else following[port])
        return body

    def draw(
        self,
        pipeline: Pipeline,
        values: Mapping[str, Any],
        steps: int,
        check_every: int,
        state: tuple[str, ...] = (),
    ) -> tuple[Any, ...]:
        """Draws one loop into a pipeline; returns :attr:`results`, and what is asked for besides.

        Args:
            pipeline: The pipeline.
            values: What the first iteration takes, by name.
            steps: Iterations at most.
            check_every: How many are run between two looks at whether all sequences have ended.
            state: What else of what is carried is read of the last iteration.
        """
        names = (*self.results, *state)
        results: Any = pipeline.loop(
            "decode",
            self.body(),
            carry={port: values[port] for port in self.carries},
            inputs={port: values[port] for port in self.constants},
            until="done",
            max_steps=steps,
            check_every=check_every,
            outputs=names,
        )
        return tuple(results) if len(names) > 1 else (results,)

    def draw_reaches(
        self,
        pipeline: Pipeline,
        values: Mapping[str, Any],
        steps: int,
        check_every: int,
        sizes: Iterable[int] | None,
        first: int,
        slots: int,
    ) -> tuple[Any, ...]:
        """Draws a loop for each length in which the cache is read; returns :attr:`results`.

        Args:
            pipeline: The pipeline.
            values: What the first iteration takes, by name, and ``done``, whether there is none.
            steps: Iterations of all loops at most.
            check_every: As of :meth:`draw`, if there is one loop; of several loops none may run too often, so each
                iteration is looked at.
            sizes: How much of the cache may be read by itself; None: as usual.
            first: The first slot that is written, at the earliest.
            slots: How many there are.

        Raises:
            GraphError: A size is none.
        """
        reaches = _reaches(sizes, first, slots)
        if len(reaches) == 1:
            return self.draw(pipeline, values, steps, check_every)
        # A loop begins where the one before it ended, or behind the prompt: it has no more slots of its own than that.
        carries = {port: values[port] for port in (*self.carries, "done")}
        inputs = {port: values[port] for port in self.constants}
        for reach in reaches:
            enters = pipeline.add(f"within-{reach}", WithinReach(reach))(carries["done"], carries["position"])
            outputs = pipeline.loop(
                f"decode-{reach}",
                self.body(reach),
                carry=carries,
                inputs=inputs,
                until="leave",
                condition=enters,
                max_steps=min(reach - first, steps),
                outputs=tuple(carries),
            )
            carries, first = {port: outputs[port] for port in carries}, reach
        return tuple(carries[port] for port in self.results)


def _reaches(sizes: Iterable[int] | None, first: int, slots: int) -> list[int]:
    """How much of the cache is read, loop by loop; the last is all of it.

    Raises:
        GraphError: A size is none.
    """
    if sizes is None:
        sizes = (READ << power for power in range((slots // READ).bit_length()))
    sizes = list(sizes)
    wrong = [size for size in sizes if isinstance(size, bool) or not isinstance(size, int) or size < 1]
    if wrong:
        raise GraphError(f"cache= has lengths, ints of at least 1, not {wrong[0]!r}.", option="cache")
    return [*sorted({size for size in sizes if first < size < slots}), slots]

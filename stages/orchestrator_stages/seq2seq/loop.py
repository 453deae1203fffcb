"""Draw the decoder loop: what is carried, what stays the same, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator.pipeline import Value
from orchestrator_stages.generation.state import CacheTemplate, state_of
from orchestrator_stages.seq2seq.choose import Choose
from orchestrator_stages.seq2seq.forward import DecoderForward, visible_tokens
from orchestrator_stages.seq2seq.rules import Rules
from orchestrator_stages.seq2seq.trial import Trial

__all__ = ["Decoder", "Decoding"]

TOKENS = ("token", "position", "finished", "chosen")
"""What an iteration takes and gives besides the cache."""


class Decoder(nn.Module):
    """Makes the tokens of a sequence, one in each call; between two calls it keeps nothing.

    Args:
        forward: Reads a token.
        template: Of its cache.
        readings: What it reads of the encoder: ``encoding`` and masks.
        rules: How tokens are chosen.
        choose: Chooses them.
    """

    def __init__(
        self,
        forward: DecoderForward,
        template: CacheTemplate,
        readings: tuple[str, ...],
        rules: Rules,
        choose: Choose,
    ) -> None:
        super().__init__()
        self.read = forward
        self.template = template
        self.readings = readings
        self.start, self.pad, self.steps = rules.start, rules.pad, rules.steps
        self.choose = choose

    def begin(self, *readings: Tensor) -> dict[str, Tensor]:
        """Returns what the first call of :meth:`step` takes, and ``visible``, a mask for all of them, if there is one.

        Args:
            readings: As named. In a mask a row of zeros is a row that pads the batch: it is finished before it begins.
        """
        # The first token is read here for what the layers take of the encoder. The loop reads it again, into the same
        # slot, so that every token comes from an iteration.
        encodings = dict(zip(self.readings, readings, strict=True))
        encoding, mask = encodings["encoding"], encodings.get("attention_mask")
        rows, device = encoding.shape[0], encoding.device
        token = torch.full((rows,), self.start, dtype=torch.int64, device=device)
        is_finished = torch.zeros(rows, dtype=torch.bool, device=device)
        values = {}
        if mask is not None:
            is_finished = ~mask.bool().any(1)
            values["visible"] = encodings["attention_mask"] = visible_tokens(mask)
        _, cache = self.read.first(token, encodings)
        return values | {
            "token": token,
            "position": torch.zeros(1, dtype=torch.int64, device=device),
            "finished": is_finished,
            "chosen": torch.full((rows, self.steps), self.pad, dtype=torch.int64, device=device),
            **state_of(cache),
        }

    def step(
        self, token: Tensor, position: Tensor, is_finished: Tensor, tokens: Tensor, *rest: Tensor
    ) -> dict[str, Tensor]:
        """Returns what the next call takes, by the same names, and ``done``: whether there is to be none.

        The cache and the tokens so far are written in place.

        Args:
            token: ``[batch]``, int64: the one before.
            position: ``[1]``, int64: how many came before that.
            is_finished: ``[batch]``, bool: rows that get nothing but padding.
            tokens: ``[batch, steps]``, int64: those so far.
            rest: What was read of the encoder, the cache, and the random numbers where tokens are drawn.
        """
        # Ports of a stage are fixed in number, tensors of a cache are not: what differs in number comes last.
        count = len(self.readings)
        encodings = dict(zip(self.readings, rest, strict=False))
        state, numbers = (
            rest[count : count + len(self.template.places)],
            rest[count + len(self.template.places) :],
        )
        cache = self.template.cache(state, position, in_place=True)
        logits, cache = self.read.next(token, encodings, cache, position)
        token, is_finished = self.choose(logits, position, is_finished, *numbers)
        return {
            "token": token,
            "position": position + 1,
            "finished": is_finished,
            "chosen": tokens.index_copy_(1, position, token[:, None]),
            "done": is_finished.all(0, keepdim=True),
            **{place.name: place.read(cache) for place in self.template.places if not place.cross},
        }


class Decoding:
    """A decoder, the rules by which it chooses, and the dims of what it works on.

    Args:
        trial: What the model gave on fake tensors.
        rules: The rules.
        batch: The dim of the sequences.
        tokens: The dim of what the encoder reads, or its size.
    """

    def __init__(self, trial: Trial, rules: Rules, batch: Dim, tokens: Dim | int) -> None:
        choose = Choose(rules, trial.vocabulary)
        self.trial = trial
        self.rules = rules
        self.batch = batch
        self.tokens = tokens
        self.decoder = Decoder(trial.decoder, trial.template, trial.readings, rules, choose)

    def _specs(self) -> dict[str, TensorSpec]:
        """What one iteration takes."""
        specs = {
            "token": TensorSpec((self.batch,), torch.int64),
            "position": TensorSpec((1,), torch.int64),
            "finished": TensorSpec((self.batch,), torch.bool),
            "chosen": TensorSpec((self.batch, self.rules.steps), torch.int64),
            **self.trial.specs(self.batch, self.tokens),
        }
        if self.rules.sampling is not None:
            specs["numbers"] = TensorSpec((self.rules.steps, self.batch))
        return specs

    @property
    def carries(self) -> tuple[str, ...]:
        """What one iteration hands to the next; the rest is the same in all."""
        return (*TOKENS, *(place.name for place in self.trial.template.places if not place.cross))

    def begin(self, pipeline: Pipeline, encodings: Mapping[str, Value]) -> dict[str, Value]:
        """Draws what prepares the loop; returns what its first iteration takes.

        Args:
            pipeline: The pipeline.
            encodings: What is read of the encoder, by name.
        """
        begin = pipeline.add("begin", self.decoder.begin, inputs=self.trial.readings)
        outputs = begin(*[encodings[name] for name in self.trial.readings])
        values = {name: outputs[name] for name in (*TOKENS, *self.trial.template.names)}
        values |= {name: encodings[name] for name in self.trial.readings}
        if "attention_mask" in encodings:
            values["attention_mask"] = outputs["visible"]
        return values

    def _body(self) -> Pipeline:
        """Returns one iteration as a pipeline."""
        specs = self._specs()
        body = Pipeline("next-token")
        aliases = {name: name for name in self.carries if name not in TOKENS or name == "chosen"}
        step = body.add("step", self.decoder.step, inputs=tuple(specs), aliases=aliases)
        outputs = step(**{name: body.input(name, spec) for name, spec in specs.items()})
        for name in (*self.carries, "done"):
            body.output(name, outputs[name])
        return body

    def draw(
        self,
        pipeline: Pipeline,
        name: str,
        initial_values: Mapping[str, Value],
        numbers: Any = None,
        check_every: int = 1,
    ) -> Any:
        """Draws the loop into a pipeline.

        Args:
            pipeline: The pipeline.
            name: What the loop is called.
            initial_values: What :meth:`begin` gave.
            numbers: The random numbers, where tokens are drawn.
            check_every: How many iterations are run between two looks at whether all sequences have ended.

        Returns:
            The chosen tokens, ``[batch, steps]``; the pad token after the end of a sequence.
        """
        # What is read of the encoder is an input, not carried: it stays in one place on the device for the whole loop.
        inputs = {port: value for port, value in initial_values.items() if port not in self.carries}
        if numbers is not None:
            inputs["numbers"] = numbers
        return pipeline.loop(
            name,
            self._body(),
            carry={port: initial_values[port] for port in self.carries},
            inputs=inputs,
            until="done",
            max_steps=self.rules.steps,
            check_every=check_every,
            outputs=("chosen",),
        )

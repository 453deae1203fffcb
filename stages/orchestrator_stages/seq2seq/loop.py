"""Draw the decoder loop: what is carried, what stays the same, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator.pipeline import Value
from orchestrator_stages.seq2seq.choose import Choose, DecodingStep
from orchestrator_stages.seq2seq.decoder import BeginDecoding, Decoder, DecoderParts, past_names
from orchestrator_stages.seq2seq.rules import Rules

__all__ = ["Decoding"]


@dataclass(frozen=True)
class Decoding:
    """A decoder, the rules by which it chooses, and the dims of what it works on.

    Attributes:
        parts: The decoder's modules.
        rules: The rules.
        vocabulary: Number of tokens it knows.
        dtype: Of its weights.
        batch: The dim of the sequences.
        tokens: The dim of what the encoder gave, or its size.
    """

    parts: DecoderParts
    rules: Rules
    vocabulary: int
    dtype: torch.dtype
    batch: Dim
    tokens: Dim | int

    def begin(self) -> BeginDecoding:
        """Returns the stage that prepares the loop."""
        return BeginDecoding(self.parts.crosses, self.rules.steps, self.rules.start, self.rules.pad)

    def _carry_specs(self) -> dict[str, TensorSpec]:
        """What one iteration hands to the next."""
        past = TensorSpec((2, self.batch, self.parts.heads, self.rules.steps, self.parts.size), self.dtype)
        return {
            "token": TensorSpec((self.batch,), torch.int64),
            "position": TensorSpec((1,), torch.int64),
            "finished": TensorSpec((self.batch,), torch.bool),
            "chosen": TensorSpec((self.batch, self.rules.steps), torch.int64),
            **dict.fromkeys(past_names(len(self.parts.layers)), past),
        }

    def _input_specs(self) -> dict[str, TensorSpec]:
        """What is the same in all iterations."""
        layers, heads, size = len(self.parts.layers), self.parts.heads, self.parts.size
        return {
            "memory": TensorSpec((layers, 2, self.batch, heads, self.tokens, size), self.dtype),
            "masked": TensorSpec((self.batch, 1, 1, self.tokens), self.dtype),
        }

    def body(self) -> Pipeline:
        """Returns one iteration as a pipeline."""
        carry_specs, specs = self._carry_specs(), {**self._carry_specs(), **self._input_specs()}
        if self.rules.sampling is not None:
            specs["numbers"] = TensorSpec((self.rules.steps, self.batch))
        # In the order of forward: what every step has, the pasts, and the numbers last.
        names = ("token", "position", "finished", "chosen", "memory", "masked")
        ports = dict.fromkeys((*names, *specs))
        body = Pipeline("next-token")
        stage = DecodingStep(Decoder(self.parts), Choose(self.rules, self.vocabulary))
        step = body.add("step", stage, inputs=tuple(ports))
        outputs = step(**{name: body.input(name, specs[name]) for name in ports})
        for name in (*carry_specs, "done"):
            body.output(name, outputs[name])
        return body

    def draw(
        self,
        pipeline: Pipeline,
        name: str,
        initial_values: Value | Mapping[str, Value],
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
        # What the encoder gave is an input, not carried: it stays in one place on the device for the whole loop.
        inputs = {"memory": initial_values["memory"], "masked": initial_values["masked"]}
        if numbers is not None:
            inputs["numbers"] = numbers
        return pipeline.loop(
            name,
            self.body(),
            carry={port: initial_values[port] for port in self._carry_specs()},
            inputs=inputs,
            until="done",
            max_steps=self.rules.steps,
            check_every=check_every,
            outputs=("chosen",),
        )

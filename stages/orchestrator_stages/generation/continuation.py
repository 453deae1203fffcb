"""Draw a model that goes on with its prompt: the prompt, the first token, and a loop for all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator_stages.generation.chat import ChatPrompt
from orchestrator_stages.generation.choose import BeginTokens, JoinPrompt
from orchestrator_stages.generation.follow import follow
from orchestrator_stages.generation.generator import Generator
from orchestrator_stages.generation.guidance import GuidedGenerator
from orchestrator_stages.generation.lengths import PromptWidth
from orchestrator_stages.generation.processors import PROMPTS
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.token_loop import TokenLoop
from orchestrator_stages.seq2seq.host import Detokenise, Tokenise

__all__ = ["Continuation", "ContinuationParts"]

BUCKET = -1
"""What fills a prompt up to its bucket: less than any token."""


@dataclass(frozen=True)
class ContinuationParts:
    """What the pipeline of a model that goes on with its prompt is drawn of.

    Attributes:
        model: The model.
        selection: How tokens are chosen.
        rows: The dim of the prompts.
        tokens: The dim of their tokens.
        tokenizer: What reads tokens; None: they come as they are.
        chat: What has the template of conversations; None: there are none.
        context: How many tokens the cache of a conversation holds; None: a prompt is the whole.
        processor: What makes numbers of items; None: they come as they are.
        kind: What the items among the tokens are; None: there are none.
        items: The dim of the items of all prompts.
    """

    model: Any
    selection: Selection
    rows: Dim
    tokens: Dim
    tokenizer: Any = None
    chat: Any = None
    context: int | None = None
    processor: Any = None
    kind: Any = None
    items: Any = None


class Continuation:
    """Draws a model that goes on with its prompt.

    Args:
        parts: What it is drawn of.
    """

    def __init__(self, parts: ContinuationParts) -> None:
        self.selection = selection = parts.selection
        self.rows = rows = parts.rows
        self.tokens = tokens = parts.tokens
        self.tokenizer = parts.tokenizer
        self.chat = parts.chat
        self.longest = tokens.buckets[-1]
        self.slots = self.longest + selection.new if parts.context is None else parts.context
        self.model = parts.model
        self.vocabulary = self.model.get_output_embeddings().weight.shape[0]
        self.generator: Any = self._follow(self.vocabulary)
        if selection.is_guided:
            self.generator = GuidedGenerator(self.generator, selection.negative, selection.new)
        mask = {"mask": TensorSpec((rows, self.slots), torch.int64)}
        prompt = TensorSpec((rows, tokens), torch.int64)
        self.loop = TokenLoop(selection, rows, self.vocabulary, self.generator, mask, prompt, self.longest)

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
        pipeline, loop = Pipeline(name), self.loop
        ids, mask = self._prompt(pipeline)
        values = {}
        if "width" in loop.choice.ports:
            width = PromptWidth(self.rows, self.selection.longest)
            values["width"] = pipeline.add("width", width, device="host")(ids)
        values |= loop.begin(pipeline, ids)
        prompts = PROMPTS if "before" in loop.constants else ()
        ports = ("attention_mask", "input_ids") if prompts else ("attention_mask",)
        start = BeginTokens(self.selection, self.vocabulary if prompts else None, self.longest)
        begin = pipeline.add("begin", start, inputs=ports)(*(mask, ids)[: len(ports)])
        prompt = self._prefill(pipeline, ids, mask)
        values |= {port: begin[port] for port in ("filler", *prompts, *loop.specs)}
        values |= {"ids": ids, "seen": mask}
        beside = ("position", *("guide",) * self.selection.is_guided)
        values |= loop.choose(pipeline, prompt["logits"], values | {port: prompt[port] for port in beside})
        values |= loop.spread(pipeline, prompt)
        self._finish(pipeline, ids, self.draw_loops(pipeline, values, cache, check_every))
        return pipeline

    def _finish(self, pipeline: Pipeline, ids: Any, choices: Iterable[Any]) -> tuple[Any, Any]:
        """Draws what comes out, as generate() returns it, prompts first; returns new tokens, and their text if any."""
        finish = pipeline.add("finish", JoinPrompt(self.selection, self.rows), device="host")
        sequences, new_tokens = finish(ids, *choices)
        pipeline.output("tokens", sequences)
        text = None
        if self.tokenizer is not None:
            text = pipeline.add("detokenise", Detokenise(self.tokenizer), device="host")(new_tokens)
            pipeline.output("text", text)
        return new_tokens, text

    def draw_loops(
        self, pipeline: Pipeline, values: Mapping[str, Any], cache: Iterable[int] | None, check_every: int = 1
    ) -> tuple[Any, ...]:
        """Draws what chooses all tokens after the first; returns the tokens, the beams of beam search, and lengths.

        Args:
            pipeline: The pipeline.
            values: What is there after the first token, by name: ``done``, and what the loop carries and reads.
            cache: As of :meth:`draw`.
            check_every: Likewise.
        """
        first, slots = self.tokens.buckets[0], self.longest + self.selection.new
        return self.loop.draw_reaches(
            pipeline, values, self.selection.new - 1, check_every, cache, first, slots
        )

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

"""Turn a loaded model of transformers that generates into a pipeline.

    text -> tokenise -> begin -> prefill -> choose -> decode: decode, choose, decode, choose, ... -> finish -> text

The prompt runs once, in a bucket of its length, and lays down its keys and values in a cache. The loop ``decode``
carries the cache, the last token and which rows have ended; they stay on the device. Only whether all have ended is
read by the host in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.generation.chat import ChatPrompt, check_template
from orchestrator_stages.generation.checks import check_generates
from orchestrator_stages.generation.choose import BeginTokens, JoinPrompt, NextToken, token_specs
from orchestrator_stages.generation.generator import Generator, own_tree
from orchestrator_stages.generation.options import prompt_rules
from orchestrator_stages.origin import unwrap
from orchestrator_stages.seq2seq import build as seq2seq
from orchestrator_stages.seq2seq.build import BATCH, TOKENS
from orchestrator_stages.seq2seq.checks import check_prepared
from orchestrator_stages.seq2seq.host import Detokenise, Numbers, Tokenise
from orchestrator_stages.seq2seq.rules import Rules

__all__ = ["from_transformers"]


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
    messages: bool = False,
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
        check_every: How many tokens are made between two looks at whether all sequences have ended; the result does
            not depend on it.
        name: The pipeline's name; by default the model's type.
        messages: Take conversations, not texts.
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
    rules = prompt_rules(bare, options)
    # Numbers are drawn by the place of a row, and results are as wide as the longest one: rows are a batch only where
    # host stages on both sides of the networks see all of them.
    rows = Dim("batch", buckets=batch, batch=tokenizer is not None or messages)
    chat = processor or tokenizer if messages else None
    reader = tokenizer or getattr(chat, "tokenizer", chat)
    return _Continuation(bare, rules, rows, _prompt_dim(bare, tokens, rules.new), reader, chat).draw(
        name or config.model_type, check_every
    )


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


class _Continuation:
    """A model that goes on with its prompt, and what its pipeline is drawn of."""

    def __init__(
        self, model: Any, rules: Rules, rows: Dim, tokens: Dim, tokenizer: Any, chat: Any = None
    ) -> None:
        self.rules = rules
        self.rows = rows
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.chat = chat
        self.slots = tokens.buckets[-1] + rules.new
        self.generator = Generator(own_tree(model), self.slots)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        rules.check(vocabulary)
        self.choose = NextToken(rules, vocabulary)

    def draw(self, name: str, check_every: int) -> Pipeline:
        """Draws the pipeline."""
        # The prompt, and the first token after it; then a loop for all others.
        pipeline = Pipeline(name)
        ids, mask = self._prompt(pipeline)
        begin = pipeline.add("begin", BeginTokens(self.rules.new, self.rules.pad))(ids, mask)
        prompt = pipeline.add("prefill", self.generator.prefill)(begin["input_ids"], begin["attention_mask"])
        numbers = []
        if self.rules.sampling is not None:
            draw = pipeline.add("numbers", Numbers(self.rules.new, self.rows), device="host")
            numbers = [draw(pipeline.input("seed", int), ids)]
        state = [begin[port] for port in token_specs(self.rows, self.rules.new)]
        first = pipeline.add("choose", self.choose)(prompt["logits"], *state, *numbers)
        chosen = pipeline.loop(
            "decode",
            self._body(),
            carry={port: (first if port in self._choice else prompt)[port] for port in self._carries},
            inputs={"mask": prompt["mask"], **dict(zip(("numbers",), numbers, strict=False))},
            until="done",
            max_steps=self.rules.new - 1,
            check_every=check_every,
            outputs=("chosen",),
        )
        # What comes out is as generate() returns it, prompts first.
        finish = pipeline.add("finish", JoinPrompt(self.rules, self.rows), device="host")
        sequences, added = finish(ids, chosen)
        pipeline.output("tokens", sequences)
        if self.tokenizer is not None:
            read = pipeline.add("detokenise", Detokenise(self.tokenizer), device="host")
            pipeline.output("text", read(added))
        return pipeline

    def _prompt(self, pipeline: Pipeline) -> tuple[Any, Any]:
        if self.chat is not None:
            converse = ChatPrompt(self.chat, self.rows, self.tokens, self.rules.pad)
            ids, mask = pipeline.add("converse", converse, device="host")(pipeline.input("messages", list))
            return ids, mask
        if self.tokenizer is not None:
            stage = Tokenise(self.tokenizer, self.rows, self.tokens, self.rules.pad, side="left")
            ids, mask = pipeline.add("tokenise", stage, device="host")(pipeline.input("text", list))
            return ids, mask
        dims = (self.rows, self.tokens)
        return (
            pipeline.input("input_ids", TensorSpec(dims, torch.int64, pad=self.rules.pad)),
            pipeline.input("attention_mask", TensorSpec(dims, torch.int64, pad=0)),
        )

    @property
    def _choice(self) -> Sequence[str]:
        """What the choice of a token gives to the next iteration."""
        return ("token", *token_specs(self.rows, self.rules.new))

    @property
    def _carries(self) -> Sequence[str]:
        """What one iteration gives to the next."""
        return (*self._choice, *self.generator.specs(self.rows))

    def _body(self) -> Pipeline:
        """One iteration: a token in, the next one out."""
        body = Pipeline("next-token")
        specs = {
            "token": TensorSpec((self.rows,), torch.int64),
            "mask": TensorSpec((self.rows, self.slots), torch.int64),
            **self.generator.specs(self.rows),
            **token_specs(self.rows, self.rules.new),
        }
        if self.rules.sampling is not None:
            specs["numbers"] = TensorSpec((self.rules.new, self.rows))
        values = {port: body.input(port, spec) for port, spec in specs.items()}
        ports = ("token", "mask", *self.generator.specs(self.rows))
        decode = body.add("decode", self.generator.decode, inputs=ports, aliases=self.generator.aliases)
        token = decode(*(values[port] for port in ports))
        state = [
            values[port] for port in (*token_specs(self.rows, self.rules.new), "numbers") if port in values
        ]
        following = body.add("choose", self.choose)(token["logits"], *state)
        for port in (*self._carries, "done"):
            body.output(port, (token if port in self.generator.specs(self.rows) else following)[port])
        return body

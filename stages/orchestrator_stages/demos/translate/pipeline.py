"""The pipeline ``translate``: a text in, its translation out.

    text -> tokenize -> for the sentences of each length: encode -> begin -> decode, decode, ... -> detokenize

Sentences are grouped by length and translated in batches. For a batch, ``encode`` runs once; ``decode`` is the
body of a loop that ends when the last sentence of the batch has. What it carries from one token to the next is of fixed
size and stays on the device, and so do the keys and values that it looks up; of each iteration the host sees one bool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.demos.translate.student import (
    DECODER_LAYERS,
    FACTOR,
    HEADS,
    LONGEST,
    NOTHING,
    WIDTH,
)
from orchestrator_stages.demos.translate.tokens import LENGTHS
from orchestrator_stages.demos.translate.trained import checked_direction

BATCHES = (1, 4, 8, 16)
"""Numbers of sentences that are translated at once."""

EXAMPLES = {
    "en-pt": "How are you today? There is no coffee left in the kitchen.",
    "pt-en": "Como você está hoje? Não há café na cozinha.",
}
"""What is translated when nobody gives a text."""


def translate(
    *,
    direction: str = "en-pt",
    tokens: Sequence[int] = LENGTHS,
    sentences: Sequence[int] = BATCHES,
) -> Pipeline:
    """Builds the pipeline.

    Its input is ``text``, its output ``translation``, both a ``str`` of any number of lines, each of any number of
    sentences; they keep their order. An empty text gives an empty one.

    Args:
        direction: ``en-pt``, English to Portuguese, or ``pt-en``.
        tokens: Lengths of sentences in tokens that the networks are compiled for; a sentence longer than the
            largest is an error.
        sentences: Numbers of sentences that are translated at once.

    Raises:
        GraphError: There is no such direction, or a length beyond the positions that the networks know.
    """
    # Checked before anything is drawn: the networks know no position beyond, and their files are by direction.
    checked_direction(direction)
    longest = max(tokens)
    if longest > LONGEST:
        raise GraphError(f"A sentence has at most {LONGEST} tokens, not {longest}.", tokens=longest)
    pipeline = Pipeline("translate")
    tokenize = pipeline.add(
        "tokenize",
        "translate.tokenize",
        device="host",
        config={"direction": direction, "longest": longest},
    )
    detokenize = pipeline.add(
        "detokenize", "translate.detokenize", device="host", config={"direction": direction}
    )
    ids, layout = tokenize(pipeline.input("text", str))
    translations = pipeline.map("sentences", _sentence(direction, tokens, sentences), over={"ids": ids})
    pipeline.output("translation", detokenize(translations, layout))
    pipeline.example_inputs = lambda _sizes: {"text": EXAMPLES[direction]}
    return pipeline


def _sentence(direction: str, tokens: Sequence[int], sentences: Sequence[int]) -> Pipeline:
    """A batch of sentences of one length: ``ids`` to ``translations``."""
    # As many steps as the longest sentence that is compiled may need; each translation ends by its own length.
    steps = min(LONGEST, math.ceil(FACTOR * max(tokens)))
    body = Pipeline("sentence")
    spec = TensorSpec(
        (Dim("sentences", sentences, batch=True), Dim("tokens", tokens)), torch.int64, pad=NOTHING
    )
    ids = body.input("ids", spec)
    read = body.add("encode", "translate.encode", config={"direction": direction})(ids)
    initial_values = body.add("begin", "translate.begin", config={"steps": steps})(ids)
    translations = body.loop(
        "write",
        _step(direction, steps),
        carry={name: initial_values[name] for name in ("token", "step", "state", "finished", "written")},
        inputs={"ids": ids, "keys": read["keys"], "values": read["values"]},
        until="done",
        max_steps=steps,
        outputs=("written",),
    )
    body.output("written", translations)
    return body


def _step(direction: str, steps: int) -> Pipeline:
    """One token of a batch of translations."""
    # Carried values come out under the names that they went in by; keys and values are looked up, and stay.
    step = Pipeline("token")
    lookup = TensorSpec(("sentences", DECODER_LAYERS, HEADS, "tokens", WIDTH // HEADS))
    specs = {
        "token": TensorSpec(("sentences",), torch.int64),
        "step": TensorSpec((1,), torch.int64),
        "state": TensorSpec(("sentences", DECODER_LAYERS, WIDTH)),
        "finished": TensorSpec(("sentences",), torch.bool),
        "written": TensorSpec(("sentences", steps), torch.int64),
        "ids": TensorSpec(("sentences", "tokens"), torch.int64),
        "keys": lookup,
        "values": lookup,
    }
    inputs = {name: step.input(name, spec) for name, spec in specs.items()}
    after = step.add("decode", "translate.decode", config={"direction": direction})(**inputs)
    for name in ("token", "step", "state", "finished", "written", "done"):
        step.output(name, after[name])
    return step

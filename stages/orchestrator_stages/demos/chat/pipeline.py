"""The pipeline ``chat``: a picture of shapes and a question about it in, the answer in words out.

    image, question -> ask -> model: (vision -> projector -> merge -> prefill -> decode, once a token) -> answer

The model is one of transformers' own, and ``from_transformers`` makes its pipeline: nothing here is written for it.
What the vision tower saw stays on the device, and so does the cache; tokens alone come off it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

from orchestrator import Pipeline
from orchestrator_stages.demos.chat.ask import LONGEST, Answer, AskQuestion
from orchestrator_stages.demos.chat.model import load_model
from orchestrator_stages.demos.chat.scenes import draw, random_scene
from orchestrator_stages.demos.faces.letterbox import PHOTO
from orchestrator_stages.generation.build import from_transformers

WORDS_OF_AN_ANSWER = 24
"""Tokens of an answer, at most; the longest description of three shapes has 20."""

EXAMPLE, EXAMPLE_SIDE = 3, 288
"""Seed of the example picture, and its height and width in pixels."""

QUESTION = "describe the picture."


def example_inputs(_sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns a picture of shapes, the same each time, and a question about it."""
    (picture,) = draw([random_scene(random.Random(EXAMPLE))], EXAMPLE_SIDE)
    image = (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous()
    return {"image": image, "question": QUESTION}


def chat(*, max_new_tokens: int = WORDS_OF_AN_ANSWER, check_every: int = 1) -> Pipeline:
    """Builds the pipeline.

    Its inputs are ``image`` ``[height, width, 3]``, uint8, RGB, of any size, and ``question``, a text such as ``what
    colour is the circle?``, ``how many squares are there?``, ``what is left of the triangle?`` or ``describe the
    picture.``. Its output is ``answer``, a text.

    Args:
        max_new_tokens: Tokens of an answer, at most.
        check_every: How many tokens are made between two looks at whether the answer has ended.
    """
    pipeline = Pipeline("chat")
    pipeline.example_inputs = example_inputs
    image, question = pipeline.input("image", PHOTO), pipeline.input("question", str)
    prompt = pipeline.add("ask", AskQuestion(), device="host")(image, question)
    model = from_transformers(
        load_model(),
        max_new_tokens=max_new_tokens,
        batch=(1,),
        tokens=(LONGEST,),
        items=(1,),
        check_every=check_every,
        name="model",
    )
    ports = {name: prompt[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    tokens = pipeline.add("model", model)(**ports)
    answer = pipeline.add("answer", Answer(), device="host")(tokens)
    pipeline.output("answer", answer)
    return pipeline

"""A language model of NxD Inference as a pipeline; needs NxD Inference, and for `nxdi` a device."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator import Pipeline, TensorSpec
from orchestrator_neuron import from_nxdi


def generation(application: Any, steps: int) -> Pipeline:
    """Returns a pipeline that reads a prompt and goes on with it, one sequence at a time.

    Args:
        application: A language model of NxD Inference, such as a ``NeuronLlamaForCausalLM``, neither compiled nor
            loaded; without sampling on the device.
        steps: How many tokens follow the first one.
    """
    # 1. The application's submodels: each is a stage, and both are one application, with one set of weights.
    submodels = from_nxdi(application)
    prompt, decode = submodels.context_encoding_model, submodels.token_generation_model
    length, token = application.neuron_config.seq_len, TensorSpec((1, 1), torch.int32)

    def likeliest(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, -1:].argmax(-1).to(torch.int32)

    def advance(place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = torch.arange(length)[None] < place
        return before.to(torch.int32), place + 1

    # 2. A step: what is in the cache before this place is read, this place is written.
    body = Pipeline("step")
    now, place = body.input("token", token), body.input("place", token)
    cache = body.input("cache", decode.inputs["cache"])
    mask, following = body.add("advance", advance, outputs=("mask", "place"))(place)
    result = body.add("decode", decode)(input_ids=now, attention_mask=mask, position_ids=place, cache=cache)
    body.output("token", body.add("pick", likeliest)(result["logits"]))
    body.output("place", following)
    body.output("cache", result["cache"])
    body.output("logits", result["logits"])

    # 3. The prompt, whose ports have the application's buckets, and the loop, whose carry is the cache.
    pipeline = Pipeline("language-model")
    values = {name: pipeline.input(name, spec) for name, spec in prompt.inputs.items()}
    start = pipeline.add("prefill", prompt)(**values)
    carry = {
        "token": pipeline.add("pick", likeliest)(start["logits"]),
        "place": pipeline.input("place", token),
        "cache": start["cache"],
    }
    pipeline.output("first", start["logits"])
    pipeline.output("logits", pipeline.loop("talk", body, carry=carry, max_steps=steps, collect=("logits",)))
    return pipeline

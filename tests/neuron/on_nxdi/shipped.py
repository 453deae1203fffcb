"""NxD Inference's own models: applications with several submodels, run by the plugin and by their own code."""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from on_nxdi.kit import RANKS, close, count_traffic, plain_operations
from orchestrator import Pipeline, PlanError, TensorSpec
from orchestrator.errors import GraphError
from orchestrator_neuron import from_nxdi

LENGTH, PROMPT, STEPS = 16, 8, 4
INT = torch.int32
LINK = ("uploads", "upload_bytes", "downloads", "download_bytes")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}


def llama(**neuron: Any) -> tuple[Callable[[], Any], nn.Module]:
    """A maker of applications, all of one checkpoint, and transformers' own model of it."""
    plain_operations()
    from neuronx_distributed_inference.models.config import NeuronConfig
    from neuronx_distributed_inference.models.llama.modeling_llama import (
        LlamaInferenceConfig,
        NeuronLlamaForCausalLM,
    )
    from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    path = tempfile.mkdtemp()
    model.save_pretrained(path)

    def make() -> Any:
        options = {
            "batch_size": 1,
            "seq_len": LENGTH,
            "max_context_length": PROMPT,
            "torch_dtype": torch.float32,
            "tp_degree": RANKS,
            "enable_bucketing": False,
        } | neuron
        config = LlamaInferenceConfig(NeuronConfig(**options), load_config=load_pretrained_config(path))
        return NeuronLlamaForCausalLM(path, config)

    return make, model


def by_itself(application: Any, ids: Tensor) -> Tensor:
    """Logits of a prompt's last token and of each step, as the application gives them by its own code."""
    folder = tempfile.mkdtemp()
    application.compile(folder)
    application.load(folder, skip_warmup=True)
    length = ids.shape[1]
    mask, places = torch.ones_like(ids), torch.arange(length)[None]
    logits = [application(input_ids=ids, attention_mask=mask, position_ids=places).logits]
    for step in range(STEPS):
        mask, place = torch.ones(1, length + step, dtype=torch.int64), torch.tensor([[length + step]])
        token = logits[-1][:, -1:].argmax(-1)
        logits.append(application(input_ids=token, attention_mask=mask, position_ids=place).logits)
    return torch.cat(logits, 1)


def generation(application: Any) -> Pipeline:
    """The pipeline of the page about applications."""
    script = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "how-to" / "nxdi_application.py"))
    return script["generation"](application, STEPS)


def request(ids: Tensor) -> dict[str, Tensor]:
    length = ids.shape[1]
    return {
        "input_ids": ids.to(INT),
        "attention_mask": torch.ones_like(ids, dtype=INT),
        "position_ids": torch.arange(length, dtype=INT)[None],
        "place": torch.tensor([[length]], dtype=INT),
    }


def logits_of(results: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([results["first"], *results["logits"]], 1)


def check_language_model_with_two_submodels():
    make, reference = llama()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    expected = by_itself(make(), ids)
    # That its own code is right: transformers' model gives the same tokens.
    tokens = reference.generate(ids, max_new_tokens=STEPS + 1, do_sample=False)[:, ids.shape[1] :]
    assert tokens.equal(expected.argmax(-1))
    pipeline = generation(make())
    plan = pipeline.plan("nxdi", options={"tp_degree": RANKS})
    (state,), (application,) = plan.states, plan.applications
    assert (state.start, application.stages) == ("prefill.cache", ("prefill", "talk/decode"))
    with plan.compile(tempfile.mkdtemp()).load() as session:
        for length in (ids.shape[1], 3, ids.shape[1]):
            short = ids[:, :length]
            with count_traffic() as counts:
                logits = logits_of(session(**request(short)))
            if length == ids.shape[1]:
                assert logits.equal(expected)
            tokens = reference.generate(short, max_new_tokens=STEPS + 1, do_sample=False)[:, length:]
            assert tokens.equal(logits.argmax(-1))
            # Up go the padded prompt and its length; the cache stays, and so do tokens and masks.
            assert counts.all() == tuple(plan.summary[name] for name in LINK), (counts, plan.summary)
            assert counts.up_bytes == RANKS * 4 * (3 * PROMPT + 1)
            assert (counts.down, counts.down_bytes) == (1 + STEPS, expected.nbytes)
            sys.stdout.write(f"{plan.pipeline}: {counts}, as planned\n")
    # Each rank has a part of the layers, and all of the rest.
    parameters = sum(parameter.nbytes for parameter in reference.parameters())
    assert parameters / RANKS < application.weights < parameters
    for device, options in (("cpu", {}), ("neuron-emulated", {"tp_degree": RANKS})):
        with pipeline.plan(device, options=options).load() as session:
            close(logits_of(session(**request(ids))), expected, 1e-6)


def check_what_an_application_keeps_is_never_handed_over():
    entries = from_nxdi(llama()[0]())
    pipeline = Pipeline("no-loop")
    prompt = entries.context_encoding_model
    values = {name: pipeline.input(name, spec) for name, spec in prompt.inputs.items()}
    pipeline.output("logits", pipeline.add("prefill", prompt)(**values)["logits"])
    with pytest.raises(PlanError, match=r"'prefill.cache' is memory that the application"):
        pipeline.plan("nxdi", options={"tp_degree": RANKS})
    with pytest.raises(AttributeError, match="no submodel 'token_model'"):
        _ = entries.token_model
    with pytest.raises(GraphError, match="NeuronLlamaForCausalLM has several submodels"):
        pipeline.add("whole", llama()[0]())
    with pytest.raises(GraphError, match="there is none called 'decoder'"):
        from_nxdi(llama()[0](), outputs={"decoder": ("logits",)})


class Scale(nn.Module):
    def __init__(self, config: Any, names: tuple[str, ...] = ("scale",)) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.ones(4)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _scales(*submodels: tuple[int, tuple[str, ...]]) -> Any:
    """An application with a submodel for each size and names of weights."""
    from orchestrator_neuron.nxdi import classes

    class Wrapper(classes.ModelWrapper):
        size = 0

        def input_generator(self) -> list[tuple[Tensor, ...]]:
            return [(torch.ones(self.size, 4),)]

    class Scales(classes.NeuronApplicationBase):
        def forward(self, x: Tensor) -> Any:
            return self.models[0].forward(x)

        @classmethod
        def get_state_dict(cls, path: str, config: Any) -> dict[str, Tensor]:
            return {"scale": torch.arange(4.0)}

    config = classes.InferenceConfig(classes.NeuronConfig(torch_dtype=torch.float32, tp_degree=RANKS))
    application = Scales(tempfile.mkdtemp(), config)
    for number, (size, names) in enumerate(submodels):
        wrapper = Wrapper(config, Scale, tag=f"part{number}", model_init_kwargs={"names": names})
        wrapper.size = size
        application.models.append(wrapper)
    return application


def check_submodels_of_any_kind():
    entries = from_nxdi(
        _scales((2, ("scale",)), (3, ("scale",))),
        outputs={f"part{number}": {"y": TensorSpec((number + 2, 4))} for number in range(2)},
    )
    pipeline = Pipeline("scales")
    x = pipeline.input("x", TensorSpec((2, 4)))
    first = pipeline.add("first", entries.part0)(x)
    pipeline.output(
        "y", pipeline.add("second", entries.part1, inputs={"x": TensorSpec((3, 4), pad=1)})(first)
    )
    plan = pipeline.plan("nxdi", options={"tp_degree": RANKS})
    assert [application.stages for application in plan.applications] == [("first", "second")]
    value, scale = torch.randn(2, 4), torch.arange(4.0)
    with plan.compile(tempfile.mkdtemp()).load() as session, count_traffic() as counts:
        close(session(x=value)["y"], torch.cat([value * scale, torch.ones(1, 4)]) * scale)
    assert counts.all() == tuple(plan.summary[name] for name in LINK)


def check_submodels_that_cannot_be_one_application():
    outputs = {f"part{number}": {"y": TensorSpec((2, 4))} for number in range(2)}
    with pytest.raises(
        GraphError, match=r"'part0' and 'part1' of Scales both take inputs of the shapes \[\[2, 4\]\]"
    ):
        from_nxdi(_scales((2, ("scale",)), (2, ("scale",))), outputs=outputs)
    with pytest.raises(
        GraphError, match=r"'part1' of Scales has weights that the first one lacks, \['other'\]"
    ):
        from_nxdi(_scales((2, ("scale",)), (3, ("scale", "other"))), outputs=outputs)
    with pytest.raises(GraphError, match="What the submodel 'part0' gives is not known"):
        from_nxdi(_scales((2, ("scale",)), (3, ("scale",))))

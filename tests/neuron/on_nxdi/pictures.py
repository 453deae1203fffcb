"""NxD Inference's own models for pictures and text: what a vision encoder gives stays on the device."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from on_nxdi.kit import RANKS, count_traffic, plain_operations
from on_nxdi.shipped import INT, LENGTH, LINK, SIZES, STEPS
from orchestrator import Pipeline, TensorSpec
from orchestrator_neuron import from_nxdi

PICTURE, WIDTH = 39, SIZES["hidden_size"]
VISION = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": WIDTH,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
TOKENS = ("image", "video", "vision_start", "vision_end", "vision")


def qwen2_vl() -> Callable[[], Any]:
    """A maker of applications, all of one checkpoint."""
    plain_operations()
    from neuronx_distributed_inference.models.qwen2_vl import modeling_qwen2_vl as family
    from neuronx_distributed_inference.models.qwen2_vl.modeling_qwen2_vl_vision import NeuronQwen2VisionModel
    from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    _see_grids(NeuronQwen2VisionModel)
    text = {
        **{name: value for name, value in SIZES.items() if name != "head_dim"},
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "rope_theta": 10000.0,
    }
    tokens = {f"{name}_token_id": PICTURE - place for place, name in enumerate(TOKENS)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen2VLConfig(text_config=text, vision_config=VISION, tie_word_embeddings=False, **tokens)
        model = Qwen2VLForConditionalGeneration(config).eval()
    path = Path(tempfile.mkdtemp())
    model.save_pretrained(path)
    # In published checkpoints the text's part is not nested.
    whole = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**whole["text_config"], **whole}))

    def make() -> Any:
        shared = {"batch_size": 1, "seq_len": LENGTH, "torch_dtype": torch.float32, "tp_degree": RANKS}
        words = family.Qwen2VLNeuronConfig(**shared, max_context_length=LENGTH, enable_bucketing=False)
        pictures = family.Qwen2VLNeuronConfig(
            **shared,
            buckets=[1],
            enable_bucketing=True,
            fused_qkv=True,
            attn_kernel_enabled=False,
            default_image_width=56,
            default_image_height=56,
        )
        config = family.Qwen2VLInferenceConfig(words, pictures, load_config=load_pretrained_config(str(path)))
        return family.NeuronQwen2VLForCausalLM(str(path), config)

    return make


def _see_grids(kind: Any) -> None:
    """Lets a vision model look into its grid of patches, as it can while XLA traces it: `torch.export` cannot."""
    forward, grids = kind.forward, {}

    def with_grid(self: Any, hidden_states: Tensor, grid_thw: Tensor) -> Tensor:
        if not (isinstance(grid_thw, FakeTensor) or grid_thw.is_meta):
            grids[self] = grid_thw.numpy()
        return forward(self, hidden_states, grids[self])

    kind.forward = with_grid


def generation(application: Any) -> Pipeline:
    """A picture, a prompt with it, then steps in a loop."""
    embeddings = TensorSpec((1, LENGTH, WIDTH))
    submodels = from_nxdi(
        application,
        inputs={"vision_encoder_model": ("hidden_states",)},
        outputs={"vision_encoder_model": {"embeddings": embeddings}},
    )
    vision, prompt, decode = submodels.entries["vision_encoder_model"], *list(submodels.entries.values())[:2]
    one, body, pipeline = TensorSpec((1, 1), INT), Pipeline("step"), Pipeline("picture-and-text")

    def likeliest(logits: Tensor) -> Tensor:
        return logits[:, -1:].argmax(-1).to(INT)

    def advance(place: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.arange(LENGTH)[None] < place).to(INT), place + 1

    token, place = body.input("token", one), body.input("place", one)
    cache = body.input("cache", decode.inputs["cache"])
    mask, following = body.add("advance", advance, outputs=("mask", "place"))(place)
    step = body.add("decode", decode)(input_ids=token, attention_mask=mask, position_ids=place, cache=cache)
    body.output("token", body.add("pick", likeliest)(step["logits"]))
    body.output("place", following)
    body.output("cache", step["cache"])
    body.output("logits", step["logits"])

    values = {
        name: pipeline.input(name, spec)
        for name, spec in prompt.inputs.items()
        if name != "vision_embeddings"
    }
    patches = pipeline.input("patches", vision.inputs["hidden_states"])
    start = pipeline.add("prefill", prompt)(
        vision_embeddings=pipeline.add("vision", vision)(patches), **values
    )
    carry = {
        "token": pipeline.add("pick", likeliest)(start["logits"]),
        "place": pipeline.input("place", one),
        "cache": start["cache"],
    }
    pipeline.output("first", start["logits"])
    pipeline.output("logits", pipeline.loop("talk", body, carry=carry, max_steps=STEPS, collect=("logits",)))
    return pipeline


def check_pictures_and_text_are_one_application():
    make = qwen2_vl()
    ids = torch.tensor([[37, *[PICTURE] * 4, 36, 5, 6]])
    patches, grid, length = torch.randn(16, 3 * 2 * 14 * 14), torch.tensor([[1, 4, 4]]), ids.shape[1]
    # 1. By its own code, which drops what is None and then takes the next argument for it.
    application, folder = make(), tempfile.mkdtemp()
    application.compile(f"{folder}/")
    application.load(folder, skip_warmup=True)
    mask, places = torch.ones_like(ids), torch.arange(length)[None]
    logits = [
        application(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            pixel_values=patches,
            image_grid_thw=grid,
            sampling_params=torch.ones(1, 3),
        ).logits
    ]
    for step in range(STEPS):
        mask, place = torch.ones(1, length + step, dtype=torch.int64), torch.tensor([[length + step]])
        token = logits[-1][:, -1:].argmax(-1)
        step_inputs = {"input_ids": token, "attention_mask": mask, "position_ids": place}
        logits.append(application(**step_inputs, sampling_params=torch.ones(1, 3)).logits)
    # 2. By the plugin: places of the picture's tokens, the rest of them the last place of the bucket.
    spots = torch.full((1, LENGTH, 1), LENGTH - 1, dtype=INT)
    spots[0, :4, 0] = torch.arange(1, 5)
    request = {
        "patches": patches,
        "input_ids": ids.to(INT),
        "attention_mask": torch.ones_like(ids, dtype=INT),
        "position_ids": torch.arange(length, dtype=INT)[None],
        "vision_mask": spots,
        "place": torch.tensor([[length]], dtype=INT),
    }
    plan = generation(make()).plan("nxdi", options={"tp_degree": RANKS})
    assert [application.stages for application in plan.applications] == [("vision", "prefill", "talk/decode")]
    with plan.compile(tempfile.mkdtemp()).load() as session:
        for _ in range(2):
            with count_traffic() as counts:
                results = session(**request)
            assert torch.cat([results["first"], *results["logits"]], 1).equal(torch.cat(logits, 1))
            assert counts.all() == tuple(plan.summary[name] for name in LINK), (counts, plan.summary)
            assert counts.up_bytes == RANKS * (patches.nbytes + 4 * (4 * LENGTH + 1))
            sys.stdout.write(f"{plan.pipeline}: {counts}, as planned\n")

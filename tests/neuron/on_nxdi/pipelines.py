"""Whole pipelines through plan, compile and load; the simulated device must count what the plan promised."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from on_nxdi.adopted import guide, guide_applications, guide_config, guide_pipeline
from on_nxdi.chains import LARGE, chain
from on_nxdi.kit import RANKS, close, count_traffic
from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator_neuron import from_nxdi
from orchestrator_stages.demos.model5 import model5
from orchestrator_stages.demos.vision_text import vision_text


def _plan_traffic(plan, sizes=None):
    summary = plan.summary_for(sizes) if sizes else plan.summary
    return tuple(summary[name] for name in ("uploads", "upload_bytes", "downloads", "download_bytes"))


def _run(pipeline, requests, **options):
    """Runs requests `(sizes, inputs)` on `nxdi`, compares results with those of `cpu`, and counts with promises."""
    plan = pipeline.plan(device="nxdi", options={"tp_degree": RANKS, **options})
    reference = pipeline.plan(device="cpu").load()
    with plan.compile(tempfile.mkdtemp()).load() as session:
        for sizes, inputs in requests:
            with count_traffic() as counts:
                results = session(**inputs)
            for name, value in reference(**inputs).items():
                close(results[name], value)
            assert counts.all() == _plan_traffic(plan, sizes)
            sys.stdout.write(f"{plan.pipeline} {sizes}: {counts}, as planned\n")
    return plan


def check_vision_text():
    def request(size):
        return {"batch": size}, {"image": torch.randn(size, 3, 224, 224), "text": torch.randn(size, 256)}

    plan = _run(vision_text(batch=(4, 8)), [request(8), request(4), request(3), request(11)])
    assert _plan_traffic(plan)[:1] == (2 * RANKS,)
    assert _plan_traffic(plan)[2] == 1


def check_model5():
    def request(size):
        return {"batch": size}, {
            "x": torch.randn(size, 64),
            "aux1": torch.randn(size, 16),
            "aux2": torch.randn(size, 24),
        }

    plan = _run(model5(), [request(4), request(1), request(2), request(9)])
    assert (_plan_traffic(plan)[0], _plan_traffic(plan)[2]) == (3 * RANKS, 2)


def _guide_request():
    return [({}, {"image": torch.randn(4, 3, 224, 224), "text": torch.randn(4, 256)})]


def check_wrappers_of_the_guide():
    classes = guide()
    config = guide_config(classes)
    kinds = (classes.VisionModelWrapper, classes.TextModelWrapper)
    _run(guide_pipeline(*(from_nxdi(kind, config=config) for kind in kinds)), _guide_request())


def check_objects_of_the_guide_added_as_they_are():
    """`Pipeline.add` takes NxD Inference's objects; the plugin adopts them."""
    classes = guide()
    config = guide_config(classes)
    _run(
        guide_pipeline(classes.VisionModelWrapper(config), classes.TextModelWrapper(config)), _guide_request()
    )
    _, applications = guide_applications(classes, config)
    _run(guide_pipeline(*applications), _guide_request())


def check_guide_in_its_own_sizes():
    """Batch 32: the features stay on the device, the result is [32, 1024] on the host."""
    inputs = {"image": torch.randn(32, 3, 224, 224), "text": torch.randn(32, 256)}
    plan = _run(vision_text(), [({"batch": 32}, inputs)])
    assert dict(plan.outputs).keys() == {"logits"}


def check_chain_with_values_of_236_megabytes():
    pipeline = chain(LARGE)
    plan = _run(pipeline, [({}, {"x": torch.rand(LARGE[:2])})])
    assert max(edge.bytes for edge in plan.edges) == 235_929_600
    assert _plan_traffic(plan) == (RANKS, RANKS * 4 * LARGE[0] * LARGE[1], 1, 4 * LARGE[0] * LARGE[1])


def check_applications_of_the_guide():
    classes = guide()
    _, applications = guide_applications(classes, guide_config(classes))
    _run(guide_pipeline(*map(from_nxdi, applications)), _guide_request())


def check_application_called_twice_is_copied_out():
    """It cannot be compiled a second time, so the first value leaves its buffer before the second run."""
    classes = guide()
    _, (theirs, _) = guide_applications(classes, guide_config(classes))
    pipeline = Pipeline("twice-own")
    vision = pipeline.add("vision", from_nxdi(theirs))
    left, right = (pipeline.input(name, TensorSpec((4, 3, 224, 224))) for name in ("left", "right"))
    near = pipeline.add("near", lambda a, b: (a - b).square().sum(1))
    pipeline.output("far", near(vision(left), vision(right)))
    inputs = {name: torch.randn(4, 3, 224, 224) for name in ("left", "right")}
    _run(pipeline, [({}, inputs)])


def check_guide_on_the_emulated_device():
    classes = guide()
    config = guide_config(classes)
    kinds = (classes.VisionModelWrapper, classes.TextModelWrapper)
    pipeline = guide_pipeline(*(from_nxdi(kind, config=config) for kind in kinds))
    ((_, inputs),) = _guide_request()
    reference = pipeline.plan(device="cpu").load()(**inputs)
    with pipeline.plan(device="neuron-emulated", options={"tp_degree": RANKS}).load() as session:
        close(session(**inputs)["logits"], reference["logits"])


def check_stream_and_kept_values():
    pipeline = model5(batch=(4,))
    inputs = [
        {"x": torch.randn(4, 64), "aux1": torch.randn(4, 16), "aux2": torch.randn(4, 24)} for _ in range(4)
    ]
    plan = pipeline.plan(device="nxdi", options={"tp_degree": RANKS})
    reference = pipeline.plan(device="cpu").load()
    with plan.compile(tempfile.mkdtemp()).load() as session:
        for results, request in zip(session.stream(inputs, depth=2), inputs, strict=True):
            for name, value in reference(**request).items():
                close(results[name], value)
        results_on_device = session.run(inputs[0], keep_on_device=("m3",))
        session(**inputs[1])
        close(results_on_device["m3"][0][0].to("cpu"), reference(**inputs[0])["m3"])


class Pair(nn.Module):
    def forward(self, x):
        return x[:, :3] * 2, x[:, 3:].sum(1)


def check_hazards_folds_and_several_outputs():
    """A stage called twice with both values in use, a pad between stages, one output on the device and one not."""
    pipeline = Pipeline("twice")
    size = Dim("n", buckets=(2, 4), batch=True)
    # Both results of `encode` are read by `merge`, so the second call must not run in the buffer of the first.
    left, right = (pipeline.input(name, TensorSpec((size, 8), pad=0)) for name in ("left", "right"))
    encode = pipeline.add("encode", nn.Linear(8, 6))
    split = pipeline.add("split", Pair(), outputs=("low", "sum"))
    wide = pipeline.add("wide", nn.Linear(5, 4), inputs={"input": TensorSpec((size, 5), pad=1)})
    a, b = encode(left), encode(right)
    merge = pipeline.add("merge", lambda a, b, low: a * b.sum(1, keepdim=True) + low.sum(1, keepdim=True))
    low, total = split(a)
    pipeline.output("merged", merge(a, b, low))
    pipeline.output("wide", wide(low))
    pipeline.output("low", low)
    pipeline.output("total", total)
    requests = [({"n": n}, {"left": torch.randn(n, 8), "right": torch.randn(n, 8)}) for n in (4, 2, 1, 7)]
    for place in ("cost", "producer", "consumer", "program", "host"):
        _run(pipeline, requests, adapters=place)


def check_sharded_output_is_joined():
    whole = nn.Linear(4, 4 * RANKS)
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    save_file(whole.state_dict(), path)
    cut = {"checkpoint": str(path), "sharded": {"output": 1}, "shard_weights": {"weight": 0, "bias": 0}}
    pipeline = Pipeline("sharded")
    part = pipeline.add("part", nn.Linear(4, 4), config=cut)
    pipeline.output("y", part(pipeline.input("x", TensorSpec((2, 4)))))
    plan = pipeline.plan(device="nxdi", options={"tp_degree": RANKS})
    x = torch.randn(2, 4)
    with plan.compile(tempfile.mkdtemp()).load() as session, count_traffic() as counts:
        result = session(x=x)["y"]
    close(result, whole(x))
    assert counts.all() == _plan_traffic(plan)


class _Step(nn.Module):
    """One step of a denoising loop: the carry with the time and the text mixed in."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mix(x)) * t + text


class _Token(nn.Module):
    """One step of a decoder with a position: the next token, and whether all rows are done."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11)

    def forward(
        self, ids: torch.Tensor, position: torch.Tensor, memory: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        token = self.head(self.embed(ids) + memory + position * 0.3).argmax(-1)
        return {"ids": token, "position": position + 1, "done": (token == 3).all().reshape(1)}


def check_loops():
    """Carries stay on the device, in two programs that take turns; only slices, tokens and the end cross the link."""
    # 1. Two bodies: one that is carried for a number of steps, one that ends by a value.
    torch.manual_seed(4)
    step, token = Pipeline("step"), Pipeline("token")
    x, t, text = (
        step.input("x", TensorSpec(("batch", 8))),
        step.input("t", TensorSpec((1,))),
        step.input("text", TensorSpec(("batch", 8))),
    )
    step.output("x", step.add("mix", _Step().eval())(x, t, text))
    ids = token.input("ids", TensorSpec(("batch",), torch.int64))
    position, memory = (
        token.input("position", TensorSpec((1,))),
        token.input("memory", TensorSpec(("batch", 8))),
    )
    names = ("ids", "position", "done")
    values = token.add("next", _Token().eval(), outputs=names)(ids, position, memory)
    for name in names:
        token.output(name, values[name])

    # 2. The second loop reads the result of the first, which stays on the device in between.
    pipeline = Pipeline("loops")
    batch = Dim("batch", (2, 4))
    noise = pipeline.input("noise", TensorSpec((batch, 8), pad="repeat_first"))
    words = pipeline.input("words", TensorSpec((batch, 8), pad="repeat_first"))
    start = pipeline.input("start", TensorSpec((batch,), torch.int64, pad="repeat_first"))
    times = torch.linspace(1, 0, 5).reshape(5, 1)
    latents = pipeline.loop("denoise", step, carry={"x": noise}, each={"t": times}, inputs={"text": words})
    tokens = pipeline.loop(
        "decode",
        token,
        carry={"ids": start, "position": torch.zeros(1)},
        inputs={"memory": latents},
        until="done",
        max_steps=6,
        collect=("ids",),
        outputs=("ids[]",),
    )
    pipeline.output("latents", latents)
    pipeline.output("tokens", tokens)

    def request(size):
        return {"batch": size}, {
            "noise": torch.randn(size, 8),
            "words": torch.randn(size, 8),
            "start": torch.arange(size),
        }

    # 3. How often the second runs is known afterwards, and decides what the plan promises.
    plan = pipeline.plan(device="nxdi", options={"tp_degree": RANKS})
    steps = next(dim.name for dim in plan.dims if dim.decided_by)
    reference = pipeline.plan(device="cpu").load()
    with plan.compile(tempfile.mkdtemp()).load() as session:
        for size in (4, 2, 3):
            sizes, inputs = request(size)
            expectation = reference(**inputs)
            with count_traffic() as counts:
                results = session(**inputs)
            close(results["latents"], expectation["latents"])
            assert torch.equal(results["tokens"], expectation["tokens"])
            assert counts.all() == _plan_traffic(plan, {**sizes, steps: len(results["tokens"])})
            sys.stdout.write(f"{plan.pipeline} {sizes}: {counts}, as planned\n")
    assert sum(program.route > 0 for program in plan.programs) == 2

"""Golden plans: whole plans as a person reads them, kept beside this file.

A change of a plan shows as a change of a text file. When it is meant, write the files anew and read the difference:

    GOLDEN=write python -m pytest tests/plan/test_golden.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, Plan
from orchestrator.plan.steps import AdaptStep, LeafStep, body_of
from orchestrator_stages.demos.vision_text import vision_text as shipped
from tests.bodies import mapped, picture_model
from tests.kit import Double, host, linear, new, spec
from tests.planner.devices import on, ranked

FOLDER = Path(__file__).with_name("golden")


def tower() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16)
    ).eval()


def vision_text() -> Pipeline:
    pipeline = new("vision-text")
    image = pipeline.input("image", spec("batch", 3, 32, 32, pad="repeat_first"))
    text = pipeline.input("text", spec("batch", 12, pad=0))
    seen, read = pipeline.add("vision", tower())(image), pipeline.add("text", linear(12, 16))(text)
    joined = pipeline.add("join", lambda seen, read: torch.cat([seen, read], 1))(seen, read)
    pipeline.output("logits", pipeline.add("fusion", linear(32, 8))(joined))
    return pipeline


def fan_out() -> Pipeline:
    pipeline = new("fan-out")
    made = pipeline.add("make", linear(4, 6))(pipeline.input("x", spec(2, 4)))
    for name in ("left", "right"):
        pipeline.output(name, pipeline.add(name, Double())(made))
    pipeline.output("scaled", pipeline.add("scale", lambda value, factor: value * factor)(made, 3))
    pipeline.output("made", made)
    return pipeline


def crops() -> Pipeline:
    pipeline = new("crops")
    photo = pipeline.input("photo", spec(3, Dim.dynamic("h"), Dim.dynamic("w"), dtype=torch.uint8))
    stage = host(
        pipeline,
        "find",
        lambda photo: None,
        crops=spec(Dim("n", (8, 32)), 3, 24, 24, pad=0),
        notes=list,
    )
    found, notes = stage(photo)
    flat = pipeline.add("flat", nn.Flatten())(found)
    scores = pipeline.add("score", linear(3 * 24 * 24, 2))(flat)
    pipeline.output("scores", scores)
    pipeline.output("best", host(pipeline, "best", lambda scores, notes: None, best=dict)(scores, notes))
    return pipeline


def tokens() -> Pipeline:
    pipeline = new("tokens")
    value = pipeline.input("features", spec("batch", 5, 8, dtype=torch.float64, pad=0))
    ports = {"input": spec("batch", 8, 8, pad=-1, allow_cast=True)}
    wide = pipeline.add("encode", linear(8, 8), inputs=ports)(value)
    cut = pipeline.add("decode", linear(8, 4), inputs={"input": spec("batch", 6, 8, allow_slice=True)})(wide)
    pipeline.output("out", cut)
    return pipeline


def stereo() -> Pipeline:
    """One encoder sees two pictures; both features are compared, and one is padded for a head."""
    pipeline = ranked("stereo")
    encode, compare = pipeline.add("encode", linear(8, 4)), pipeline.add("compare", nn.PairwiseDistance())
    left = encode(pipeline.input("left", spec("batch", 8, pad=0)))
    right = encode(pipeline.input("right", spec("batch", 8, pad=0)))
    pipeline.output("distance", compare(left, right))
    wide = pipeline.add("head", linear(6, 3), inputs={"input": spec("batch", 6, pad=0)})
    pipeline.output("logits", wide(left))
    return pipeline


class Step(nn.Module):
    """The next latents, and whether they are calm."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.tanh(self.mix(x)) * t + text
        return {"x": x, "calm": (x.abs() < 0.1).all().reshape(1)}


def denoising() -> Pipeline:
    """A loop that carries, slices, shares, collects, and may end early."""
    body = ranked("step")
    given = [body.input(name, spec(*dims)) for name, dims in (("x", ("batch", 8)), ("t", (1,)))]
    made = body.add("mix", Step().eval())(*given, body.input("text", spec("batch", 8)))
    body.output("x", made["x"])
    body.output("calm", made["calm"])
    pipeline = ranked("denoising")
    noise, text = (pipeline.input(name, spec("batch", 8, pad=0)) for name in ("noise", "text"))
    last, all_ = pipeline.loop(
        "denoise",
        body,
        carry={"x": noise},
        each={"t": torch.linspace(1, 0, 10).reshape(10, 1)},
        inputs={"text": text},
        until="calm",
        collect=("x",),
        outputs=("x", "x[]"),
    )
    pipeline.output("picture", pipeline.add("decode", linear(8, 4))(last))
    pipeline.output("all", all_)
    return pipeline


CASES: dict[str, Callable[[], Plan]] = {
    "vision-text": lambda: vision_text().plan(sizes={"batch": (8, 32)}),
    "vision-text-on-cuda": lambda: vision_text().plan("cuda", sizes={"batch": (8, 32)}),
    "fan-out-on-two-devices": lambda: fan_out().plan(
        placement={"make": "cuda:0", "right": "cpu", "left": "cuda:0", "scale": "cpu"}
    ),
    "fan-out-forced-to-the-host": lambda: fan_out().plan("cuda", residency={"make.output -> left.x": "host"}),
    "born-dim": lambda: crops().plan("cuda"),
    "fixed-sizes-joined": lambda: tokens().plan(sizes={"batch": (1, 4)}),
    "vision-text-on-neuron": lambda: shipped().plan("neuron-emulated", options={"tp_degree": 2}),
    "loop": lambda: denoising().plan(sizes={"batch": (1, 4)}),
    "loop-on-neuron": lambda: on(denoising(), sizes={"batch": (1, 4)}, tp_degree=2),
    "map": lambda: mapped().plan("cuda"),
    "branch-on-neuron": lambda: on(picture_model(), sizes={"batch": (2, 4)}, tp_degree=2),
    "fold-and-twin-on-neuron": lambda: on(stereo(), sizes={"batch": (1, 4)}, tp_degree=2),
}


def steps(plan: Plan) -> list[str]:
    """The steps of a plan, one a line: what is made of what, and what dies."""

    def show(index: int) -> str:
        return f"v{index}"

    lines = []
    for step in plan.steps:
        for depth, one in ((0, step), *((1, inner) for inner in body_of(step))):
            what = f"{one.adapter} " if isinstance(one, AdaptStep) else ""
            made, read = ", ".join(map(show, one.outputs)), ", ".join(map(show, one.inputs))
            dies = f"; frees {', '.join(map(show, one.frees))}" if one.frees else ""
            runs = f" by {one.program!r}" if isinstance(one, LeafStep) and one.program else ""
            lines.append(
                f"  {'  ' * depth}{made or '-'} = {one.op} {what}{one.label}({read}) on {one.device}{runs}{dies}"
            )
    return lines


@pytest.mark.parametrize("name", CASES)
def test_a_plan_reads_as_it_did(name: str):
    plan = CASES[name]()
    text = "\n".join([str(plan), "", "Steps:", *steps(plan), ""])
    path = FOLDER / f"{name}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_is_of_a_case():
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)

"""Loops of trivial bodies: what an iteration costs over the same body in a hand-written ``for``; what crosses the link.

Each case is a body of stages that add one tensor to another, ``[1, 64]``, and the loop that a person would write around
the same functions. The time of a whole request, validation and counting included, is divided by its iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Pipeline, Plan, TensorSpec
from tests.bench.measure import Effort, Row, compare

LIMIT = 0.5
STEPS = 100
SPEC = TensorSpec((1, 64))
DEVICE = "neuron-emulated"
RANKS = 2


def add(x: Tensor, y: Tensor) -> Tensor:
    """The stage."""
    return x + y


def judge(k: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Counts, and says whether it has come to an end that never comes."""
    k = k + y
    return k, k < 0


@dataclass(frozen=True)
class Case:
    """A loop and the same by hand.

    Attributes:
        name: What it shows.
        build: Draws the body and the loop on ``x`` and ``y``; returns the results by name.
        by_hand: The same.
        note: What a reader has to know besides.
        inputs: Inputs besides ``x`` and ``y``.
    """

    name: str
    build: Callable[[Pipeline, Any, Any], dict[str, Any]]
    by_hand: Callable[..., dict[str, Tensor]]
    note: str = ""
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def pipeline(self) -> Pipeline:
        """The loop as a pipeline."""
        pipeline = Pipeline("loops")
        x, y = pipeline.input("x", SPEC), pipeline.input("y", SPEC)
        for name, value in self.build(pipeline, x, y).items():
            pipeline.output(name, value)
        return pipeline

    def request(self) -> dict[str, Tensor]:
        """A request."""
        return {
            name: torch.ones(shape) for name, shape in {"x": (1, 64), "y": (1, 64), **self.inputs}.items()
        }


def _body(count: int) -> Pipeline:
    body = Pipeline("body")
    x, y = body.input("x", SPEC), body.input("y", SPEC)
    for number in range(count):
        x = body.add(f"s{number}", add)(x, y)
    body.output("x", x)
    return body


def _carry(count: int) -> Callable[[Pipeline, Any, Any], dict[str, Any]]:
    def build(pipeline: Pipeline, x: Any, y: Any) -> dict[str, Any]:
        return {"x": pipeline.loop("loop", _body(count), carry={"x": x}, inputs={"y": y}, max_steps=STEPS)}

    return build


def _carry_by_hand(count: int) -> Callable[..., dict[str, Tensor]]:
    lines = [
        "def loop(x, y):",
        f"    for _ in range({STEPS}):",
        *["        x = add(x, y)"] * count,
        "    return {'x': x}",
    ]
    scope: dict[str, Any] = {"add": add}
    exec("\n".join(lines), scope)
    function: Callable[..., dict[str, Tensor]] = scope["loop"]
    return function


def _sliced(pipeline: Pipeline, x: Any, _: Any) -> dict[str, Any]:
    times = pipeline.input("times", TensorSpec((STEPS, 1, 64)))
    return {"x": pipeline.loop("loop", _body(1), carry={"x": x}, each={"y": times})}


def _sliced_by_hand(x: Tensor, y: Tensor, times: Tensor) -> dict[str, Tensor]:
    for time in times:
        x = add(x, time)
    return {"x": x}


def _collected(pipeline: Pipeline, x: Any, y: Any) -> dict[str, Any]:
    asked = {"carry": {"x": x}, "inputs": {"y": y}, "max_steps": STEPS, "collect": ("x",)}
    return {"parts": pipeline.loop("loop", _body(1), **asked)}


def _collected_by_hand(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    parts = []
    for _ in range(STEPS):
        x = add(x, y)
        parts.append(x)
    return {"parts": torch.stack(parts)}


def _ended(pipeline: Pipeline, x: Any, y: Any) -> dict[str, Any]:
    body = _body(1)
    one = TensorSpec((1,))
    k, done = body.add("judge", judge, outputs=("k", "done"))(body.input("k", one), body.input("by", one))
    body.output("k", k)
    body.output("done", done)
    carry, inputs = {"x": x, "k": torch.zeros(1)}, {"y": y, "by": torch.ones(1)}
    asked = {"carry": carry, "inputs": inputs, "until": "done", "max_steps": STEPS, "outputs": ("x",)}
    return {"x": pipeline.loop("loop", body, **asked)}


def _ended_by_hand(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    k, by = torch.zeros(1), torch.ones(1)
    for _ in range(STEPS):
        x = add(x, y)
        k, done = judge(k, by)
        if done:
            break
    return {"x": x}


def _nested(pipeline: Pipeline, x: Any, y: Any) -> dict[str, Any]:
    outer = Pipeline("outer")
    given, by = outer.input("x", SPEC), outer.input("y", SPEC)
    outer.output("x", outer.loop("inner", _body(1), carry={"x": given}, inputs={"y": by}, max_steps=10))
    return {"x": pipeline.loop("loop", outer, carry={"x": x}, inputs={"y": y}, max_steps=STEPS // 10)}


def _nested_by_hand(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    for _ in range(STEPS // 10):
        for _ in range(10):
            x = add(x, y)
    return {"x": x}


CASES = (
    Case("a carry, one stage", _carry(1), _carry_by_hand(1)),
    Case("a carry, five stages", _carry(5), _carry_by_hand(5)),
    Case(
        "a carry and slices",
        _sliced,
        _sliced_by_hand,
        "by hand: `for time in times:`",
        {"times": (STEPS, 1, 64)},
    ),
    Case("a carry, collected", _collected, _collected_by_hand, "both stack 100 parts at the end"),
    Case("ends when it says so", _ended, _ended_by_hand, "both read a boolean in each iteration"),
    Case("a loop in a loop, 10 x 10", _nested, _nested_by_hand),
)


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    assert device == "cpu"
    for case in CASES:
        yield _overhead(effort, case)
    yield from _link()


def _overhead(effort: Effort, case: Case) -> Row:
    request = case.request()
    with case.pipeline().plan().load() as session, torch.inference_mode():
        found, expected = session(**request), case.by_hand(**request)
        equal = found.keys() == expected.keys() and all(
            torch.equal(found[name], expected[name]) for name in found
        )
        pair = compare(lambda: session(**request), lambda: case.by_hand(**request), effort.rounds(300))
    each = pair.difference * 1e6 / STEPS
    name = f"{STEPS} iterations: {case.name}"
    ours, reference = pair.ours * 1e6, pair.reference * 1e6
    return Row(
        "loop", name, "us", ours, reference, each, "us an iteration", LIMIT, equal=equal, note=case.note
    )


class Denoise(nn.Module):
    """Stands for a denoiser: latents, a time and the embeddings of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1)
        self.read = nn.Linear(768, 4)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Gives the noise in ``[1, 4, 64, 64]`` latents, ``[]`` time, ``[1, 77, 768]`` text."""
        told = self.read(text).mean(1)[:, :, None, None]
        return torch.tanh(self.mix(x) + told * t)


def denoising(steps: int) -> Pipeline:
    """A denoising loop: a denoiser and a step of its scheduler."""
    latents, text = TensorSpec((1, 4, 64, 64)), TensorSpec((1, 77, 768))
    body = Pipeline("step")
    x, t, told = body.input("x", latents), body.input("t", TensorSpec(())), body.input("text", text)
    noise = body.add("denoise", Denoise())(x, t, told)
    body.output("x", body.add("scheduler", lambda x, noise, t: x - t * noise)(x, noise, t))
    pipeline = Pipeline("denoising")
    start, times = pipeline.input("noise", latents), pipeline.input("times", TensorSpec((steps,)))
    asked = {"carry": {"x": start}, "each": {"t": times}, "inputs": {"text": pipeline.input("text", text)}}
    pipeline.output("x", pipeline.loop("loop", body, **asked))
    return pipeline


def _link() -> Iterator[Row]:
    """Bytes of an iteration, counted by the device, against NxD Inference's way: every value up and down in each step.

    There a stage's inputs go up to every rank, and what it gives comes down from one.
    """
    plans = [denoising(steps).plan(DEVICE, options={"tp_degree": RANKS}) for steps in (2, 6)]
    short, long = map(_counted, plans)
    copies, size = ((long[at] - short[at]) / 4 for at in (0, 1))
    calls = plans[1].calls
    up = [spec.nbytes({}) for call in calls for _, spec in call.inputs if isinstance(spec, TensorSpec)]
    down = [spec.nbytes({}) for call in calls for _, spec in call.outputs if isinstance(spec, TensorSpec)]
    equal = short[2] and long[2]
    case = f"denoising on {DEVICE}, {RANKS} ranks: what crosses the link in an iteration"
    note = (
        "counted by the device, equal to the plan; reference: every value of a step up to each rank and down"
    )
    for unit, ours, reference in (
        ("B", size, float(RANKS * sum(up) + sum(down))),
        ("copies", copies, float(RANKS * len(up) + len(down))),
    ):
        yield Row(
            "loop", case, unit, ours, reference, reference / ours, "times fewer", equal=equal, note=note
        )


def _counted(plan: Plan) -> tuple[int, int, bool]:
    """Copies and bytes of one request, and whether the plan said so."""
    inputs = {name: torch.rand(spec.shape({})) for name, spec in plan.inputs if isinstance(spec, TensorSpec)}
    with plan.load() as session:
        session.run(inputs)
        seen = session.stats["measured"][DEVICE]
    names = ("uploads", "upload_bytes", "downloads", "download_bytes")
    equal = all(seen[name] == plan.summary[name] for name in names)
    return seen["uploads"] + seen["downloads"], seen["upload_bytes"] + seen["download_bytes"], equal

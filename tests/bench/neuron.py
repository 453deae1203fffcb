"""The emulated Neuron device: what crosses the link, and how long compiling takes.

Copies and bytes are the device's own count of one request; they must equal what the plan says. The times of compiling
are real, with a compiler that sleeps.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from orchestrator import Pipeline, Plan, Residency, TensorSpec
from orchestrator.plan.text import least_copies
from orchestrator.runner.load.compile import WORKERS
from orchestrator_neuron.emulated.backend import EmulatedBackend
from orchestrator_stages.demos.model5 import model5
from orchestrator_stages.demos.vision_text import vision_text
from tests.bench.measure import Effort, Row
from tests.neuron.on_nxdi.chains import LARGE, chain

DEVICE = "neuron-emulated"
RANKS = 2
COUNTS = ("uploads", "upload_bytes", "downloads", "download_bytes")
SMALL = (32, 144, 128)
LIMIT_PARALLEL = 1.8
LIMIT_AGAIN = 5.0


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    assert device == "cpu"
    sizes = SMALL if effort.quick else LARGE
    megabytes = 4 * sizes[0] * sizes[1] * sizes[2] / 1e6
    batch = 2 if effort.quick else 32
    cases = {
        f"vision-text, batch {batch}": vision_text(batch=batch),
        "model5, batch 4": model5(),
        f"a chain with values of {megabytes:.3g} MB": chain(sizes),
    }
    for name, pipeline in cases.items():
        yield from _traffic(name, pipeline)
    yield from _compiling(0.1 if effort.quick else 2.0)


def _traffic(name: str, pipeline: Pipeline) -> Iterator[Row]:
    kept = pipeline.plan(DEVICE, options={"tp_degree": RANKS})
    inside = [str(edge) for edge in kept.edges if edge.residency is Residency.DEVICE]
    hosted = pipeline.plan(
        DEVICE, options={"tp_degree": RANKS}, residency=dict.fromkeys(inside, Residency.HOST)
    )
    (up, up_bytes), (down, down_bytes) = least_copies(kept)
    least = {"copies": up + down, "MB": (up_bytes + down_bytes) / 1e6}
    (found, equal), (forced, equal_too) = _count(kept), _count(hosted)
    for unit in least:
        ratio = found[unit] / least[unit]
        note = "counted by the device, equal to the plan; against the least possible"
        yield Row(
            "neuron", name, unit, found[unit], least[unit], ratio, "x the least", 1.0, equal=equal, note=note
        )
        ratio = forced[unit] / found[unit]
        case = f"{name}, every edge over the host"
        note = "the other side: the same with edges on the device"
        yield Row("neuron", case, unit, forced[unit], found[unit], ratio, "x", equal=equal_too, note=note)


def _count(plan: Plan) -> tuple[dict[str, float], bool]:
    """Copies and megabytes of one request, and whether the plan said so."""
    generator = torch.Generator().manual_seed(0)
    sizes = {dim.name: dim.buckets[-1] for dim in plan.dims}
    inputs = {name: torch.rand(spec.shape(sizes), generator=generator) for name, spec in plan.inputs}
    with plan.load() as session:
        session.run(inputs)
        seen: Mapping[str, Any] = session.stats["measured"][DEVICE]
    equal = all(seen[count] == plan.summary[count] for count in COUNTS)
    copies, size = seen["uploads"] + seen["downloads"], seen["upload_bytes"] + seen["download_bytes"]
    return {"copies": float(copies), "MB": size / 1e6}, equal


def _compiling(seconds: float) -> Iterator[Row]:
    """Four stages, one after another and in parallel; then once more with nothing changed."""
    pipeline = Pipeline("four")
    value = pipeline.input("x", TensorSpec((8, 16)))
    for number in range(4):
        value = pipeline.add(f"s{number}", nn.Linear(16, 16))(value)
    pipeline.output("y", value)
    plan = pipeline.plan(DEVICE)

    def sleepy(program: bytes) -> bytes:
        time.sleep(seconds)
        return program

    with (
        mock.patch.object(EmulatedBackend, "COMPILER", staticmethod(sleepy)),
        tempfile.TemporaryDirectory() as folder,
    ):
        plan.compile(Path(folder, "warm-up"))  # the first export of a process loads what torch needs for it
        one_by_one = _timed(plan, Path(folder, "one"), workers=1)
        together = _timed(plan, Path(folder, "two"), workers=2)
        again = _timed(plan, Path(folder, "two"), workers=2)
    ratio = one_by_one / together
    case = f"4 stages, a compiler that takes {seconds:g} s, two at a time"
    note = "against one after another; the compiler sleeps, so it leaves the cores to the rest"
    yield Row(
        "compile",
        case,
        "s",
        together,
        one_by_one,
        ratio,
        "x faster",
        LIMIT_PARALLEL,
        at_least=True,
        note=note,
    )
    share = again / together * 100
    yield Row(
        "compile", "once more, nothing changed", "s", again, together, share, "% of the first", LIMIT_AGAIN
    )


def _timed(plan: Plan, folder: Path, workers: int) -> float:
    with mock.patch.dict(os.environ, {WORKERS: str(workers)}):
        started = time.perf_counter()
        plan.compile(folder)
        return time.perf_counter() - started

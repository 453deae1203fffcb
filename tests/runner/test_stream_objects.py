"""Kind K4: a source that fills one buffer again and again, which objects of the user's hold."""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

import pytest
import torch

from orchestrator import Pipeline
from tests.kit import spec


@dataclasses.dataclass
class Frame:
    """A request's own record."""

    pixels: torch.Tensor


class Pair(NamedTuple):
    """Another one."""

    pixels: torch.Tensor
    number: int


class Camera:
    """An object that nobody can copy."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def __copy__(self):
        raise TypeError("there is one camera")

    __deepcopy__ = __copy__


@pytest.mark.parametrize("partial", [None, "y"])
@pytest.mark.parametrize("kind", [Frame, Pair, Camera])
def test_a_source_may_fill_the_object_that_it_gave_before(kind, partial):
    """What cannot be copied is done before the source is asked again."""
    buffer = torch.zeros(3)
    item = Pair(buffer, 1) if kind is Pair else kind(buffer)

    def slow(value):
        time.sleep(0.01)
        return value.pixels * 2

    def frames():
        for number in range(8):
            buffer[:] = number
            yield {"x": item}

    body = Pipeline("body")
    body.output("y", body.add("more", lambda y: y + 1)(body.input("y", spec(3))))
    pipeline = Pipeline("frames")
    start = pipeline.add("slow", slow, device="host", outputs={"y": spec(3)})(pipeline.input("x", kind))
    pipeline.output("y", pipeline.loop("l", body, carry={"y": start}, max_steps=1))
    with pipeline.plan().load() as session:
        if partial is None:
            values = [result["y"] for result in session.stream(frames(), depth=3)]
        else:
            values = [value for *_, value in sorted(session.stream(frames(), depth=3, partial=(partial,)))]
    assert [value.tolist() for value in values] == [[2.0 * number + 1] * 3 for number in range(8)]

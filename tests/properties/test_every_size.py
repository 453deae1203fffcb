"""Kind: how a size passes through a stage is seen at the buckets alone, and used at every size of a request.

Every size from 1 to the largest bucket gives what the same functions give by hand on the unpadded input, or the
pipeline is refused when it is planned. The reference is the function itself, called on the request.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from orchestrator import Dim, InputError, Pipeline, PlanError, TensorSpec

Law = Callable[[torch.Tensor], torch.Tensor]

#: Functions of ``[n, 2]`` whose result has ``n`` rows, a constant number, or another one, by a law of their own.
ROWS: dict[str, Law] = {
    "the same": lambda x: x * 2,
    "first four": lambda x: x[:4] + 1,
    "at least three": lambda x: F.pad(x, (0, 0, 0, max(0, 3 - x.shape[0]))),
    "at most five, at least two": lambda x: F.pad(x[:5], (0, 0, 0, max(0, 2 - x.shape[0]))),
    "rounded up to even": lambda x: F.pad(x, (0, 0, 0, x.shape[0] % 2)),
    "rounded down to even": lambda x: x[: x.shape[0] // 2 * 2],
    "rounded up to threes": lambda x: F.pad(x, (0, 0, 0, -x.shape[0] % 3)),
    "power of two": lambda x: F.pad(x, (0, 0, 0, (1 << (x.shape[0] - 1).bit_length()) - x.shape[0])),
    "down and up": lambda x: x[::2].repeat_interleave(2, 0),
    "ceil pooling": lambda x: F.max_pool1d(x.T, 2, ceil_mode=True).T,
    "interpolated": lambda x: F.interpolate(x.T[None], scale_factor=0.5)[0].T.repeat_interleave(2, 0),
    "fixed": lambda x: torch.ones(4, 2),
    "one more where odd": lambda x: torch.cat([x, x[:1]]) if x.shape[0] % 2 else x,
    "twice": lambda x: torch.cat([x, x + 1]),
    "one less": lambda x: x[1:],
    "capped late": lambda x: x[:13],
    "squeezed": lambda x: x.squeeze(0),
    "windows": lambda x: F.pad(x, (0, 0, 0, -x.shape[0] % 4)).unflatten(0, (-1, 4)).flatten(0, 1),
}
BUCKETS = ((4,), (8,), (2, 8), (4, 8), (8, 16), (6, 12, 18))


def refused_or_right(pipeline: Pipeline, hand: Callable[..., torch.Tensor], largest: dict[str, int]) -> int:
    """Runs every combination of sizes; returns how many were right, -1 where the pipeline is refused."""
    try:
        plan = pipeline.plan()
    except PlanError:
        return -1
    right = 0
    with plan.load() as session:
        for sizes in itertools.product(*(range(1, most + 1) for most in largest.values())):
            values = {
                name: torch.arange(size * 2.0).reshape(size, 2) + 1
                for name, size in zip(largest, sizes, strict=True)
            }
            result = session(**values)["y"]
            try:
                expected = hand(*values.values())
            except RuntimeError:
                continue  # by hand this size has no result
            assert result.shape == expected.shape, (sizes, result.shape, expected.shape)
            assert torch.equal(result, expected), (sizes, result, expected)
            right += 1
    return right


@pytest.mark.parametrize("law", ROWS)
@pytest.mark.parametrize("buckets", BUCKETS, ids=str)
def test_every_size_is_right_or_refused(law: str, buckets: tuple[int, ...]):
    pipeline = Pipeline("p")
    x = pipeline.input("x", TensorSpec((Dim("n", buckets), 2), pad=0))
    pipeline.output("y", pipeline.add("law", ROWS[law])(x))
    right = refused_or_right(pipeline, ROWS[law], {"x": buckets[-1]})
    if law == "the same":
        assert right == buckets[-1]


@pytest.mark.parametrize("second", ["the same", "first four", "twice", "down and up", "one less"])
@pytest.mark.parametrize(
    "first", ["rounded up to even", "twice", "at least three", "one less", "power of two"]
)
def test_every_size_is_right_or_refused_after_two_stages(first: str, second: str):
    pipeline = Pipeline("p")
    x = pipeline.input("x", TensorSpec((Dim("n", (4, 8)), 2), pad=0))
    value = pipeline.add("second", ROWS[second])(pipeline.add("first", ROWS[first])(x))
    pipeline.output("y", value)
    refused_or_right(pipeline, lambda x: ROWS[second](ROWS[first](x)), {"x": 8})


def test_a_size_that_comes_back_to_the_requests_own_is_right_at_every_size():
    """Twice as many rows, then every other one: derived in between, the request's own at the end."""
    pipeline = Pipeline("p")
    x = pipeline.input("x", TensorSpec((Dim("n", (4, 8)), 2), pad=0))
    double = pipeline.add("double", lambda x: x.repeat_interleave(2, 0))(x)
    pipeline.output("y", pipeline.add("half", lambda x: x[::2] + 1)(double))
    assert refused_or_right(pipeline, lambda x: x + 1, {"x": 8}) == 8


@pytest.mark.parametrize("law", ["the same", "first four", "capped late", "power of two", "fixed"])
@pytest.mark.parametrize("pad", [0, None])
def test_every_size_of_a_batch_is_right_or_refused_in_chunks_too(law: str, pad: int | None):
    """A function that keeps its rows apart at all sizes up to the largest bucket may count them above it."""
    pipeline = Pipeline("p")
    x = pipeline.input("x", TensorSpec((Dim("n", (2, 4), batch=True), 2), pad=pad))
    pipeline.output("y", pipeline.add("law", ROWS[law])(x))
    right = 0
    try:
        plan = pipeline.plan()
    except PlanError:
        return
    with plan.load() as session:
        for size in range(1, 20):
            value = torch.arange(size * 2.0).reshape(size, 2)
            try:
                result = session(x=value)["y"]
            except InputError:
                continue
            right += 1
            assert torch.equal(result, ROWS[law](value)), size
    assert right == {("the same", 0): 19, ("the same", None): 9}.get((law, pad), right)


PAIRS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "an outer product": lambda a, b: a @ b.T,
    "the shorter of both": lambda a, b: a[: b.shape[0]] + 0,
    "as many as the longer": lambda a, b: torch.zeros(max(a.shape[0], b.shape[0]), 2) + 1,
    "one after the other": lambda a, b: torch.cat([a, b]),
    "the first, shifted": lambda a, b: a + 1 + 0 * b.sum(),
    "the second": lambda a, b: b * 2,
    "a product of sizes": lambda a, b: (a[:, None] * b[None]).flatten(0, 1),
    "the difference": lambda a, b: a[: max(0, a.shape[0] - b.shape[0])],
}


@pytest.mark.parametrize("buckets", [((4,), (4,)), ((4, 8), (4, 8)), ((2, 4), (6,)), ((8,), (3,))], ids=str)
@pytest.mark.parametrize("law", PAIRS)
def test_every_pair_of_sizes_is_right_or_refused(law: str, buckets: tuple[tuple[int, ...], tuple[int, ...]]):
    pipeline = Pipeline("p")
    a, b = (
        pipeline.input(name, TensorSpec((Dim(f"n{name}", sizes), 2), pad=0))
        for name, sizes in zip("ab", buckets, strict=True)
    )
    pipeline.output("y", pipeline.add("law", PAIRS[law])(a, b))
    right = refused_or_right(pipeline, PAIRS[law], dict(zip("ab", (of[-1] for of in buckets), strict=True)))
    if law in ("an outer product", "the second"):
        assert right == buckets[0][-1] * buckets[1][-1]


class _DownAndUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 2, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.down(x.T[None]), scale_factor=2)[0].T


def test_a_named_port_is_not_fed_by_a_size_that_equals_its_dim_at_the_buckets_alone():
    pipeline = Pipeline("p")
    x = pipeline.input("x", TensorSpec((Dim("n", (8, 16)), 2), pad=0))
    pipeline.output(
        "y",
        pipeline.add("named", lambda x: x * 2, inputs={"x": TensorSpec(("n", 2))})(
            pipeline.add("net", _DownAndUp().eval())(x)
        ),
    )
    with pytest.raises(
        PlanError, match=r"Sizes differ at n=1: 'net.output' gives .* 'named.x' takes \[n, 2\]"
    ):
        pipeline.plan()

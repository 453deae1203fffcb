"""Running maps: items of differing sizes, in lists and tensors, none and many, alone and in each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator import Dim, Pipeline
from tests.bodies import DEVICES, Halve, body, check, items, mapped, new, reader
from tests.kit import Double, batch, host, linear, spec

pytestmark = pytest.mark.usefixtures("shared_store")

WIDTHS = ((3, 8, 5, 1, 4, 4, 7), (), (2,))
everywhere = pytest.mark.parametrize("device", DEVICES)


def crops() -> list[dict[str, Any]]:
    """Requests with items of differing sizes, with none, and with one."""
    return [{"crops": items(*widths)} for widths in WIDTHS]


@everywhere
def test_items_of_a_list_go_to_their_buckets_and_come_back_in_order(device: str):
    check(mapped(), crops(), device)


@everywhere
def test_batches_are_counted_where_all_items_have_one_size(device: str):
    requests = [{"crops": items(*[8] * count)} for count in (0, 1, 3, 4, 11)]
    check(mapped(), requests, device, summaries=[{"n": count, "w": 8} for count in (0, 1, 3, 4, 11)])


@everywhere
def test_what_all_items_share_goes_up_once(device: str):
    inner = body(
        lambda crop, scale: crop * scale,
        crop=spec(Dim("n", (1, 2, 4), batch=True), 3, Dim("w", (4, 8)), pad=0),
        scale=spec(1),
    )
    check(mapped(inner, scale=spec(1)), [{**one, "scale": torch.tensor([3.0])} for one in crops()], device)


@everywhere
def test_a_value_may_be_cut_into_items_and_be_what_all_of_them_share(device: str):
    """Kind: one value in two roles, of which the map's body was handed one (found by the fuzzer, seed 5040)."""
    inner = body(
        lambda row, table: row + table.sum(0), row=spec(Dim("n", (1, 2, 4)), 3, pad=0), table=spec(5, 3)
    )
    pipeline = new()
    table = pipeline.input("table", spec(5, 3))
    pipeline.output("y", pipeline.map("read", inner, over={"row": table}, inputs={"table": table}))
    check(pipeline, [{"table": torch.randn(5, 3)} for _ in range(2)], device)


def several() -> Pipeline:
    """Three lists: two share the dim of their widths."""
    inner, n, w = new("inner"), Dim("n", (1, 2, 4), batch=True), Dim("w", (4, 8))
    x, y = inner.input("x", spec(n, 3, w, pad=0)), inner.input("y", spec(n, w, pad=0))
    z = inner.input("z", spec(n, 1, pad=0))
    inner.output("o", inner.add("mix", lambda x, y, z: x * y[:, None] + z[..., None])(x, y, z))
    inner.output("q", inner.add("double", Double())(z))
    inner.output("x", x)
    pipeline = new()
    over = {name: pipeline.input(name, list) for name in ("x", "y", "z")}
    for name, value in zip(("o", "q", "x"), pipeline.map("mix", inner, over=over), strict=True):
        pipeline.output(name, value)
    return pipeline


@everywhere
def test_several_lists_go_together(device: str):
    requests = [
        {
            "x": items(*widths),
            "y": [torch.randn(width) for width in widths],
            "z": [torch.randn(1) for _ in widths],
        }
        for widths in WIDTHS
    ]
    check(several(), requests, device)


def over_tensor(first: Any, *, after: bool) -> Pipeline:
    """Rows of a tensor through a map, and what it gives through a stage on the device."""
    inner = body(linear(3, 2), row=spec(Dim("n", (1, 4), batch=True), 3, pad=0))
    pipeline = new()
    outputs = pipeline.map("rows", inner, over={"row": pipeline.input("x", spec(first, 3, pad=0))})
    pipeline.output("y", pipeline.add("after", Double())(outputs) if after else outputs)
    return pipeline


@everywhere
@pytest.mark.parametrize(
    ("first", "after", "counts"),
    [
        (batch("b"), True, (4, 3, 7, 1)),
        ("b", False, (4, 3, 7, 1)),
        (Dim.dynamic("b"), False, (4, 3, 7, 1)),
        (6, True, (6,)),
    ],
)
def test_rows_of_a_tensor_give_a_tensor(device: str, first: Any, after: bool, counts: tuple[int, ...]):
    """What is padded where it goes on is what the input of that dim says."""
    sizes = {"b": (2, 4)} if str(first) == "b" and first != Dim.dynamic("b") else {}
    requests = [{"x": torch.randn(count, 3)} for count in counts]
    check(over_tensor(first, after=after), requests, device, sizes)


def born(*, first: bool, after: bool, pad: Any = 0) -> Pipeline:
    """Rows that a host stage finds, perhaps through a device, through a map, and perhaps through a device."""
    pipeline = new()
    rows: Any = host(
        pipeline, "find", lambda x: x[x[:, 0] > 0], rows=spec(Dim("k", (2, 4), batch=True), 3, pad=pad)
    )(pipeline.input("x", spec(9, 3)))
    rows = pipeline.add("first", Double())(rows) if first else rows
    inner = body(linear(3, 2), row=spec(Dim("n", (1, 4), batch=True), 3, pad=0))
    outputs = pipeline.map("rows", inner, over={"row": rows})
    pipeline.output("y", pipeline.add("after", Double())(outputs) if after else outputs)
    return pipeline


def requests_of(*counts: int) -> list[dict[str, torch.Tensor]]:
    """Requests in which so many rows are found."""
    requests = []
    for count in counts:
        x = -torch.ones(9, 3)
        x[:count] = torch.rand(count, 3) + 0.1
        requests.append({"x": x})
    return requests


@everywhere
@pytest.mark.parametrize(("first", "after"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_map_after_and_before_a_region(device: str, first: bool, after: bool):
    check(born(first=first, after=after), requests_of(4, 3, 0, 7, 1), device)


def test_a_map_alone_asks_no_rule_of_what_it_cuts_into_items():
    check(born(first=False, after=False, pad=None), requests_of(4, 3, 0, 7, 1), "cpu")


def two() -> Pipeline:
    pipeline = new()
    for name in ("a", "b"):
        value = pipeline.map(f"read {name}", reader(), over={"crop": pipeline.input(name, list)})
        pipeline.output(name, value)
    return pipeline


@everywhere
def test_two_maps_have_sizes_of_their_own_under_one_name(device: str):
    check(two(), [{"a": items(*one), "b": items(*other)} for one in WIDTHS for other in WIDTHS[1:]], device)


def twice() -> Pipeline:
    inner = new("sub")
    inner.output("texts", inner.map("read", reader(), over={"crop": inner.input("crops", list)}))
    pipeline = new()
    handle = pipeline.add("sub", inner)
    once = handle(pipeline.input("crops", list))
    pipeline.output("once", once)
    pipeline.output("again", handle(once))
    pipeline.output("others", handle(pipeline.input("others", list)))
    return pipeline


@everywhere
def test_a_pipeline_with_a_map_is_inlined_three_times(device: str):
    check(twice(), [{**one, "others": items(8, 2)} for one in crops()], device)


def in_loop() -> Pipeline:
    inner = body(
        lambda crop, by: crop * by,
        crop=spec(Dim("n", (1, 2, 4), batch=True), 3, Dim("w", (4, 8)), pad=0),
        by=spec(1),
    )
    step = new("step")
    k, crops = step.input("k", spec(1)), step.input("crops", list)
    texts = step.map("read", inner, over={"crop": crops}, inputs={"by": k})
    total = host(step, "total", lambda texts: sum((t.sum() for t in texts), torch.zeros(1)), t=spec(1))(texts)
    step.output("k", step.add("update", lambda k, t: k * 0.5 + t * 0.01)(k, total))
    pipeline = new()
    options = {
        "carry": {"k": pipeline.input("k", spec(1))},
        "inputs": {"crops": pipeline.input("crops", list)},
    }
    pipeline.output("k", pipeline.loop("loop", step, **options, max_steps=3))
    return pipeline


@everywhere
def test_a_map_in_a_loop(device: str):
    check(in_loop(), [{**one, "k": torch.ones(1)} for one in crops()], device)


def loop_in_item(until: bool) -> Pipeline:
    """A loop in a map; a batch goes on until all of it is done."""
    step = new("step")
    half, flag = step.add("halve", Halve(), outputs=("x", "done"))(step.input("x", spec(batch("n"), 3, "w")))
    step.output("x", half)
    step.output("done", flag)
    inner = new("inner")
    crop = inner.input("crop", spec(Dim("n", (1, 2, 4), batch=True), 3, Dim("w", (4, 8)), pad=0))
    ends = {"until": "done"} if until else {}
    inner.output("y", inner.loop("loop", step, carry={"x": crop}, max_steps=4, **ends))
    return inner


@everywhere
@pytest.mark.parametrize("until", [True, False])
def test_a_loop_in_a_map_counts_its_own_iterations_in_each_batch(device: str, until: bool):
    requests = [{"crops": [torch.full((3, width), 3.0) for width in widths]} for widths in WIDTHS]
    alike = [{"crops": [torch.full((3, 8), 3.0)] * 7}, {"crops": []}]
    iterations = {"steps of read/loop": 2} if until else {}
    check(mapped(loop_in_item(until)), requests, device)
    summaries = [{"n": count, "w": 8, **iterations} for count in (7, 0)]
    check(mapped(loop_in_item(until)), alike, device, summaries=summaries)


def map_in_item() -> Pipeline:
    row = new("row")
    row.output(
        "y", row.add("double", linear(3, 3))(row.input("x", spec(Dim("inner", (1, 2, 3, 4)), 3, pad=0)))
    )
    inner = new("inner")
    crop = inner.input("crop", spec(Dim("n", (1, 4), batch=True), 3, pad=0))
    inner.output("y", inner.map("rows", row, over={"x": crop}))
    return inner


@everywhere
def test_a_map_in_a_map(device: str):
    requests = [{"crops": [torch.randn(3) for _ in range(count)]} for count in (3, 0, 9, 1)]
    check(mapped(map_in_item()), requests, device, summaries=[None, {"n": 0, "inner": 1}, None, None])


def counted_in_region() -> Pipeline:
    """A region whose chunks go through a loop that decides how often it runs, and a map of as many batches."""
    step = new("step")
    half, flag = step.add("halve", Halve(), outputs=("x", "done"))(step.input("x", spec("k", 3)))
    step.output("x", half)
    step.output("done", flag)
    pipeline = new()
    rows = host(
        pipeline,
        "find",
        lambda x: x[x[:, 0] > 0],
        rows=spec(Dim("k", (1, 2), batch=True), 3, pad="repeat_first"),
    )(pipeline.input("x", spec(9, 3)))
    pipeline.output("y", pipeline.loop("loop", step, carry={"x": rows}, until="done", max_steps=9))
    return pipeline


@everywhere
def test_chunks_of_a_region_count_their_own_iterations(device: str):
    x = -torch.ones(9, 3)
    x[:5] = 3.0
    for _ in range(2):
        check(counted_in_region(), [{"x": x}], device)


CASES: dict[str, Callable[[], Pipeline]] = {
    "list": mapped,
    "several": several,
    "in a loop": in_loop,
    "a loop in it": lambda: mapped(loop_in_item(True)),
    "in a map": lambda: mapped(map_in_item()),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_inputs_are_left_as_they_were_and_results_are_ordinary(make: Callable[[], Pipeline]):
    pipeline = make()
    request: dict[str, Any] = {
        "crops": [torch.randn(3) for _ in range(3)] if make is CASES["in a map"] else items(3, 8),
        "x": items(3, 8),
        "y": [torch.randn(3), torch.randn(8)],
        "z": [torch.randn(1), torch.randn(1)],
        "k": torch.ones(1),
    }
    request = {name: request[name] for name in pipeline.freeze().inputs}
    lists = {name: value for name, value in request.items() if isinstance(value, list)}
    before = {name: [item.clone() for item in value] for name, value in lists.items()}
    with pipeline.plan().load() as session:
        results = session(**request)
    for name, value in lists.items():
        assert all(torch.equal(item, old) for item, old in zip(value, before[name], strict=True))
    for value in results.values():
        for item in value if isinstance(value, list) else [value]:
            assert not item.requires_grad
            assert not item.is_inference()
            item.add_(1)  # belongs to the caller
    for name, value in lists.items():
        assert all(torch.equal(item, old) for item, old in zip(value, before[name], strict=True))

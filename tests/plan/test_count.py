"""What a plan says it costs: chunks of a size, copies, bytes, dispatches, padding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import Dim, PlanError
from orchestrator.plan.chunks import SizeAssignment, bucket_for, chunk_sizes, combine
from orchestrator.plan.records import DimPlan
from tests.kit import Double, batch, chain, host, linear, new, pair, refuses, spec

BUCKETS = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(lambda sizes: tuple(sorted(set(sizes))))


@given(st.integers(0, 100), BUCKETS)
def test_chunks_are_largest_buckets_then_the_smallest_that_holds_the_rest(
    size: int, buckets: tuple[int, ...]
):
    chunks = chunk_sizes(size, buckets)
    assert sum(real for real, _ in chunks) == size
    assert all(0 < real <= bucket and bucket in buckets for real, bucket in chunks)
    assert all(chunk == (buckets[-1], buckets[-1]) for chunk in chunks[:-1])
    if chunks:
        assert chunks[-1][1] == min(bucket for bucket in buckets if bucket >= chunks[-1][0])


@given(st.integers(1, 30), BUCKETS)
def test_the_smallest_bucket_that_holds_a_size_is_taken(size: int, buckets: tuple[int, ...]):
    assert bucket_for(size, buckets) == min((bucket for bucket in buckets if bucket >= size), default=None)


@given(st.integers(1, 40), st.integers(1, 40), BUCKETS, BUCKETS)
def test_combined_chunks_cover_every_pair_once(a: int, b: int, some: tuple[int, ...], more: tuple[int, ...]):
    runs = list(combine([DimPlan("a", some), DimPlan("b", more)], {"a": a, "b": b}, SizeAssignment()))
    covered = [
        (x, y)
        for run in runs
        for x in range(run.offset["a"], run.offset["a"] + run.actual["a"])
        for y in range(run.offset["b"], run.offset["b"] + run.actual["b"])
    ]
    assert sorted(covered) == [(x, y) for x in range(a) for y in range(b)]


def on_null(**plan):
    return pair()[0].plan("null", sizes={"batch": (2, 4)}, **plan)


def test_one_request_at_the_largest_buckets():
    plan = on_null()
    assert plan.summary == plan.summary_for({}) == plan.summary_for({"batch": 4})
    assert plan.summary == {
        "uploads": 2,
        "upload_bytes": 4 * (8 + 4) * 4,
        "downloads": 1,
        "download_bytes": 4 * 5 * 4,
        "dispatches": 3,
        "pad_waste": 0.0,
        "peak_bytes": {"null:0": 4 * (4 + 4 + 8) * 4},  # both parts and what joins them
    }


def test_a_smaller_request_counts_what_it_really_moves():
    counts = on_null().summary_for({"batch": 3})
    assert (counts["upload_bytes"], counts["download_bytes"]) == (3 * 12 * 4, 3 * 5 * 4)
    assert counts["pad_waste"] == pytest.approx(1 / 4)


def test_chunks_count_each():
    counts = on_null().summary_for({"batch": 9})  # 4, 4 and 1 in the bucket of 2
    assert (counts["uploads"], counts["downloads"], counts["dispatches"]) == (6, 3, 9)
    assert counts["upload_bytes"] == 9 * 12 * 4
    assert counts["pad_waste"] == pytest.approx(1 / 10)


def test_an_input_without_the_chunked_dim_goes_up_once():
    pipeline = new()
    x, w = pipeline.input("x", spec(batch("n"), 4, pad=0)), pipeline.input("w", spec(4))
    pipeline.output("y", pipeline.add("s", lambda x, w: x * w)(x, w))
    counts = pipeline.plan("null", sizes={"n": (2, 4)}).summary_for({"n": 10})
    assert (counts["uploads"], counts["upload_bytes"]) == (4, 10 * 16 + 16)


def test_an_upload_counts_for_each_rank_and_a_download_once():
    counts = on_null(options={"ranks": 4}).summary
    assert (counts["uploads"], counts["upload_bytes"]) == (8, 4 * 4 * 12 * 4)
    assert (counts["downloads"], counts["dispatches"]) == (1, 3)


def test_zero_born_items_skip_their_stages():
    pipeline = new()
    stage = host(pipeline, "find", lambda x: x, crops=spec(Dim("n", (2, 4), batch=True), 4, pad=0))
    crops = stage(pipeline.input("x", spec(3, 4)))
    pipeline.output("y", pipeline.add("b", Double())(pipeline.add("a", Double())(crops)))
    plan = pipeline.plan("null")
    for size, dispatches, uploads in ((0, 1, 0), (1, 3, 1), (4, 3, 1), (5, 5, 2), (12, 7, 3)):
        counts = plan.summary_for({"n": size})
        assert (counts["dispatches"], counts["uploads"]) == (dispatches, uploads)


def test_host_stages_dispatch_and_constants_do_not_count():
    pipeline = new()
    value = pipeline.add("add", lambda x, c: x + c)(pipeline.input("x", spec(4)), 1.0)
    pipeline.output("y", host(pipeline, "h", lambda v: v, out=spec(4))(value))
    assert pipeline.plan("null").summary["dispatches"] == 2


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "4"])
def test_a_size_is_a_positive_int(size):
    error = refuses(PlanError, "'batch'", lambda: on_null().summary_for({"batch": size}))
    assert (error.dim, error.size) == ("batch", size)


def test_an_unknown_dim_is_offered_the_nearest():
    assert (
        refuses(PlanError, "Did you mean 'batch'?", lambda: on_null().summary_for({"bach": 2})).dim == "bach"
    )


def test_a_size_that_cannot_run_costs_nothing_but_an_error():
    exact = chain(linear(4, 4), takes=spec(batch("n"), 4)).plan(sizes={"n": (2, 4)})
    refuses(PlanError, ("3", "(2, 4)", "pad rule"), lambda: exact.summary_for({"n": 3}))
    refuses(PlanError, "pad rule", lambda: exact.summary_for({"n": 5}))
    assert exact.summary_for({"n": 6})["dispatches"] == 2
    whole = chain(lambda x: x.sum(0), takes=spec(batch("n"), 4, pad=0)).plan(sizes={"n": (2, 4)})
    refuses(PlanError, ("5", "largest bucket 4", "chunks"), lambda: whole.summary_for({"n": 5}))


def test_the_bytes_of_an_edge_are_at_the_largest_bucket_and_without_ranks():
    plan = on_null(options={"ranks": 4})
    assert {str(edge): edge.bytes for edge in plan.edges}["image -> vision.input"] == 4 * 8 * 4

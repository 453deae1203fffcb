"""Watching a session: traces, observers that cannot harm it, outputs that stay on their device, statistics."""

from __future__ import annotations

import json
import threading

import pytest
import torch

import orchestrator.backends
import orchestrator.testing.plugin
from orchestrator import Dim, Pipeline, StageError, hookimpl
from orchestrator.plugin import PluginManager
from tests.kit import COMPUTE, Double, batch, chain, host, linear, new, pair, refuses, spec

REQUEST = {"image": torch.ones(3, 8), "text": torch.ones(3, 4)}


def test_a_trace_holds_every_step_of_every_request():
    plan = pair()[0].plan("null", sizes={"batch": (2, 4)}, options=COMPUTE)
    with plan.load() as session:
        session(**REQUEST)
        with session.trace() as trace:
            session(**REQUEST)
            session(**REQUEST)
        session(**REQUEST)
    names = [span.name for span in trace.spans]
    assert len(names) == 2 * len(plan.steps)
    calls = [span for span in trace.spans if span.kind == "call"]
    assert [span.name for span in calls] == ["vision", "join", "fusion"] * 2
    assert {span.device for span in calls} == {"null:0"}
    assert "upload image" in names
    assert all(span.seconds >= 0 and span.thread == threading.get_ident() for span in trace.spans)
    assert [span.start for span in trace.spans] == sorted(span.start for span in trace.spans)


def test_a_trace_holds_the_steps_of_regions_and_chunks():
    pipeline = new()
    crops = host(pipeline, "find", lambda x: x, crops=spec(Dim("n", (2, 4), batch=True), 3, pad=0))
    pipeline.output("y", pipeline.add("d", Double())(crops(pipeline.input("x", spec(9, 3)))))
    with pipeline.plan().load() as session, session.trace() as trace:
        session(x=torch.ones(9, 3))
    assert [span.name for span in trace.spans if span.kind == "call"] == ["find", "d", "d", "d"]
    with pair()[0].plan(sizes={"batch": 2}).load() as session, session.trace() as trace:
        session(**REQUEST)
    assert [span.name for span in trace.spans if span.kind == "call"] == ["vision", "join", "fusion"] * 2


def test_a_trace_reads_as_a_table_and_as_chrome_json(tmp_path):
    with pair()[0].plan(sizes={"batch": 4}).load() as session, session.trace() as trace:
        session(**REQUEST)
        session(**REQUEST)
    lines = str(trace).splitlines()
    assert lines[0].split() == ["step", "device", "times", "milliseconds"]
    assert any(line.split()[:3] == ["vision", "cpu", "2"] for line in lines)
    path = tmp_path / "trace.json"
    trace.save(path)
    data = json.loads(path.read_text())
    assert data == trace.to_chrome()
    events = data["traceEvents"]
    assert len(events) == len(trace.spans)
    for event in events:
        assert (event["ph"], event["pid"]) == ("X", "pair")
        assert event["ts"] >= 0 <= event["dur"]
    assert min(event["ts"] for event in events) == 0


def test_traces_nest_and_see_failures():
    def picky(x):
        if type(x) is torch.Tensor and bool(x[0] < 0):
            raise ValueError("no")
        return x * 2

    with chain(Double(), picky, takes=spec(2)).plan().load() as session, session.trace() as outer:
        with session.trace() as inner:
            session(x=torch.ones(2))
            refuses(StageError, "no", lambda: session(x=-torch.ones(2)))
        session(x=torch.ones(2))
        assert session.stats["requests"] == 2
    assert [span.name for span in inner.spans] == ["a", "b", "a"]
    assert [span.name for span in outer.spans] == ["a", "b", "a", "a", "b"]


def test_an_empty_trace_is_one_too():
    with chain(Double()).plan().load() as session, session.trace() as trace:
        pass
    assert trace.to_chrome()["traceEvents"] == []
    assert str(trace)


class Watcher:
    """A plugin that notes all it is told, and fails if it is told to."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail
        self.plans: list[str] = []
        self.stages: list[tuple[str, str, str]] = []
        self.requests: list[tuple[str, str]] = []

    def _end(self) -> None:
        if self.fail:
            raise RuntimeError("a broken observer")

    @hookimpl
    def orchestrator_plan_made(self, plan):
        self.plans.append(plan.pipeline)
        self._end()

    @hookimpl
    def orchestrator_stage_finished(self, pipeline, call, device, seconds):
        assert seconds >= 0
        self.stages.append((pipeline, call, device))
        self._end()

    @hookimpl
    def orchestrator_request_finished(self, pipeline, seconds, error):
        assert seconds >= 0
        self.requests.append((pipeline, type(error).__name__))
        self._end()


def pipeline_with(*watchers: Watcher) -> Pipeline:
    manager = PluginManager(load_entry_points=False)
    manager.register(orchestrator.backends)
    manager.register(orchestrator.testing.plugin)
    for index, watcher in enumerate(watchers):
        manager.register(watcher, name=f"watcher-{index}")

    def picky(x):
        if type(x) is torch.Tensor and bool(x[0] < 0):
            raise ValueError("no")
        return x * 2

    pipeline = Pipeline("seen", plugins=manager)
    value = pipeline.add("double", Double())(pipeline.input("x", spec(batch("n"), pad=0)))
    pipeline.output("y", pipeline.add("picky", picky)(value))
    return pipeline


def test_observers_are_told_of_plans_stages_and_requests():
    watcher = Watcher()
    with pipeline_with(watcher).plan(sizes={"n": (2, 4)}).load() as session:
        session(x=torch.ones(3))
        session(x=torch.ones(9))
        refuses(StageError, "no", lambda: session(x=-torch.ones(2)))
    assert watcher.plans == ["seen"]
    assert watcher.stages == [("seen", "double", "cpu"), ("seen", "picky", "cpu")] * 4 + [
        ("seen", "double", "cpu")
    ]
    assert [error for _, error in watcher.requests][:2] == ["NoneType", "NoneType"]
    assert watcher.requests[2][1] in ("StageError", "ValueError")


def test_a_broken_observer_harms_nobody(caplog):
    faulty, sound = Watcher(fail=True), Watcher()
    with pipeline_with(faulty, sound).plan(sizes={"n": (2, 4)}).load() as session:
        for _ in range(3):
            assert session(x=torch.ones(3))["y"].tolist() == [4.0] * 3
        assert session.stats["requests"] == 3
    assert len(sound.stages) == len(faulty.stages) == 6
    assert len(sound.requests) == 3
    reports = [record for record in caplog.records if "failed in" in record.getMessage()]
    assert 1 <= len(reports) <= 3  # once for each hook


def test_an_observer_hears_of_streams_too():
    watcher = Watcher()
    with pipeline_with(watcher).plan(sizes={"n": 4}).load() as session:
        list(session.stream(({"x": torch.ones(4)} for _ in range(5)), depth=2))
    assert len(watcher.requests) == 5


def test_outputs_may_stay_on_their_device():
    pipeline, vision, fusion = pair()
    plan = pipeline.plan("null", sizes={"batch": (2, 4)}, options=COMPUTE)
    with plan.load() as session:
        for size in (2, 3, 4, 9):
            image, text = torch.randn(size, 8), torch.randn(size, 4)
            output = session.run({"image": image, "text": text}, keep_on_device=("logits",))["logits"]
            assert not isinstance(output, torch.Tensor)
            assert (tuple(output.shape), output.device) == ((size, 5), "null:0")
            expected = fusion(torch.cat([vision(image), text], 1))
            assert torch.allclose(output._content, expected, atol=1e-5)
            home = session(image=image, text=text)["logits"]
            assert torch.allclose(home, expected, atol=1e-5)


def test_only_the_outputs_that_are_named_stay():
    pipeline = new()
    value = pipeline.add("d", Double())(pipeline.input("x", spec(batch("n"), pad=0)))
    pipeline.output("one", value)
    pipeline.output("two", pipeline.add("e", Double())(value))
    with pipeline.plan("null", sizes={"n": (2, 4)}, options=COMPUTE).load() as session:
        for keep in ("one", ["one"], ("one",), {"one"}):
            result = session.run({"x": torch.ones(3)}, keep_on_device=keep)
            assert not isinstance(result["one"], torch.Tensor)
            assert result["two"].tolist() == [4.0] * 3


def test_on_the_cpu_staying_changes_nothing():
    with pair()[0].plan(sizes={"batch": (2, 4)}).load() as session:
        output = session.run(REQUEST, keep_on_device=("logits",))["logits"]
        assert torch.equal(output, session(**REQUEST)["logits"])


def test_statistics_have_the_keys_of_the_summary():
    plan = pair()[0].plan("null", sizes={"batch": (2, 4)}, options=COMPUTE)
    with plan.load() as session:
        assert set(session.stats) == {"requests", *plan.summary}
        assert session.stats["requests"] == session.stats["uploads"] == 0
        assert session.stats["peak_bytes"] == {"null:0": 0}
        session(**REQUEST)
        assert session.stats == {"requests": 1, **plan.summary_for({"batch": 3})}
        assert session.stats == session.stats
    assert session.stats["requests"] == 1


@pytest.mark.parametrize("sizes", [(1,), (4,), (9, 1, 2), (3, 3, 3, 13)])
@pytest.mark.parametrize("options", [{}, {"ranks": 3}, {"deferred": True}, {"eager": False}])
def test_statistics_are_the_sum_of_what_was_said(sizes, options):
    plan = pair()[0].plan("null", sizes={"batch": (2, 4)}, options={**COMPUTE, **options})
    with plan.load() as session:
        for size in sizes:
            session(image=torch.ones(size, 8), text=torch.ones(size, 4))
        total = session.stats
    each = [plan.summary_for({"batch": size}) for size in sizes]
    for key in ("uploads", "upload_bytes", "downloads", "download_bytes", "dispatches"):
        assert total[key] == sum(counts[key] for counts in each)
    assert total["peak_bytes"] == {"null:0": max(counts["peak_bytes"]["null:0"] for counts in each)}
    assert 0 <= total["pad_waste"] < 1


def test_a_compiled_plan_is_loaded_from_its_store(tmp_path):
    module = linear(4, 4)
    plan = chain(module, takes=spec(batch("n"), 4, pad=0)).plan(sizes={"n": (2, 4)})
    loader = plan.compile(tmp_path / "build")
    assert loader == plan
    x = torch.randn(3, 4)
    with loader.load() as session:
        assert torch.allclose(session(x=x)["y"], module(x), atol=1e-6)
    assert list((tmp_path / "build").iterdir())

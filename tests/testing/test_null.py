"""The null device: what it checks, what it records, and that the counts agree with plan and session."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import Dim, ModelWrapper, Pipeline, PlanError, StageError, TensorSpec
from orchestrator.adapter import Adapter
from orchestrator.stage import make_stage
from orchestrator.testing import HandleError, NullBackend, assert_same, recording, run_reference, stages
from orchestrator.testing.pytest_plugin import make_plugins
from orchestrator_stages.demos.faces.pipeline import faces
from orchestrator_stages.demos.model5 import model5
from orchestrator_stages.demos.vision_text import vision_text

PLUGINS = make_plugins()


def diamond() -> Pipeline:
    return stages.diamond(plugins=PLUGINS)


@pytest.fixture
def backend():
    backend = NullBackend("null")
    backend.open()
    return backend


@pytest.mark.parametrize("device", ["null", "null:0", "null:07"])
def test_devices_it_accepts(device):
    assert NullBackend.accepts(device)


@pytest.mark.parametrize("device", ["nul", "null:", "null:a", "null:-1", "null:0:1", "cuda:0", "null:²"])
def test_devices_it_refuses(device):
    assert not NullBackend.accepts(device)


def test_it_registers_without_torch_and_is_found_by_name(isolated_plugins):
    assert isolated_plugins.registry.backends.for_device("null:1").load() is NullBackend


def test_nothing_is_allocated(backend):
    huge = torch.zeros(()).expand(10**6, 10**6)
    handle = backend.upload(huge)
    value = backend.download(handle)
    assert value.shape == (10**6, 10**6)
    assert value.untyped_storage().nbytes() == 4
    assert handle.nbytes == 4 * 10**12


def test_a_large_model_is_planned_and_run_without_memory():
    pipeline = Pipeline("large", plugins=PLUGINS)
    value = pipeline.input("x", TensorSpec(("batch", 2**18)))
    wide = ModelWrapper({"in_features": 2**18, "out_features": 2**18}, torch.nn.Linear)
    for number in range(3):
        value = pipeline.add(f"wide{number}", wide if not number else stages.Double())(value)
    pipeline.output("y", value)
    plan = pipeline.plan(device="null", sizes={"batch": 2**20})
    with plan.load() as session:
        result = session(x=torch.zeros(()).expand(2**20, 2**18))
    assert result["y"].shape == (2**20, 2**18)


def test_a_freed_handle_cannot_be_used(backend):
    handle = backend.upload(torch.zeros(2))
    backend.free(handle)
    for use in (backend.free, backend.download, lambda handle: backend.part(handle, 0, 0, 1)):
        with pytest.raises(HandleError, match="freed"):
            use(handle)


def test_a_handle_of_another_device_is_refused(backend):
    other = NullBackend("null:1")
    handle = other.upload(torch.zeros(2))
    with pytest.raises(HandleError, match="another device"):
        backend.download(handle)
    assert backend.copy(handle, "null:0").device == "null:0"


def test_a_tensor_is_no_handle(backend):
    with pytest.raises(HandleError, match="not a handle"):
        backend.download(torch.zeros(2))


@pytest.mark.parametrize("rule", [None, 0])
def test_an_adapter_that_does_not_fit_is_refused(backend, rule):
    handle = backend.upload(torch.zeros(3))
    with pytest.raises(HandleError, match="cannot bring"):
        backend.adapt(Adapter("pad", (2 if rule == 0 else 4,), rule))(handle, {})


def test_a_part_beyond_the_end_is_refused(backend):
    with pytest.raises(HandleError, match="has no elements"):
        backend.part(backend.upload(torch.zeros(3)), 0, 2, 2)


def test_leaks_are_listed_with_their_makers(backend):
    with recording() as record:
        first, second = backend.upload(torch.zeros(2)), backend.upload(torch.zeros(3))
        backend.free(first)
        with pytest.raises(HandleError, match=r"\[3\] float32 on null:0>, made by null:0 upload"):
            record.assert_no_leaks()
        record.assert_no_leaks(keep=[second])
        backend.close()
        record.assert_no_leaks()
    assert second.is_freed


def test_peak_counts_shared_storage_once(backend):
    with recording() as record:
        whole = backend.upload(torch.zeros(8))
        part = backend.part(whole, 0, 0, 4)
        assert record.peak_bytes == {"null:0": 32}
        backend.free(whole)
        other = backend.upload(torch.zeros(2))
        assert record.peak_bytes == {"null:0": 40}
        backend.free(part)
        backend.free(other)
        backend.upload(torch.zeros(9))
        assert record.peak_bytes == {"null:0": 40}
        record.clear()
        assert (record.peak_bytes, record.calls) == ({"null:0": 36}, [])


def test_records_nest_and_see_every_device():
    one, two = NullBackend("null:0"), NullBackend("null:1")
    with recording() as outer:
        one.upload(torch.zeros(1))
        with recording() as inner:
            two.upload(torch.zeros(1))
    one.upload(torch.zeros(1))
    assert [event.device for event in outer.calls] == ["null:0", "null:1"]
    assert [event.device for event in inner.of("upload")] == ["null:1"]
    assert not outer.of("upload", device="null:2")


def test_a_request_reads_like_a_log(null_record):
    pipeline = Pipeline("p", plugins=PLUGINS)
    x = pipeline.input("x", TensorSpec((Dim("batch", buckets=(4,)), 3), pad=0))
    pipeline.output("y", pipeline.add("double", stages.Double())(x))
    with pipeline.plan(device="null").load() as session:
        session(x=torch.zeros(2, 3))
    assert [str(event) for event in null_record.calls] == [
        "null:0 open()",
        "null:0 load double()",
        "null:0 upload() -> [2, 3]",
        "null:0 adapt pad([2, 3]) -> [4, 3]",
        "null:0 free([2, 3])",
        "null:0 run double([4, 3]) -> [4, 3]",
        "null:0 free([4, 3])",
        "null:0 adapt cut([4, 3]) -> [2, 3]",
        "null:0 free([4, 3])",
        "null:0 download([2, 3])",
        "null:0 free([2, 3])",
        "null:0 close()",
    ]


def test_what_is_deferred_is_rubbish_until_synchronised():
    backend = NullBackend("null", {"compute": True, "deferred": True})
    for dtype in (torch.float32, torch.int64, torch.bool):
        value = torch.zeros(3, dtype=dtype)
        late = backend.download(backend.upload(value))
        assert not torch.equal(late, value)
        backend.synchronize()
        assert torch.equal(late, value)


def test_static_shapes_are_those_that_were_compiled(backend):
    backend = NullBackend("null", {"static_shapes": True})
    stage = make_stage("fixed", stages.FixedWidth({"width": 3}))
    run = backend.load(stage, [{"batch": 4}])
    assert run(backend.upload(torch.zeros(4, 3))).shape == (4, 3)
    with pytest.raises(HandleError, match="compiled for"):
        run(backend.upload(torch.zeros(2, 3)))


def test_static_shapes_are_compiled_for_every_bucket(null_record):
    pipeline = diamond()
    with pipeline.plan(device="null", options={"static_shapes": True}).load():
        assert len(null_record.of("compile", "linear")) == 2


def test_an_opaque_stage_gives_what_it_declares():
    class Opaque(ModelWrapper):
        opaque = True

        def __init__(self) -> None:
            super().__init__()
            self.inputs = {"x": TensorSpec((Dim("batch", buckets=(2, 4)), 3), pad=0)}
            born = TensorSpec((Dim("n", buckets=(8, 16)),), torch.int64, pad=0)
            self.outputs = {"same": TensorSpec(("batch", 5)), "born": born}

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raise NotImplementedError

    pipeline = Pipeline("p", plugins=PLUGINS)
    x = pipeline.input("x", TensorSpec(("batch", 3), pad=0))
    same, born = pipeline.add("opaque", Opaque())(x)
    pipeline.output("same", same)
    pipeline.output("born", born)
    with pipeline.plan(device="null").load() as session:
        result = session(x=torch.zeros(3, 3))
    assert {name: tuple(value.shape) for name, value in result.items()} == {"same": (3, 5), "born": (16,)}


def test_options_are_checked_by_the_planner():
    with pytest.raises(PlanError, match="takes bool"):
        diamond().plan(device="null", options={"compute": "yes"})
    with pytest.raises(PlanError, match="compute"):
        diamond().plan(device="null", options={"comptue": True})


def test_devices_beyond_the_last_are_absent():
    plan = diamond().plan(device="null:8")
    with pytest.raises(Exception, match="null:0 to null:7") as error_info:
        plan.load()
    assert type(error_info.value).__name__ == "CompileError"


def test_a_failing_stage_frees_everything():
    pipeline = Pipeline("p", plugins=PLUGINS)
    x = pipeline.input("x", TensorSpec((2, 3)))
    double = pipeline.add("double", stages.Double())
    pipeline.output("y", pipeline.add("fail", stages.Fail())(double(double(x))))
    with (
        pipeline.plan(device="null", options={"compute": True}).load() as session,
        recording() as record,
    ):
        with pytest.raises(StageError, match="the toy failed"):
            session(x=torch.zeros(2, 3))
        record.assert_no_leaks()


def test_threads_and_streams_share_a_null_device():
    pipeline = diamond()
    requests = [{"x": torch.full((1 + number % 6, 4), float(number))} for number in range(24)]
    options = {"compute": True, "deferred": True}
    with (
        pipeline.plan(device="null", placement={"double": "null:1"}, options=options).load() as session,
        recording() as record,
        ThreadPoolExecutor(4) as threads,
    ):
        references = [session.run(request) for request in requests]
        assert_same(list(threads.map(session.run, requests)), references)
        assert_same(list(session.stream(requests, depth=3)), references)
        record.assert_no_leaks()
        counts = record.counts()
        assert counts["uploads"] == session.stats["uploads"]
        assert counts["dispatches"] == session.stats["dispatches"]
        assert session.stats["requests"] == 3 * len(requests)


def _sample(spec: TensorSpec) -> torch.Tensor:
    if spec.dtype == torch.uint8:
        return torch.from_numpy(pytest.importorskip("skimage").data.astronaut())
    batch = {"batch": 2}
    return torch.randn(spec.shape(batch), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [vision_text, model5, faces])
def test_shipped_pipelines_give_there_what_they_give_by_hand(make):
    pipeline = make()
    inputs = {port: _sample(spec) for port, spec in pipeline.freeze().inputs.items()}
    results = []
    for compute in (False, True):
        plan = pipeline.plan(device="null", options={"compute": compute})
        with plan.load() as session, recording() as record:
            results.append(session(**inputs))
            record.assert_no_leaks()
    forms, found = results
    assert_same(found, run_reference(pipeline.freeze(), inputs), exact=False, rtol=1e-3, atol=1e-3)
    assert set(forms) == set(found)


@pytest.mark.usefixtures("shared_trials")
@settings(derandomize=True, deadline=None, database=None)
@given(
    st.integers(1, 9),
    st.fixed_dictionaries({"ranks": st.integers(1, 4), "deferred": st.booleans(), "compute": st.booleans()}),
    st.sampled_from(["null:0", "null:1"]),
    st.sets(st.sampled_from(["linear", "split", "stats", "double", "concat", "add"])),
)
def test_plan_session_and_record_count_alike(batch, options, device, moved):
    pipeline = diamond()
    plan = pipeline.plan(device="null:0", placement=dict.fromkeys(moved, device), options=options)
    inputs = {"x": torch.randn(batch, 4)}
    with plan.load() as session, recording() as record:
        result = session(**inputs)
        record.assert_no_leaks()
        record_counts, stats = record.counts(), session.stats
    record_counts["peak_bytes"] = {
        group.device: record_counts["peak_bytes"].get(group.device, 0) for group in plan.groups
    }
    assert stats == {"requests": 1, **plan.summary_for({"batch": batch})}
    assert {"requests": 1, **record_counts} == stats
    reference = run_reference(pipeline.freeze(), inputs)
    if options["compute"]:
        assert_same(result, reference, exact=batch in (2, 4), rtol=1e-4, atol=1e-5)
    else:
        assert {name: value.shape for name, value in result.items()} == {
            name: value.shape for name, value in reference.items()
        }

"""Where stages run and where values live: wishes, residency, and as few copies as there can be."""

from __future__ import annotations

import pytest
import torch

from orchestrator import PlanError, Residency
from orchestrator.errors import PlanOptionError
from tests.kit import COMPUTE, Double, batch, chain, host, linear, new, pair, refuses, spec, ways


def spread(*places: str, **plan):
    """``x`` through stages a, b, c, ... on these devices; planning touches none of them."""
    pipeline = chain(*(Double() for _ in places), takes=spec(batch("n"), 4, pad=0))
    placement = dict(zip("abcdefgh", places, strict=False))
    return pipeline.plan(**{"sizes": {"n": (2, 4)}, "placement": placement, **plan})


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cud", "Did you mean 'cuda'?"),
        ("cpuu", "Did you mean 'cpu'?"),
        ("gpu", "no device 'gpu'"),
        ("", "no device ''"),
        ("cuda:x", "'cuda:0'"),
        ("cuda:-1", "'cuda:0'"),
        ("meta", "no device 'meta'"),
        (None, "no device None"),
        (3, "no device 3"),
    ],
)
def test_an_unknown_device_is_offered_the_nearest(device, words):
    assert refuses(PlanError, words, lambda: chain(Double()).plan(device=device)).device == device
    if isinstance(device, str):
        refuses(PlanError, words, lambda: chain(Double()).plan(placement={"a": device}))


def test_planning_for_a_device_needs_no_device():
    plan = chain(Double()).plan(device="cuda:7")
    assert [(group.device, group.backend) for group in plan.groups] == [("cuda:7", "torch")]


def test_one_device_has_one_spelling():
    plan = spread("cuda", "cuda:0", "cpu", "cpu:0")
    assert [group.device for group in plan.groups] == ["cuda:0", "cpu"]


def test_the_most_specific_wish_wins():
    pipeline = new()
    value = pipeline.input("x", spec(2))
    for name, device in (("plan", None), ("own", "null:1"), ("placed", "null:1")):
        value = pipeline.add(name, Double(), device=device)(value)
    pipeline.output("y", value)
    plan = pipeline.plan(device="null:0", placement={"placed": "null:2"})
    assert {call.name: call.device for call in plan.calls} == {
        "plan": "null:0",
        "own": "null:1",
        "placed": "null:2",
    }


def test_a_wish_for_an_unknown_stage_is_offered_the_nearest():
    error = refuses(
        PlanOptionError,
        "Did you mean 'vision'?",
        lambda: pair()[0].plan(placement={"vison": "cpu"}, sizes={"batch": 2}),
    )
    assert error.stage == "vison"
    refuses(PlanOptionError, "string like 'cuda:0'", lambda: chain(Double()).plan(placement={"a": 0}))


def test_the_host_is_a_property_of_a_stage_not_of_a_plan():
    refuses(PlanError, "device='host'", lambda: chain(Double()).plan(device="host"))
    pipeline = new()
    pipeline.output("y", host(pipeline, "h", lambda x: x, out=spec(2))(pipeline.input("x", spec(2))))
    error = refuses(PlanError, ("'h'", "host stage"), lambda: pipeline.plan(placement={"h": "cpu"}))
    assert error.stage == "h"
    assert pipeline.plan(device="cuda").groups == ()


def test_options_are_refused_if_no_backend_knows_them():
    assert (
        refuses(PlanOptionError, "'tp_degree'", lambda: chain(Double()).plan(options={"tp_degree": 2})).option
        == "tp_degree"
    )
    refuses(
        PlanOptionError, "Did you mean 'ranks'?", lambda: chain(Double()).plan("null", options={"rnks": 2})
    )
    refuses(
        PlanOptionError, "'ranks' takes int", lambda: chain(Double()).plan("null", options={"ranks": "2"})
    )
    refuses(PlanOptionError, ("'a'", "'tp'"), chain(Double(), config={"tp": 1}).plan)


def test_an_option_of_another_device_has_no_effect_and_a_note_says_so():
    """The same call plans while stages are moved from one device to another."""
    plans = [
        chain(Double()).plan("cpu", options={"ranks": 4}),
        chain(Double()).plan("null", placement={"a": "cpu"}, options={"ranks": 4}),
    ]
    for plan in plans:
        assert [group.options for group in plan.groups] == [()]
        assert any("'ranks' has no effect" in note and "'null'" in note for note in plan.notes)


def test_options_reach_the_backends_that_know_them_and_no_other():
    plan = spread("null", "cpu", options={"ranks": 4})
    assert {group.device: (group.ranks, group.options) for group in plan.groups} == {
        "null:0": (4, (("ranks", 4),)),
        "cpu": (1, ()),
    }


def test_within_a_device_a_value_stays():
    plan = spread("cuda", "cuda", "cuda")
    assert [edge.residency.name for edge in plan.edges] == ["HOST", "DEVICE", "DEVICE", "HOST"]
    assert list(ways(plan).values()) == [["upload", "pad"], [], [], ["cut", "download"]]


def test_between_devices_of_one_family_a_value_goes_straight():
    plan = spread("cuda:0", "cuda:1")
    edge = plan.edges[1]
    assert ([adapter.kind for adapter in edge.adapters], edge.residency) == (["copy"], Residency.DEVICE)
    assert edge.adapters[0].device == "cuda:1"
    assert "directly" in edge.reason


def test_between_families_it_goes_over_the_host():
    plan = spread("cuda:0", "null:0")
    edge = plan.edges[1]
    assert [adapter.kind for adapter in edge.adapters] == ["download", "upload"]
    assert edge.residency is Residency.HOST
    assert plan.summary["uploads"] == plan.summary["downloads"] == 2


def test_on_the_cpu_nothing_is_moved():
    plan = spread("cpu", "cpu")
    assert {kind for way in ways(plan).values() for kind in way} == {"pad", "cut"}
    for key in ("uploads", "upload_bytes", "downloads", "download_bytes"):
        assert plan.summary[key] == 0


@pytest.mark.parametrize(
    ("far", "moves"),
    [("cuda:1", {"copy": 1}), ("cpu", {"download": 1}), ("null:1", {"download": 1, "upload": 1})],
)
def test_a_value_that_feeds_three_stages_elsewhere_is_copied_once(far, moves):
    pipeline = new()
    made = pipeline.add("make", Double(), device="cuda:0")(pipeline.input("x", spec(4)))
    for index in range(3):
        pipeline.output(f"y{index}", pipeline.add(f"read{index}", Double(), device=far)(made))
    plan = pipeline.plan()
    inner = [step.adapter.kind for step in plan.steps if step.label == "make.output"]
    assert {kind: inner.count(kind) for kind in set(inner)} == moves


def test_three_forms_of_one_value_share_one_copy():
    pipeline = new()
    made = pipeline.add("make", Double(), device="cuda:0")(pipeline.input("x", spec(4)))
    for index, port in enumerate(
        (spec(6, pad=0), spec(4, dtype=torch.float64, allow_cast=True), spec(2, allow_slice=True))
    ):
        stage = pipeline.add(f"read{index}", lambda x: x * 2, device="cuda:1", inputs={"x": port})
        pipeline.output(f"y{index}", stage(made))
    steps = [step.adapter.kind for step in pipeline.plan().steps if step.label == "make.output"]
    assert sorted(steps) == ["cast", "copy", "pad", "slice"]


def test_what_shrinks_a_value_comes_before_the_move_and_what_grows_it_after():
    pipeline = new()
    made = pipeline.add("make", Double(), device="cuda:0")(pipeline.input("x", spec(8)))
    small = pipeline.add("small", Double(), device="cuda:1", inputs={"x": spec(2, allow_slice=True)})(made)
    pipeline.output(
        "y", pipeline.add("large", Double(), device="cuda:0", inputs={"x": spec(9, pad=0)})(small)
    )
    found = ways(pipeline.plan())
    assert found["make.output -> small.x"] == ["slice", "copy"]
    assert found["small.output -> large.x"] == ["copy", "pad"]


def test_an_input_goes_up_once_to_each_device():
    pipeline = new()
    x = pipeline.input("x", spec(4))
    for index, device in enumerate(("cuda:0", "cuda:0", "cuda:1", "cpu")):
        pipeline.output(f"y{index}", pipeline.add(f"s{index}", Double(), device=device)(x))
    plan = pipeline.plan()
    assert plan.summary["uploads"] == 2
    assert plan.summary["upload_bytes"] == 2 * 16


def test_an_output_read_twice_comes_home_once():
    pipeline = new()
    made = pipeline.add("make", Double(), device="cuda")(pipeline.input("x", spec(4)))
    pipeline.output("one", made)
    pipeline.output("two", made)
    pipeline.output("three", host(pipeline, "h", lambda v: v, out=spec(4))(made))
    assert pipeline.plan().summary["downloads"] == 1


def test_constants_are_put_in_place_once_and_not_counted():
    pipeline = new()
    x = pipeline.input("x", spec(4))
    stage = pipeline.add("add", lambda x, c: x + c, device="null")
    pipeline.output("y", stage(x, torch.ones(4)))
    plan = pipeline.plan(options=COMPUTE)
    assert [step.adapter.kind for step in plan.staging] == ["upload"]
    assert (plan.summary["uploads"], plan.edges[1].reason) == (1, "a constant, put in place once, at load")
    with plan.load() as session:
        for _ in range(3):
            session(x=torch.ones(4))
        assert session.stats["uploads"] == 3


EDGE = "a.output -> b.x"


def test_a_residency_may_be_forced_to_the_host():
    for wish in (Residency.HOST, "host"):
        plan = spread("null", "null", residency={EDGE: wish}, options=COMPUTE)
        edge = plan.edges[1]
        assert (edge.residency, [adapter.kind for adapter in edge.adapters]) == (
            Residency.HOST,
            ["download", "upload"],
        )
        assert "forced" in edge.reason
        x = torch.randn(3, 4)
        with plan.load() as session:
            assert torch.equal(session(x=x)["y"], x * 4)
            assert session.stats["downloads"] == 2


def test_a_residency_that_holds_anyway_may_be_asked_for():
    plan = spread("null", "null", residency={EDGE: "device", "x->a.x": "host"})
    assert "(as asked)" in plan.edges[1].reason


@pytest.mark.parametrize("edge", ["x -> a.x", "b.output -> y"])
def test_a_forced_residency_that_is_impossible_is_refused(edge):
    error = refuses(
        PlanError,
        (edge, "cannot stay on the device", "host"),
        lambda: spread("null", "null", residency={edge: "device"}),
    )
    assert error.edge == edge
    assert error.reason


def test_a_way_between_families_cannot_be_forced_onto_the_device():
    refuses(PlanError, "cannot stay", lambda: spread("cuda", "null", residency={EDGE: "device"}))
    refuses(PlanError, "computes in host memory", lambda: spread("cuda", "cpu", residency={EDGE: "device"}))


@pytest.mark.parametrize("wish", ["gpu", None, 3, True])
def test_a_residency_is_device_or_host(wish):
    refuses(
        PlanOptionError,
        ("Residency.DEVICE or HOST", EDGE),
        lambda: spread("null", "null", residency={EDGE: wish}),
    )


@pytest.mark.parametrize("edge", ["a.out -> b.x", "a.output", 3, "a.output -> b.x -> y"])
def test_a_residency_of_no_edge_is_offered_the_nearest(edge):
    refuses(PlanOptionError, "does not exist", lambda: spread("null", "null", residency={edge: "host"}))


def test_every_edge_has_a_reason_bytes_and_a_cost():
    plan = spread("null", "cpu", options={"ranks": 2})
    assert all(edge.reason for edge in plan.edges)
    assert [edge.bytes for edge in plan.edges] == [64, 64, 64]
    assert [edge.cost for edge in plan.edges] == [
        0.128,
        0.064,
        0.0,
    ]  # a microsecond for each 1,000 bytes and rank


def test_a_pipeline_over_three_memories_gives_the_results_of_its_modules():
    module = linear(4, 4)
    pipeline = chain(Double(), module, Double(), nn_relu, takes=spec(batch("n"), 4, pad=0))
    x = torch.randn(7, 4)
    plan = pipeline.plan(
        sizes={"n": (2, 4)},
        placement={"a": "null:0", "b": "cpu", "c": "null:1", "d": "null:0"},
        options=COMPUTE,
    )
    with plan.load() as session:
        assert torch.allclose(session(x=x)["y"], torch.relu(module(x * 2) * 2), atol=1e-6)


def nn_relu(x):
    return torch.relu(x)

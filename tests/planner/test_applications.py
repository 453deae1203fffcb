"""Stages that share weights are one application: counted once on each device, printed, stored and proven again."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import orchestrator_neuron
from orchestrator import ModelWrapper, Pipeline, Plan, PlanError
from orchestrator.plan.records import PlannedApplication
from orchestrator.planner.verify.steps import verify
from orchestrator.testing.pytest_plugin import make_plugins
from tests.kit import linear, refuses, spec

EMULATED = "neuron-emulated"
DEVICES = ("cpu", "cuda", "null:0", EMULATED)


class Speaker(nn.Module):
    """A language model in small: two entry points over one part, each with another one of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body, self.first, self.next = linear(4, 4), linear(4, 4, 1), linear(4, 4, 2)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("scale", torch.full((4,), 0.5))
        self.eval()

    def prefill(self, prompt: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.first(self.body(prompt))) * self.scale

    def decode(self, state: torch.Tensor, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.drop(torch.tanh(self.next(self.body(state))) + shift)
        return state, state.sum(-1)


def size_of(*owners: nn.Module) -> int:
    """Bytes of the weights of some modules, each tensor once."""
    tensors = {id(tensor): tensor for owner in owners for tensor in (*owner.parameters(), *owner.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def new(name: str = "speaker") -> Pipeline:
    plugins = make_plugins()
    plugins.register(orchestrator_neuron)
    return Pipeline(name, plugins=plugins)


def speaker(model: Speaker, **places: str) -> Pipeline:
    """Prefill, then a loop that decodes: the way in which a model that generates is written."""
    pipeline, body = new(), new("step")
    decode = body.add("decode", model.decode, outputs=("state", "total"), device=places.get("decode"))
    state, total = decode(body.input("state", spec(1, 4)))
    body.output("state", state)
    body.output("total", total)
    prefill = pipeline.add("prefill", model.prefill, device=places.get("prefill"))
    start = prefill(pipeline.input("prompt", spec(1, 4)))
    loop = pipeline.loop("talk", body, carry={"state": start}, max_steps=3, collect=["total"])
    pipeline.output("totals", loop)
    return pipeline


def two(one: Any, other: Any, *, configs: tuple[dict[str, Any], ...] = ({}, {})) -> Pipeline:
    """``x`` through two stages."""
    pipeline = new("two")
    first = pipeline.add("one", one, config=configs[0])
    second = pipeline.add("other", other, config=configs[1])
    pipeline.output("y", second(first(pipeline.input("x", spec(1, 4)))))
    return pipeline


class Holder(nn.Module):
    """A module with a part that others have too."""

    def __init__(self, part: nn.Module, out: int = 4) -> None:
        super().__init__()
        self.part, self.own = part, linear(4, out, 3)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(self.part(x))


class Tied(nn.Module):
    """A module with the weight of another one, and nothing else of it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Made(ModelWrapper):
    """A wrapper with an entry point that is not its model's ``forward``."""

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.given = [model]

    def make_model(self) -> nn.Module:
        return self.given[0] or linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) + 1


@pytest.mark.parametrize("device", DEVICES)
def test_bound_methods_of_one_module_are_one_application(device: str):
    model = Speaker()
    plan = speaker(model).plan(device)
    ((name, weights),) = plan.weights
    assert weights == size_of(model)
    assert plan.applications == (PlannedApplication(name, ("prefill", "talk/decode"), size_of(model)),)
    lines = [line.split() for line in str(plan).splitlines()]
    assert [name, "prefill,", "talk/decode", f"{size_of(model)}", "B"] in lines


def _tied() -> tuple[nn.Module, nn.Module, int]:
    first = linear(4, 4)
    return first, Tied(first.weight), size_of(first)


def _part() -> tuple[nn.Module, nn.Module, int]:
    whole = Holder(linear(4, 4))
    return whole, whole.part, size_of(whole)


def _parts() -> tuple[nn.Module, nn.Module, int]:
    part = linear(4, 4)
    one, other = Holder(part), Holder(part)
    return one, other, size_of(one, other)


def _partials() -> tuple[Any, Any, int]:
    model = Speaker()
    return functools.partial(model.prefill), model.prefill, size_of(model)


def _wrapper() -> tuple[Any, Any, int]:
    wrapper = Made()
    return wrapper, wrapper, size_of(linear(4, 4))


def _wrappers() -> tuple[Any, Any, int]:
    part = linear(4, 4)
    return Made(part), Made(part), size_of(part)


SHARING = (_tied, _part, _parts, _partials, _wrapper, _wrappers)


@pytest.mark.parametrize("device", ["cpu", EMULATED])
@pytest.mark.parametrize("make", SHARING, ids=[make.__name__.strip("_") for make in SHARING])
def test_whatever_shares_a_weight_has_it_once(make: Any, device: str):
    one, other, size = make()
    plan = two(one, other).plan(device)
    assert plan.weights == ((device, size),)
    assert plan.applications == (PlannedApplication(device, ("one", "other"), size),)


@pytest.mark.parametrize("device", ["cpu", EMULATED])
def test_stages_that_share_nothing_are_applications_by_themselves(device: str):
    relu, halve = nn.ReLU(), lambda x: x / 2
    for one, other in ((linear(4, 4), linear(4, 4)), (relu, relu), (halve, halve)):
        plan = two(one, other).plan(device)
        assert plan.applications == ()
        assert "Applications" not in str(plan)


@pytest.mark.parametrize(("device", "copies"), [("cpu", 0), (EMULATED, 1)])
def test_two_tensors_over_one_memory_are_copied_each_to_a_device_of_its_own(device: str, copies: int):
    first = linear(4, 4)
    plan = two(first, Tied(nn.Parameter(first.weight.detach()))).plan(device)
    assert plan.weights == ((device, size_of(first) + copies * first.weight.nbytes),)


def test_pieces_of_one_memory_are_weights_of_their_own():
    memory = torch.randn(2, 4, 4)
    one, other = (Tied(nn.Parameter(memory[at])) for at in range(2))
    plan = two(one, other).plan("cpu")
    assert plan.weights == (("cpu", 2 * 4 * 4 * 4),)
    assert plan.applications == ()


def test_sharing_goes_through_others():
    parts = [linear(4, 4, seed) for seed in range(2)]
    pipeline = new("three")
    value = pipeline.input("x", spec(1, 4))
    for name, stage in zip("abc", (parts[0], nn.Sequential(*parts).eval(), parts[1]), strict=True):
        value = pipeline.add(name, stage)(value)
    pipeline.output("y", value)
    plan = pipeline.plan(EMULATED)
    assert plan.applications == (PlannedApplication(EMULATED, ("a", "b", "c"), size_of(*parts)),)


def test_a_module_on_two_devices_is_there_twice_and_the_plan_says_so():
    model = Speaker()
    plan = speaker(model, prefill="null:0", decode="null:1").plan()
    assert dict(plan.weights) == {"null:0": size_of(model), "null:1": size_of(model)}
    assert plan.applications == ()
    (note,) = (note for note in plan.notes if "share weights" in note)
    assert any("share weights" in note for note in speaker(model, prefill="cpu").plan(EMULATED).notes)
    assert all(word in note for word in ("'prefill'", "'talk/decode'", "'null:0'", "'null:1'", "a copy"))


def test_stages_with_options_that_differ_are_compiled_apart_and_the_plan_says_so():
    model = linear(4, 4)
    plan = two(model, model, configs=({"torch_dtype": "bfloat16"}, {})).plan(EMULATED)
    assert plan.applications == ()
    assert plan.weights == ((EMULATED, size_of(model) // 2 + size_of(model)),)
    assert any("'one' and 'other' share weights" in note for note in plan.notes)
    same = {"torch_dtype": "bfloat16"}
    plan = two(model, model, configs=(same, dict(same))).plan(EMULATED)
    assert plan.weights == ((EMULATED, size_of(model) // 2),)


def test_a_budget_counts_the_weights_of_an_application_once():
    model = Speaker()
    plan = speaker(model).plan(EMULATED)
    parts = (dict(plan.weights), dict(plan.buffers), plan.summary["peak_bytes"])
    needed = sum(part[EMULATED] for part in parts)
    assert speaker(model).plan(EMULATED, memory=needed).weights == plan.weights
    budget = size_of(model)
    error = refuses(PlanError, "more memory", lambda: speaker(model).plan(EMULATED, memory=budget))
    ((_, weights, *_),) = error.table
    assert weights == budget


def test_programs_of_an_application_with_equal_shapes_are_told_apart():
    plan = speaker(Speaker()).plan(EMULATED)
    routes = [program.route for program in plan.programs]
    assert len(routes) > 1
    assert sorted(routes) == list(range(len(routes)))


def test_a_bound_method_of_a_module_in_training_mode_is_refused():
    model = Speaker(dropout=0.5).train()
    for device in ("cpu", EMULATED):
        refuses(
            PlanError, ("'prefill'", "training mode", ".eval()"), lambda at=device: speaker(model).plan(at)
        )


def test_ports_of_a_bound_method_are_its_parameters():
    pipeline = new()
    handle = pipeline.add("decode", Speaker().decode, outputs=("state", "total"))
    assert [(port.name, port.optional) for port in handle.stage.inputs] == [("state", False), ("shift", True)]


def test_applications_survive_json_and_binding():
    model = Speaker()
    pipeline = speaker(model)
    plan = pipeline.plan(EMULATED)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert pipeline.bind(again).applications == plan.applications
    other = replace(plan, applications=())
    refuses(PlanError, "", lambda: pipeline.bind(other))


APPLICATION = PlannedApplication(EMULATED, ("prefill", "talk/decode"), 1)
BROKEN = {
    "no such stage": (replace(APPLICATION, stages=("prefill", "decode")),),
    "one stage": (replace(APPLICATION, stages=("prefill",)),),
    "a stage twice": (replace(APPLICATION, stages=("prefill", "prefill")),),
    "another device": (replace(APPLICATION, device="cpu"),),
    "two applications": (APPLICATION, APPLICATION),
    "more than all weights": (replace(APPLICATION, weights=1 << 30),),
}


@pytest.mark.parametrize("applications", BROKEN.values(), ids=BROKEN.keys())
def test_applications_that_cannot_be_are_refused(applications: tuple[PlannedApplication, ...]):
    plan = replace(speaker(Speaker()).plan(EMULATED), applications=applications)
    refuses(PlanError, "", lambda: verify(plan))


def test_equal_shapes_without_a_route_are_refused():
    plan = speaker(Speaker()).plan(EMULATED)
    programs = tuple(
        replace(program, route=0 if program.stage == "talk/decode" and program.route == 1 else program.route)
        for program in plan.programs
    )
    assert programs != plan.programs
    refuses(PlanError, "take the same shapes", lambda: verify(replace(plan, programs=programs)))

"""Entry points of one module on the real classes: one application, told apart by routes, over one set of weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from on_nxdi.kit import RANKS, close, count_traffic
from orchestrator import CompileError, Dim, Pipeline, TensorSpec
from orchestrator.store import ArtifactStore
from tests.states import STEPS, Writer, generation, prompt, words_by_hand

OPTIONS = {"tp_degree": RANKS}


class Speaker(nn.Module):
    """Two entry points over one part, each with another one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.next = (nn.Linear(4, 4) for _ in range(3))
        self.seen = torch.zeros(1, 4)
        self.eval()

    def prefill(self, prompt: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.first(self.body(prompt)))

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.next(self.body(state)))

    def remember(self, prompt: torch.Tensor) -> torch.Tensor:
        self.seen = self.body(prompt)
        return prompt

    def recall(self, state: torch.Tensor) -> torch.Tensor:
        return state + self.seen


def _speaker(model: Speaker) -> Pipeline:
    body, pipeline = Pipeline("step"), Pipeline("speaker")
    body.output("state", body.add("decode", model.decode)(body.input("state", TensorSpec((1, 4)))))
    start = pipeline.add("prefill", model.prefill)(pipeline.input("prompt", TensorSpec((1, 4))))
    pipeline.output("state", pipeline.loop("talk", body, carry={"state": start}, max_steps=3))
    return pipeline


def check_entry_points_of_a_module_have_its_weights_once():
    model, folder = Speaker(), Path(tempfile.mkdtemp())
    plan = _speaker(model).plan("nxdi", options=OPTIONS).compile(folder)
    (entry,) = ArtifactStore(folder).entries()
    assert entry.about["programs"] == [program.name for program in plan.programs]
    parameters = list(model.parameters())
    assert plan.weights == (("nxdi", sum(weight.nbytes for weight in parameters)),)
    # A first run of each program would put examples on the device.
    with count_traffic() as loading:
        session = plan.load(warm=False)
    # Besides weights there is a rank's number for each rank, and a route for each program but the first.
    routes = [program.route for program in plan.programs if program.route]
    weight_bytes = RANKS * sum(weight.nbytes for weight in parameters)
    assert weight_bytes <= loading.up_bytes <= weight_bytes + RANKS * (4 + 4 * sum(routes))
    with session, torch.no_grad():
        for _ in range(2):
            prompt = torch.randn(1, 4)
            state = model.prefill(prompt)
            for _ in range(3):
                state = model.decode(state)
            with count_traffic() as traffic:
                close(session(prompt=prompt)["state"], state)
            assert (traffic.up, traffic.down) == (RANKS, 1)


def check_modules_that_share_a_part_are_one_application():
    part = nn.Linear(4, 4)
    one, other = (nn.Sequential(part, nn.Linear(4, 4)).eval() for _ in range(2))
    pipeline, folder = Pipeline("parts"), Path(tempfile.mkdtemp())
    x = pipeline.input("x", TensorSpec((1, 4)))
    pipeline.output("y", pipeline.add("other", other)(pipeline.add("one", one)(x)))
    plan = pipeline.plan("nxdi", options=OPTIONS).compile(folder)
    assert len(ArtifactStore(folder).entries()) == 1
    with torch.no_grad(), plan.load() as session:
        value = torch.randn(1, 4)
        close(session(x=value)["y"], other(one(value)))


def check_what_one_entry_point_leaves_for_another_is_refused():
    model, pipeline = Speaker(), Pipeline("secretive")
    x = pipeline.add("one", model.remember)(pipeline.input("x", TensorSpec((1, 4))))
    pipeline.output("y", pipeline.add("other", model.recall)(x))
    with pytest.raises(CompileError, match=r"'seen'.*an output and an input"):
        pipeline.plan("nxdi", options=OPTIONS).load()


def check_a_cache_is_aliased_state_of_the_application():
    model = Writer()
    plan = generation(model).plan("nxdi", options=OPTIONS)
    (state,) = plan.states
    with plan.load() as session:
        for seed in range(3):
            words = prompt(seed)
            with count_traffic() as traffic:
                close(session(prompt=words)["tokens"], words_by_hand(model, words))
            # Nothing but tokens: the cache never crosses the link.
            assert traffic.up_bytes == RANKS * words.nbytes < state.spec.nbytes({})
            assert (traffic.down, traffic.down_bytes) == (STEPS, STEPS * 4)
            assert traffic.down_bytes == plan.summary["download_bytes"]


def check_loops_after_one_another_update_one_state_at_every_size():
    model = Writer()
    plan = generation(model, loops=(1, STEPS - 1), batch=Dim("batch", (1, 2))).plan("nxdi", options=OPTIONS)
    assert [len(state.updates) for state in plan.states] == [2]
    with plan.load() as session:
        for size in (2, 1, 2):
            words = prompt(size, size)
            with count_traffic() as traffic:
                results = session(prompt=words)
            close(torch.cat([results["tokens"], results["tokens-1"]]), words_by_hand(model, words))
            assert traffic.up_bytes == RANKS * words.nbytes
            assert traffic.down_bytes == STEPS * size * 4


def check_a_cache_that_somebody_else_reads_is_handed_over():
    model = Writer()
    plan = generation(model, collect=("token", "cache")).plan("nxdi", options=OPTIONS)
    assert plan.states == ()
    with plan.load() as session:
        close(session(prompt=prompt())["tokens"], words_by_hand(model, prompt()))

"""Item 7: what is slow at its first run is run at load, for every bucket, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator import Pipeline
from orchestrator_neuron.emulated.backend import EmulatedBackend
from orchestrator_neuron.emulated.runtime import LoadedProgram
from tests.kit import batch, linear, spec
from tests.states import Writer, generation, prompt, words_by_hand

EMULATED = "neuron-emulated"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, ...]]:
    """Shapes that programs ran at, on a device that says that first runs are slow."""
    shapes: list[tuple[torch.Size, ...]] = []
    run = LoadedProgram.__call__

    def run_and_note(self: LoadedProgram, *handles: Any) -> Any:
        shapes.append(tuple(handle.shape for handle in handles))
        return run(self, *handles)

    monkeypatch.setattr(LoadedProgram, "__call__", run_and_note)
    monkeypatch.setattr(EmulatedBackend, "slow_first_run", True)
    return shapes


def two() -> Pipeline:
    pipeline = Pipeline("p")
    x = pipeline.input("x", spec(batch("n", (2, 4)), 4, pad=0))
    pipeline.output("y", pipeline.add("b", linear(4, 4))(pipeline.add("a", linear(4, 4))(x)))
    return pipeline


def test_every_program_runs_at_every_bucket_before_any_request_and_is_not_counted(runs: list[Any]):
    with two().plan(EMULATED).load() as session:
        assert sorted(runs) == sorted([((2, 4),), ((4, 4),)] * 2)
        stats = session.stats
        assert (stats["dispatches"], stats["requests"]) == (0, 0)
        assert stats["measured"][EMULATED]["dispatches"] == 0
        assert session(x=torch.ones(3, 4))["y"].shape == (3, 4)


def test_a_cold_load_runs_nothing(runs: list[Any]):
    with two().plan(EMULATED).load(warm=False):
        assert not runs


def test_an_application_with_states_is_left_alone(runs: list[Any]):
    """The emulated device refuses to read a state that no request has written."""
    model = Writer()
    with generation(model).plan(EMULATED).load() as session:
        assert not runs
        assert torch.equal(session(prompt=prompt())["tokens"], words_by_hand(model, prompt()))

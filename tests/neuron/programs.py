"""Applications built by hand, as the planner would ask for them, and a way to run them on the emulated device."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator import TensorSpec
from orchestrator.adapter import Adapter
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.stage import make_stage
from orchestrator_neuron.emulated.backend import EmulatedBackend

__all__ = ["Affine", "Two", "application", "emulated_backend", "load", "program", "spec", "weightless"]

_numbers = itertools.count()


def spec(*dims: Any, dtype: torch.dtype = torch.float32, **rules: Any) -> TensorSpec:
    """``TensorSpec`` with its dims spelled out."""
    return TensorSpec(dims, dtype, **rules)


class Affine(nn.Module):
    """A seeded ``Linear`` under a name that NxD Inference would strip, a buffer, and one that no checkpoint has."""

    def __init__(self, width: int = 4, out: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = nn.Linear(width, out)
        self.register_buffer("scale", torch.full((out,), 2.0))
        self.register_buffer("shift", torch.full((out,), 0.5), persistent=False)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * self.scale + self.shift


class Two(nn.Module):
    """Sum and difference of two inputs."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + b, a - b


def program(
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    *,
    name: str = "p",
    sizes: Sequence[Mapping[str, int]] = ({},),
    before: Mapping[str, tuple[Adapter, ...]] | None = None,
    after: Mapping[str, tuple[Adapter, ...]] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
    **more: Any,
) -> Program:
    """A program with one tensor for each input; ``before`` and ``after`` are folded adapters by port."""
    # Without adapters a port has the stage's own spec; `dtypes` are those of a stage that was written for 64 bits.
    before, after, dtypes = before or {}, after or {}, dtypes or {}
    program_inputs = [
        ProgramInput(port, form, before.get(port, ()), dtypes.get(port, form.dtype))
        for port, form in inputs.items()
    ]
    program_outputs = [ProgramOutput(port, form, after.get(port, ())) for port, form in outputs.items()]
    returns = more.pop("returns", "single" if len(program_outputs) == 1 else "tuple")
    ports = more.pop("ports", tuple(outputs))
    return Program(name, tuple(program_inputs), tuple(program_outputs), tuple(sizes), returns, ports, **more)


def application(
    target: Any, *programs: Program, config: Mapping[str, Any] | None = None, name: str = "stage", **add: Any
) -> Application:
    """The application of one stage."""
    return Application(name, (make_stage(name, target, config=config, **add),), programs)


def weightless(item: Program) -> Application:
    """A program of adapters alone."""
    return Application(item.name, (), (item,))


@contextlib.contextmanager
def emulated_backend(budget: int = 0, counting: bool = True, **options: Any) -> Iterator[EmulatedBackend]:
    """An opened emulated device, under ``no_grad`` as sessions run."""
    backend = EmulatedBackend("neuron-emulated", options)
    backend.open(budget)
    if counting:
        backend.begin_counting()
    try:
        with torch.no_grad():
            yield backend
    finally:
        backend.close()


def load(backend: EmulatedBackend, item: Application, path: Path) -> dict[str, Callable[..., Any]]:
    """Compiles an application into a new folder and loads it."""
    folder = path / str(next(_numbers))
    folder.mkdir()
    backend.build(item, folder)
    return dict(backend.load_application(item, folder))

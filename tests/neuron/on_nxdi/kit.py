"""What the checks share: applications made by hand, built and load_programs, and what the simulated device counted."""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from orchestrator import TensorSpec
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput
from orchestrator.stage import Stage, make_stage
from orchestrator_neuron.nxdi.backend import NxdiBackend

RANKS = 2


def backend(**options: Any) -> NxdiBackend:
    device = NxdiBackend("nxdi", {"tp_degree": RANKS} | options)
    device.open()
    return device


def floats(*dims: int | str) -> TensorSpec:
    return TensorSpec(dims)


def program(name: str, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec], **more: Any) -> Program:
    """A program without adapters, unless `inputs=` or `outputs=` are replaced."""
    takes = tuple(ProgramInput(port, spec, (), spec.dtype) for port, spec in inputs.items())
    gives = tuple(ProgramOutput(port, spec) for port, spec in outputs.items())
    return Program(name, takes, gives, **{"ports": tuple(outputs), **more})


def application(stage: Stage | None, *programs: Program) -> Application:
    return Application(stage.name if stage else programs[0].name, (stage,) if stage else (), programs)


def stage(name: str, target: Any, **more: Any) -> Stage:
    return make_stage(name, target, **more)


def load_programs(device: NxdiBackend, *applications: Application) -> dict[str, Callable[..., Any]]:
    """Builds, moves what was built, as the store does, and loads."""
    calls: dict[str, Callable[..., Any]] = {}
    for item in applications:
        root = Path(tempfile.mkdtemp())
        folder = root / "being-built"
        folder.mkdir()
        device.build(item, folder)
        final = folder.rename(root / "final")
        assert sorted(path.name for path in final.iterdir()) == ["model.pt", "neuron_config.json"]
        calls |= device.load_application(item, final)
    return calls


@dataclass
class Counts:
    """Copies and bytes over the link."""

    up: int = 0
    up_bytes: int = 0
    down: int = 0
    down_bytes: int = 0

    def all(self) -> tuple[int, int, int, int]:
        """In the order of a plan's summary."""
        return self.up, self.up_bytes, self.down, self.down_bytes

    def __str__(self) -> str:
        return f"{self.up} uploads of {self.up_bytes} bytes, {self.down} downloads of {self.down_bytes} bytes"


@contextmanager
def count_traffic() -> Iterator[Counts]:
    """What the simulated device counts meanwhile; readable afterwards."""
    traffic = importlib.import_module("simdev").TRAFFIC
    counts = Counts()
    traffic.reset()
    yield counts
    counts.up, counts.up_bytes = traffic.h2d, traffic.h2d_bytes
    counts.down, counts.down_bytes = traffic.d2h, traffic.d2h_bytes


@functools.cache
def plain_operations() -> None:
    """Puts plain operations under what NxD Inference's own models do beyond torch, for the simulated device.

    They have custom calls of XLA, a cast to ``torch.Tensor`` that tells kernels what they get and that `torch.export`
    does not follow, and weights under two names, of which a checkpoint has one. A rank's
    number, which nothing reads, is no part of some checkpoints.
    """
    importlib.import_module("simpar").plain_kernels()
    FakeTensor.as_subclass = lambda self, _: self  # type: ignore[assignment, method-assign]
    runtime = importlib.import_module("sim_runtime")
    names: dict[str, str] = {}
    ranks: set[str] = set()
    generate, initialize = runtime.generate_hlo, runtime.SPMDModel.initialize

    def generate_hlo(module: Any, *arguments: Any, **options: Any) -> Any:
        first: dict[int, str] = {}
        tensors = (module.named_parameters, module.named_buffers)
        for name, tensor in (pair for each in tensors for pair in each(remove_duplicate=False)):
            if first.setdefault(id(tensor), name) != name:
                names[name] = first[id(tensor)]
            if name.endswith(".rank"):
                ranks.add(name)
        return generate(module, *arguments, **options)

    def initialize_with_all_names(self: Any, states: Any, weights: Any, start: Any) -> Any:
        upload = importlib.import_module("simdev").to_device
        for rank, row in enumerate(weights):
            row.update(
                {name: row[other] for name, other in names.items() if other in row and name not in row}
            )
            number = torch.tensor([rank], dtype=torch.int32)
            row.update({name: upload(number, rank) for name in ranks if name not in row})
        return initialize(self, states, weights, start)

    runtime.SPMDModel.initialize = initialize_with_all_names
    runtime.generate_hlo = importlib.import_module("torch_neuronx.xla_impl.trace").generate_hlo = generate_hlo


def close(value: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert value.device.type == "cpu"
    torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)

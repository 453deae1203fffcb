"""The key of an application: what its programs depend on, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from orchestrator.adapter import Adapter
from orchestrator_neuron.emulated.backend import EmulatedBackend
from tests.neuron.programs import Affine, application, program, spec

FORM = program({"x": spec(2, 4)}, {"output": spec(2, 3)})


def test_planning_and_keys_need_no_device() -> None:
    backend = EmulatedBackend("neuron-emulated:0", {"tp_degree": 2})
    assert backend.device == "neuron-emulated"
    assert backend.capabilities.ranks == 2
    assert backend.measured() is None
    assert len(backend.key(application(Affine(), FORM))) == 64


def test_the_key_leaves_weights_and_their_place_out() -> None:
    backend = EmulatedBackend("neuron-emulated")
    base = backend.key(application(Affine(), FORM))
    same = [
        application(Affine(seed=3), FORM),
        application(Affine(), FORM, config={"checkpoint": "elsewhere"}),
        application(Affine(), FORM, name="other"),
    ]
    assert {backend.key(item) for item in same} == {base}
    flat = [backend.key(application(nn.LSTM(4, 3), FORM, outputs=("output", "state"))) for _ in range(2)]
    assert flat[0] == flat[1]  # it holds its weights in a list, too


def test_the_key_depends_on_what_a_program_depends_on() -> None:
    class Holds(nn.Module):
        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.value

    def closes(value: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x * value

    def calls(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: module(x)

    def key(target: Any, *forms: Any, options: dict[str, Any] | None = None, **config: Any) -> str:
        backend = EmulatedBackend("neuron-emulated", options)
        return backend.key(application(target, *(forms or (FORM,)), config=config))

    wide = program({"x": spec(4, 4)}, {"output": spec(4, 3)})
    with_pad = dataclasses.replace(
        FORM, inputs=(dataclasses.replace(FORM.inputs[0], adapters=(Adapter("pad", (2, 4), 1),)),)
    )
    other_pad = dataclasses.replace(
        FORM, inputs=(dataclasses.replace(FORM.inputs[0], adapters=(Adapter("pad", (2, 4), 2),)),)
    )
    keys = [
        key(Affine()),
        key(Affine(), wide),
        key(Affine(), FORM, dataclasses.replace(FORM, name="q", route=1)),
        key(Affine(), FORM, dataclasses.replace(FORM, name="q", route=2)),
        key(Affine(), with_pad),
        key(Affine(), other_pad),
        key(Affine(width=5)),
        key(Affine(), options={"tp_degree": 2}),
        key(Affine(), options={"torch_dtype": "bfloat16"}),
        key(Affine(), options={"logical_nc_config": 1}),
        key(Affine(), compiler_args="-O1"),
        key(Affine(), sharded={"output": 0}),
        key(Affine(), shard_weights={"scale": 0}),
        key(Holds(2)),
        key(Holds(3)),
        key(Holds(torch.zeros(3))),
        key(Holds(torch.ones(3))),
        key(Holds([1, {"a": 2}])),
        key(Holds([1, {"a": 3}])),
        key(closes(2)),
        key(closes(3)),
        key(closes(torch.zeros(3))),
        key(closes(torch.ones(3))),
        key(calls(Affine())),
        key(calls(Affine(seed=1))),
    ]
    assert len(set(keys)) == len(keys)

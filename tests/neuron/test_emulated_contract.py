"""The emulated device keeps the contract of a backend."""

from __future__ import annotations

import pytest

from orchestrator.testing.contracts import BackendCase, BackendContract
from orchestrator_neuron.emulated.backend import EmulatedBackend
from orchestrator_neuron.family import DTYPES


class TestContract(BackendContract):
    @pytest.fixture(params=[1, 2])
    def case(self, request: pytest.FixtureRequest) -> BackendCase:
        return BackendCase(EmulatedBackend, "neuron-emulated", {"tp_degree": request.param}, dtypes=DTYPES)

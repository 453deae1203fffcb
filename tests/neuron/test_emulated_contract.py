"""The emulated device keeps the contract of a backend, but for what one that compiles applications does otherwise."""

from __future__ import annotations

import pytest

from orchestrator.testing.contracts import BackendCase, BackendContract
from orchestrator_neuron.emulated.backend import EmulatedBackend
from orchestrator_neuron.family import DTYPES


class TestContract(BackendContract):
    @pytest.fixture(params=[1, 2])
    def case(self, request: pytest.FixtureRequest) -> BackendCase:
        return BackendCase(EmulatedBackend, "neuron-emulated", {"tp_degree": request.param}, dtypes=DTYPES)

    # Stages are compiled as applications: `test_emulated_run` and `test_emulated_compile` show the same of them.
    test_a_stage_gives_what_it_gives_by_hand = None
    test_a_stage_takes_ports_by_name_and_plain_values = None
    test_a_module_is_left_alone = None
    test_what_cannot_be_built_is_a_compile_error = None
    test_artifacts_are_keyed_by_content = None

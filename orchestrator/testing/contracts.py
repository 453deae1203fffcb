"""Contract suites: what every stage and every backend keeps, as tests to subclass.

A suite is a class of pytest tests. Subclass it under a name that starts with ``Test`` and give it a fixture called
``case``; with several cases, parametrise the fixture::

    class TestMyStages(StageContract):
        @pytest.fixture(params=[...])
        def case(self, request):
            return StageCase(make=request.param, feeds={"x": TensorSpec(("batch", 8), pad=0)}, sizes={"batch": (2, 4)})

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def case(self):
            return BackendCase(MyBackend, "mine:0", absent="mine:99")

The project's own stages and backends pass the same suites.
"""

from __future__ import annotations

from orchestrator.testing.backend_contract import BackendCase, BackendContract
from orchestrator.testing.stage_contract import StageCase, StageContract

__all__ = ["BackendCase", "BackendContract", "StageCase", "StageContract"]

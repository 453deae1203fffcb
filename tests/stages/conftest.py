"""Trials of equal stages are shared by the tests of this folder: its tiny models are planned hundreds of times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.planner.infer.probe import Prober


@pytest.fixture(scope="module", autouse=True)
def _shared_trials() -> Iterator[None]:
    """Lets the plans of a file know what stages of equal structure gave on fake tensors, as within one plan.

    A stage that was tried stays alive meanwhile: a structure knows some of its parts by their identity.
    """
    memo: dict[Any, Any] = {}
    stages: dict[int, Any] = {}
    begin, run = Prober.__init__, Prober.run

    def begin_with_memo(self: Prober, *arguments: Any) -> None:
        begin(self, *arguments)
        self._memo = memo

    def run_and_keep(self: Prober, stage: Any, *arguments: Any, **options: Any) -> Any:
        stages[id(stage)] = stage
        return run(self, stage, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prober, "__init__", begin_with_memo)
        patch.setattr(Prober, "run", run_and_keep)
        yield

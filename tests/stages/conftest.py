"""Trials of equal stages are shared by the tests of this folder: its tiny models are planned hundreds of times."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _shared_trials(shared_trials: None) -> None:
    """Asks for it in each file."""

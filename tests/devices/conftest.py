"""Every torch device this machine has; CUDA is skipped where there is none."""

from __future__ import annotations

import pytest
import torch


def _device(name: str) -> pytest.param:
    missing = name == "cuda" and not torch.cuda.is_available()
    marks = [pytest.mark.cuda] if name == "cuda" else []
    return pytest.param(name, marks=[*marks, pytest.mark.skipif(missing, reason="there is no CUDA device")])


@pytest.fixture(params=[_device("cpu"), _device("cuda")])
def device(request: pytest.FixtureRequest) -> str:
    return request.param

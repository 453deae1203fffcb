"""The device `neuron` of TorchNeuron, on the simulated one, in a process of its own: see `on_torchneuron.py`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = re.findall(r"^def check_(\w+)", (HERE / "on_torchneuron.py").read_text(), re.M)


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    """What went wrong, by check."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.neuron.on_torchneuron"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_on_the_simulated_device(name: str, results: dict[str, str | None]):
    assert results[name] is None, results[name]

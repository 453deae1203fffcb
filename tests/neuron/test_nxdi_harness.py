"""The device `nxdi` on the real classes of NxD Inference.

`harness.py` needs what is not in this repository; without it, all of this is skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
VARIABLES = ("NXDI_SRC", "NXD_SRC", "ORCHESTRATOR_NXDI_HARNESS")
MODULES = sorted((HERE / "on_nxdi").glob("*.py"))
NAMES = [name for path in MODULES for name in re.findall(r"^def check_(\w+)", path.read_text(), re.M)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(os.environ.get(name) for name in VARIABLES),
        reason=f"needs the sources of NxD Inference and a simulated device: set {', '.join(VARIABLES)} "
        f"(python tests/neuron/harness.py explains)",
    ),
]


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    """What went wrong, by check; they run once, in a process of their own: it replaces parts of torch."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "harness.py"],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert process.stdout, process.stderr
    return json.loads(process.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_on_nxd_inference(name: str, results: dict[str, str | None]):
    assert results[name] is None, results[name]

"""What is imported when: names and help text must not wait for torch.

Each case runs in an interpreter of its own, since this one has imported everything already.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPORT = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def modules_after(code: str, folder: Path) -> set[str]:
    """The top-level modules that are loaded once `code` has run."""
    script = f"{code}\n{REPORT}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*arguments: str) -> str:
    return (
        "import sys\n"
        "from orchestrator.cli import main\n"
        f"sys.argv = ['orchestrator', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    )


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        pytest.param("import orchestrator", {"torch", "networkx", "numpy", "typer", "rich"}, id="import"),
        pytest.param("from orchestrator import PlanError", {"torch", "networkx"}, id="error name"),
        pytest.param("import orchestrator.cli", {"torch", "networkx", "numpy", "PIL"}, id="import cli"),
        pytest.param(command("--help"), {"torch", "networkx", "numpy", "PIL"}, id="--help"),
        pytest.param(command("run", "--help"), {"torch", "networkx", "numpy", "PIL"}, id="run --help"),
        pytest.param("import orchestrator.testing.pytest_plugin", {"torch", "networkx"}, id="pytest plugin"),
        pytest.param("import orchestrator_stages", {"torch", "numpy", "PIL", "safetensors"}, id="stages"),
    ],
)
def test_heavy_modules_stay_out(code: str, absent: set[str], tmp_path: Path):
    loaded = modules_after(code, tmp_path)
    assert not loaded & absent


def test_a_name_that_needs_torch_loads_it(tmp_path: Path):
    assert "torch" in modules_after("from orchestrator import Pipeline", tmp_path)

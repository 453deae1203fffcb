"""A runtime that calls the device ``neuron``: torch says so for both names then; NxD Inference knows the old one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.utils.rename_privateuse1_backend("neuron")
import harness
harness.install()
from on_nxdi import renamed
renamed.edge_that_stays_on_the_device()
"""


def edge_that_stays_on_the_device():
    """Runs two stages with nothing but the device between them."""
    import torch
    from torch import nn

    from orchestrator import Pipeline, TensorSpec

    pipeline = Pipeline("edge")
    one, two = nn.Linear(4, 4).eval(), nn.Linear(4, 4).eval()
    first = pipeline.add("one", one)(pipeline.input("x", TensorSpec((2, 4))))
    pipeline.output("y", pipeline.add("two", two)(first))
    x = torch.randn(2, 4)
    with pipeline.plan("nxdi", options={"tp_degree": 2}).load() as session:
        torch.testing.assert_close(session(x=x)["y"], two(one(x)).detach())


def check_values_of_a_renamed_device_stay_there():
    """In a process of its own: a name is given once."""
    here = Path(__file__).parents[1]
    script = _SCRIPT.format(paths=[str(here), str(here.parents[1])])
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=300)

"""Fill networks with trained weights that ship in this package.

Building a network and reading its weights are two steps, since a network may be built only to look at its
shapes: under torch's fake tensor mode, or on the meta device, it has no memory to read into and stays as it
is.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


def fill(module: nn.Module, file: Path) -> None:
    """Reads a safetensors file into ``module``, unless it is fake, and makes it ready for inference."""
    if not any(isinstance(p, FakeTensor) or p.is_meta for p in module.parameters()):
        module.load_state_dict(load(file.read_bytes()))
    module.eval().requires_grad_(False)

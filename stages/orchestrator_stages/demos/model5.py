"""The pipeline ``model5``: five small models that show how values may flow through a graph.

    x ----> m1 --+--> m2 --+
                 |         |
                 +------------------> m4 --> m5 ----> m5
                 |         aux1, aux2 ^
                 +--> m3 ----------------------------> m3
                       ^ aux1

*Fan-out*: the output of ``m1`` has three readers. It is computed once, stays where it is, and is freed by
the last of them.

*Fan-in*: ``m4`` waits for ``m1`` and ``m2``, and reads two inputs of the pipeline as well, so values of the
device and values of the host meet at one stage. Which of its inputs come from where is not the model's
business: the planner uploads those that need it, and ``aux1``, which ``m3`` and ``m4`` both read, is
uploaded once.

*Results*: ``m3`` is a result by itself and has no reader in the graph; ``m2`` is no result and never leaves
the device.

The sizes are those of the pipeline test of NxD Inference; the weights are random, the same for the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator_stages.seeding import seeded

X, AUX1, AUX2 = 64, 16, 24
M1, M2, M3, M4, M5 = 128, 32, 32, 48, 24


class JointLinear(nn.Module):
    """A linear layer over all its inputs side by side.

    Args:
        sizes: Length of each input.
        size: Length of the output.
    """

    def __init__(self, sizes: Sequence[int], size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(sizes), size)

    def forward(self, *parts: Tensor) -> Tensor:
        """Returns ``[batch, size]`` for parts ``[batch, sizes[0]]``, ``[batch, sizes[1]]``, and so on."""
        result: Tensor = self.linear(torch.cat(parts, dim=1))
        return result


def models(seed: int = 0) -> dict[str, nn.Module]:
    """Returns the five models by name, their weights drawn from ``seed``."""
    with seeded(seed):
        return {
            "m1": nn.Linear(X, M1),
            "m2": nn.Linear(M1, M2),
            "m3": JointLinear((M1, AUX1), M3),
            "m4": JointLinear((AUX1, M1, AUX2, M2), M4),
            "m5": nn.Sequential(nn.ReLU(), nn.Linear(M4, M5)),
        }


def example_inputs(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns ``x``, ``aux1`` and ``aux2`` at the size of ``batch``, random and the same each time."""
    lengths = {"x": X, "aux1": AUX1, "aux2": AUX2}
    with seeded(1):
        return {name: torch.randn(sizes["batch"], length) for name, length in lengths.items()}


def model5(*, batch: int | Sequence[int] = (1, 4), seed: int = 0) -> Pipeline:
    """Builds the pipeline.

    Its inputs are ``x`` ``[batch, 64]``, ``aux1`` ``[batch, 16]`` and ``aux2`` ``[batch, 24]``, its outputs
    ``m3`` ``[batch, 32]`` and ``m5`` ``[batch, 24]``.

    Args:
        batch: The batch sizes it is compiled for.
        seed: Seed of the weights.
    """
    size = Dim("batch", buckets=batch, batch=True)
    model = models(seed)
    pipeline = Pipeline("model5")
    pipeline.example_inputs = example_inputs
    x = pipeline.input("x", TensorSpec((size, X), pad=0))
    aux1 = pipeline.input("aux1", TensorSpec((size, AUX1), pad=0))
    aux2 = pipeline.input("aux2", TensorSpec((size, AUX2), pad=0))

    # As in the picture above: one value fans out to three stages, and four values of two origins fan in.
    m1 = pipeline.add("m1", model["m1"])(x)
    m2 = pipeline.add("m2", model["m2"])(m1)
    m3 = pipeline.add("m3", model["m3"], inputs=("m1", "aux1"))(m1, aux1)
    m4 = pipeline.add("m4", model["m4"], inputs=("aux1", "m1", "aux2", "m2"))(aux1, m1, aux2, m2)
    m5 = pipeline.add("m5", model["m5"])(m4)

    pipeline.output("m3", m3)
    pipeline.output("m5", m5)
    return pipeline

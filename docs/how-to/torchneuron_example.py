"""A pipeline on the simulated TorchNeuron device; in a process of its own, which has that device for good."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator_neuron.torchneuron.simulated import Board, install


def main(board: Board) -> int:
    """Answers requests of any size up to the largest bucket, and returns how many graphs that took."""
    pipeline = Pipeline("example")
    x = pipeline.input("x", TensorSpec((Dim("n", (2, 8)), 4), pad=0.0))
    pipeline.output("y", pipeline.add("net", nn.Linear(4, 4).eval())(x))
    with pipeline.plan(device="neuron").load() as session:
        before = len(board.compiles)
        for size in range(1, 9):
            session(x=torch.randn(size, 4))
        assert len(board.compiles) == before
        return int(session.stats["measured"]["neuron:0"]["compiles"])


if __name__ == "__main__":
    main(install(cores=2))

"""Sizes at which stages are tried: far above the largest bucket only what does not do its work item by item."""

from __future__ import annotations

import torch

from orchestrator.planner.infer.probe import Prober
from tests.kit import batch, new, spec


def tried(monkeypatch, stage) -> list[int]:
    """Sizes of a batch with the largest bucket 4 that a stage is tried at."""
    sizes, run = [], Prober.run

    def noting(self, stage, arguments, capture=False):
        sizes.append(arguments[0][1][0][0])
        return run(self, stage, arguments, capture)

    monkeypatch.setattr(Prober, "run", noting)
    pipeline = new()
    pipeline.output("y", pipeline.add("s", stage)(pipeline.input("x", spec(batch("n", (2, 4)), 3, pad=0))))
    pipeline.plan()
    return sizes


def test_a_batch_is_tried_above_its_largest_bucket(monkeypatch):
    assert [size for size in tried(monkeypatch, lambda x: x * 2) if size > 4] == [5, 1025]


def test_what_works_item_by_item_is_not_tried_at_a_thousand_items(monkeypatch):
    """A slice of attention at a time, say: each size would take as many operations more."""
    one_by_one = tried(monkeypatch, lambda x: torch.stack([row * 2 for row in x]))
    assert [size for size in one_by_one if size > 4] == [5]
    assert {1, 2, 3, 4} <= set(one_by_one)

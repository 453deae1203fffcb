"""The five-stage graph ``model5``: fan-out, fan-in, three inputs, two results; small linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from orchestrator_stages.demos.model5 import AUX1, AUX2, X, model5, models
from tests.bench.measure import Effort, Row, compare

LIMIT = 1.05

Function = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def by_hand(modules: Mapping[str, nn.Module]) -> Function:
    """The graph as calls, given up where a careful author would not bother: the tensors are small."""
    m1, m2, m3, m4, m5 = (modules[name] for name in ("m1", "m2", "m3", "m4", "m5"))

    def run(x: Tensor, aux1: Tensor, aux2: Tensor) -> dict[str, Tensor]:
        h1 = m1(x)
        h2 = m2(h1)
        h3 = m3(h1, aux1)
        h4 = m4(aux1, h1, aux2, h2)
        return {"m3": h3, "m5": m5(h4)}

    return run


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    assert device == "cpu"
    for batch in (1, 4, 32):
        yield _row(effort, batch)


def _row(effort: Effort, batch: int) -> Row:
    x, aux1, aux2 = (torch.rand(batch, size) for size in (X, AUX1, AUX2))
    run = by_hand(models())
    with model5(batch=batch).plan().load() as session, torch.inference_mode():
        ours, expected = session(x=x, aux1=aux1, aux2=aux2), run(x, aux1, aux2)
        equal = ours.keys() == expected.keys() and all(torch.equal(ours[key], expected[key]) for key in ours)
        pair = compare(
            lambda: session(x=x, aux1=aux1, aux2=aux2), lambda: run(x, aux1, aux2), effort.rounds(500)
        )
    judged = batch == 1
    return pair.row(
        "model5",
        f"batch {batch}",
        unit="us",
        limit=LIMIT if judged else None,
        equal=equal,
        note="the batch of the test the graph comes from, and the hardest" if judged else "",
    )

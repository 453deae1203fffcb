"""A record of when each step ran, for a person (a table) or for ui.perfetto.dev (Chrome trace JSON)."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.plan.steps import Step, adapter_of
from orchestrator.store import write_atomically
from orchestrator.tables import table

__all__ = ["Span", "Trace"]


@dataclass(frozen=True)
class Span:
    """One step of one request.

    Attributes:
        name: The call, or what an adapter did to which value.
        kind: ``call``, ``adapt`` or ``region``.
        device: Where.
        thread: The thread it ran in.
        start: Seconds on a clock of its own (``time.perf_counter``).
        seconds: How long the host was busy with it; a GPU may still be working.
    """

    name: str
    kind: str
    device: str
    thread: int
    start: float
    seconds: float


class Trace:
    """Spans of all requests that ran while it was on.

    Args:
        pipeline: The pipeline's name.
    """

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        self.spans: list[Span] = []

    def add(self, step: Step, start: float, end: float) -> None:
        """Records one step."""
        adapter = adapter_of(step)
        name = f"{adapter.kind} {step.label}" if adapter else step.label
        self.spans.append(Span(name, step.op, step.device, threading.get_ident(), start, end - start))

    def to_chrome(self) -> dict[str, Any]:
        """Returns the record in the Chrome trace event format; times in microseconds."""
        # Viewers show times from zero, and the clock of spans starts anywhere.
        first = min((span.start for span in self.spans), default=0.0)
        events = [
            {
                "name": span.name,
                "cat": span.kind,
                "ph": "X",
                "ts": (span.start - first) * 1e6,
                "dur": span.seconds * 1e6,
                "pid": self.pipeline,
                "tid": span.thread,
                "args": {"device": span.device},
            }
            for span in self.spans
        ]
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the record as Chrome trace JSON, whole or not at all."""
        write_atomically(Path(path), json.dumps(self.to_chrome()).encode())

    def __str__(self) -> str:
        rows = [("step", "device", "times", "milliseconds")]
        sums: dict[tuple[str, str], list[float]] = {}
        for span in self.spans:
            sums.setdefault((span.name, span.device), []).append(span.seconds)
        rows += [
            (name, device, str(len(all_)), f"{sum(all_) * 1e3:.3f}") for (name, device), all_ in sums.items()
        ]
        return "\n".join(table(rows, indent=""))

"""Plans that were proven of a graph: this process planned it so, or has compared the plan with a plan of its own.

To prove a plan of a graph takes as long as to plan it: its stages are tried. But the outcome hangs on nothing besides
the *subject* of the plan, which is the graph, what its stages are described as, and the device families. A plan that
was proven of an equal subject is proven. It is remembered here as a whole, and a plan is equal to it or is none that is
known: what a plan says of itself counts for nothing, so a text that somebody changed is compared anew.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from orchestrator.fingerprint import digest
from orchestrator.fingerprint.opaque import token_uses
from orchestrator.graph import Graph
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedGroup
from orchestrator.planner.context import PlanOptions
from orchestrator.planner.infer.descriptions import StageDescriptions

__all__ = ["is_proven", "note_proof", "subject_of"]

#: Plans that are remembered; the oldest goes first.
LIMIT = 32

#: Subjects with a plan that was proven of each; plans here are data, and hold no stage.
_PROOFS: deque[tuple[str, Plan]] = deque(maxlen=LIMIT)
_LOCK = threading.Lock()


def note_proof(plan: Plan, subject: str | None) -> None:
    """Remembers that a plan was proven.

    Args:
        plan: The plan.
        subject: Of what; None: of something that cannot be recognised.
    """
    if subject is None:
        return
    # Its loader holds the pipeline, and with it all weights: the data alone is remembered.
    proof = (subject, replace(plan, loader=None))
    with _LOCK:
        if proof not in _PROOFS:
            _PROOFS.append(proof)


def is_proven(plan: Plan, subject: Callable[[], str | None]) -> bool:
    """Tells whether an equal plan was proven of an equal subject.

    Args:
        plan: The plan.
        subject: Returns the subject of today; called only where an equal plan is known of another or the same.
    """
    with _LOCK:
        proofs = tuple(_PROOFS)
    subjects = {known_subject for known_subject, other in proofs if other == plan}
    return bool(subjects) and subject() in subjects


def subject_of(
    graph: Graph, groups: tuple[PlannedGroup, ...], options: PlanOptions, descriptions: StageDescriptions
) -> str | None:
    """Returns a digest of all that planning a graph depends on, besides the choices that the plan itself states.

    Args:
        graph: The graph.
        groups: The plan's devices, with their options.
        options: Its ``resolve`` finds backends.
        descriptions: What is known of the stages.

    Returns:
        None where something has no content that can be read, as an open file has none.
    """
    stages = [
        (stage.name, stage.device, stage.host, stage.accepts, stage.aliases, descriptions.of(stage))
        for stage in graph.stages.values()
    ]
    if any(description is None for *_, description in stages):
        return None
    # What cannot be read by content is named by a token of this moment, which one of another time would not equal: its
    # use, beyond the one that counting makes, shows that there is such a thing.
    uses = token_uses()
    parts = (
        torch.__version__,
        stages,
        graph.name,
        list(graph.inputs.items()),
        sorted(graph.optional),
        graph.outputs,
        [(call.name, call.stage.name, call.loop) for call in graph.calls.values()],
        graph.edges,
        list(graph.loops.values()),
        [(name, _constant_parts(value)) for name, value in graph.constants.items()],
        [_family_parts(group, options) for group in groups],
    )
    text = repr(parts)
    return hashlib.sha256(text.encode()).hexdigest() if token_uses() == uses + 1 else None


def _constant_parts(value: Any) -> Any:
    """What planning sees of a constant; which of several are one object is looked up whenever a plan is bound."""
    if isinstance(value, torch.Tensor):
        return (type(value), tuple(value.shape), value.dtype, value.layout)
    return (type(value), digest(value))


def _family_parts(group: PlannedGroup, options: PlanOptions) -> Any:
    """What planning sees of a device group: its backend's class, and what an object of that says of itself."""
    name, kind = options.resolve(group.device)
    backend = kind(group.device, dict(group.options))
    return (group.device, name, digest(kind), backend.capabilities, sorted(backend.options.items()))

"""Running a user's code on tensors without content so that nothing of it stays behind.

A *copy* of a stage runs in its place (:mod:`orchestrator.isolation.copies`). What its code still puts into globals,
classes, caches and lists of the user's is found and taken out again (:mod:`orchestrator.isolation.leftovers`), by who
refers to it (:mod:`orchestrator.isolation.referrers`) and what was bound there before
(:mod:`orchestrator.isolation.bindings`).
"""

from orchestrator.isolation.cached_mode import CachedFakeMode, fake_mode, save_results
from orchestrator.isolation.copies import InPlace, Isolation
from orchestrator.isolation.leftovers import LeftBehindError, Leftovers
from orchestrator.isolation.outline import outline

__all__ = [
    "CachedFakeMode",
    "InPlace",
    "Isolation",
    "LeftBehindError",
    "Leftovers",
    "fake_mode",
    "outline",
    "save_results",
]

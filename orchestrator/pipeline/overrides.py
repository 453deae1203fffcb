"""Setting options of stages from outside, while a pipeline is being built."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import GraphError, nearest

__all__ = ["stage_overrides", "with_overrides"]

_overrides: contextvars.ContextVar[dict[str, dict[str, Any]] | None] = contextvars.ContextVar(
    "overrides", default=None
)


@contextlib.contextmanager
def stage_overrides(config: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Overrides the config of stages while pipelines are built, as ``orchestrator run --set stage.option=value`` does.

    Args:
        config: Stage to option to value.

    Raises:
        GraphError: (on leaving) A stage was never added.
    """
    pending = {stage: dict(options) for stage, options in config.items()}
    stages: dict[str, Any] = {}
    token = _overrides.set({"options": pending, "stages": stages})
    try:
        yield
    finally:
        _overrides.reset(token)
    for stage in pending:
        if stage not in stages:
            raise GraphError(
                f"There is no stage {stage!r} to set options of.{nearest(stage, stages)}", stage=stage
            )


def with_overrides(name: str, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a stage's config with the overrides in force, and notes that the stage exists."""
    state = _overrides.get()
    options = dict(config or {})
    if state is not None:
        state["stages"][name] = True
        options.update(state["options"].get(name, {}))
    return options

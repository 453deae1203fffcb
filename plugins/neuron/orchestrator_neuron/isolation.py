"""Surroundings of a run of a stage that is no request: while it is exported, or checked for state."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

import torch
from torch._subclasses import fake_tensor
from torch.fx.experimental import symbolic_shapes

from orchestrator.surroundings import own_modes

__all__ = ["default_torch_state", "environment_variable", "silenced"]

_LOGGERS = tuple(logging.getLogger(part.__name__) for part in (fake_tensor, symbolic_shapes, torch.export))


@contextlib.contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Gives a variable of the environment a value while its block runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def default_torch_state() -> Iterator[None]:
    """Runs its block without the modes of the caller's thread: gradients, autocast, a default device."""
    with own_modes(), torch.no_grad():
        yield


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps torch from logging, printing and warning: an error says it all, and the rest is not the user's business."""

    def drop(_record: logging.LogRecord) -> bool:
        return False

    for logger in _LOGGERS:
        logger.addFilter(drop)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger in _LOGGERS:
            logger.removeFilter(drop)

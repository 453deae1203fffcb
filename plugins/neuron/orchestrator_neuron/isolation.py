"""What is set around a run of a stage that is no request: exporting it, or looking at what it does."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch._subclasses import fake_tensor
from torch.fx.experimental import symbolic_shapes

from orchestrator.surroundings import own_modes

__all__ = ["default_torch_state", "silenced"]

_LOGGERS = tuple(logging.getLogger(part.__name__) for part in (fake_tensor, symbolic_shapes, torch.export))


@contextlib.contextmanager
def default_torch_state() -> Iterator[None]:
    """Keeps what is set for the caller's thread out of a program: gradients, autocast, a default device."""
    with own_modes(), torch.no_grad():
        yield


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps torch from logging, printing and warning about what is raised, or is none of the user's business."""

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

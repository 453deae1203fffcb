"""What tests of threads share: a stage that waits, and waiting for something to come to pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

__all__ = ["Gate", "wait_until"]


class Gate:
    """A stage that waits until it is told to go on, and counts how many are in it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0
        self.most = 0
        self.lock = threading.Lock()

    def __call__(self, x):
        if type(x) is not torch.Tensor:
            return x * 2
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.open.wait(20)
        with self.lock:
            self.inside -= 1
        return x * 2


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.001)

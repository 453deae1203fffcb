"""Make the example models reproducible without disturbing the caller's random numbers.

The example families draw their weights at random, and a test or a second process must draw the same ones.
Seeding the global generator would do it, but would also change every random number the caller draws later.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw CPU random numbers from ``seed`` inside the block, and leave the generator as it was found.

    Only the CPU generator is touched: ``torch.manual_seed`` would seed the accelerators as well.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield

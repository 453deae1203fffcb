"""What the scripts that make weights share: their options, how networks learn, and what lies beside the weights."""

from __future__ import annotations

import hashlib
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EVERY = 250
"""Steps between two words about the progress."""


def option_parser(documentation: str | None, folder: Path, **steps: int) -> ArgumentParser:
    """Returns a parser of a folder to write to, and of how long to train.

    Args:
        documentation: Of the script; its first line is the help.
        folder: Where ``out`` is by default: that of the package.
        steps: For each part that is trained, how many steps by default: ``sight=300`` gives ``--sight-steps``.
    """
    parser = ArgumentParser(description=(documentation or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=folder, help="folder to write to (default: the package's)"
    )
    for name, count in steps.items():
        parser.add_argument(f"--{name}-steps", type=int, default=count)
    return parser


class Trainer:
    """AdamW with a learning rate that rises and falls once, and a word on stderr now and then.

    Args:
        name: What is learned.
        modules: What is trained.
        rate: The highest learning rate.
        steps: How often :meth:`step` will be called.
        warm_up: Share of the steps in which the rate rises.
        options: Further ones of ``AdamW``.
    """

    def __init__(
        self, name: str, modules: Iterable[nn.Module], rate: float, steps: int, warm_up: float, **options: Any
    ) -> None:
        self.name = name
        self.steps = steps
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, rate, betas=(0.9, 0.99), **options)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, steps, pct_start=warm_up)
        self.begun = time.monotonic()
        self.losses: list[float] = []

    def step(self, loss: Tensor) -> None:
        """Moves the parameters against the slope of the loss."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        if len(self.losses) % EVERY == 0 or len(self.losses) == self.steps:
            latest = self.losses[-EVERY:]
            sys.stderr.write(
                f"{self.name}: step {len(self.losses)} of {self.steps}, loss {sum(latest) / len(latest):.4f}, "
                f"{time.monotonic() - self.begun:.0f} s\n"
            )


def write_papers(folder: Path, notice: str, *names: str) -> None:
    """Writes what lies beside weights: a ``NOTICE`` of where they come from, and their checksums, ``SHA256SUMS``.

    Args:
        folder: Where the files are.
        notice: What the first says.
        names: The files.
    """
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "NOTICE").write_text(notice, encoding="utf-8")
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")

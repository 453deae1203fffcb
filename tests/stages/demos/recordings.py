"""Recordings of speech from a package that is installed for the tests, and the words in them."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

BECKETT = "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
"""What ``beckett.wav`` says."""


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def recording(name: str) -> Path | None:
    """A file of the package; ``None``: it is not installed."""
    try:
        files = importlib.metadata.distribution("moonshine-voice").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(next(file.locate() for file in files if file.name == name)))

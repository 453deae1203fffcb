"""Paths in a description: one into the folder that somebody's own code is imported from counts as it lies there.

So the same code with the same weights has one description in every folder and on every machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator.fingerprint.code import release_of

__all__ = ["CodeFolders"]


class CodeFolders:
    """Folders that code was imported from, as far as they are known."""

    def __init__(self) -> None:
        self._tops: set[str] = set()
        self._folders: set[str] = set()

    def note(self, module: object) -> None:
        """Notes the folder that a module, by its name, comes from; one of a release has no say."""
        top = module.partition(".")[0] if isinstance(module, str) else ""
        if not top or top in self._tops:
            return
        self._tops.add(top)
        if release_of(top) is None:
            self._folders.update(_folders(top))

    def relative(self, text: str) -> str:
        """Returns a text, and a path into one of the folders without what lies above it."""
        if os.path.isabs(text):  # noqa: PTH117 - most texts are no paths, and few of these are asked more
            for folder in self._folders:
                if text == folder or text.startswith(folder + os.sep):
                    return f"<where its code is>{text[len(folder) :]}"
        return text


def _folders(top: str) -> set[str]:
    """Where a top-level module or package lies, as it was imported and without links."""
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    paths = list(getattr(module, "__path__", ()))
    location = Path(paths[0]) if paths else Path(file) if file else None
    if location is None:
        return set()
    above = {str(location.absolute().parent), str(location.resolve().parent)}
    return above - {os.sep}

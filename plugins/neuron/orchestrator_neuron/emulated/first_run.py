"""Files, random numbers and weights of a stage's first run: a program would keep them, or make them anew each time.

A stage is run once to be exported. A file that it reads then, or numbers that it draws with Python's or numpy's
generators, would be constants of the program, and no later request would see others. Numbers drawn with torch's would
be drawn by each rank for itself. A weight that it makes would have no place in a checkpoint. By hand all of it is
right, so it is refused, with the way out.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from orchestrator.errors import CompileError
from orchestrator.surroundings import RandomStates
from orchestrator_neuron.emulated.explain import draws_words

__all__ = ["FirstRun"]

#: Files of Python, of installed packages (torch is one), and of the operating system's own tables belong to a release.
_RELEASE_FOLDERS = (
    *(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "/proc/",
    "/sys/",
    "/dev/",
)
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
#: Files of torch that read for others.
_READERS = (f"{os.sep}serialization.py", f"{os.sep}hub.py", f"{os.sep}storage.py")
_PLUGIN = f"{Path(__file__).parent}{os.sep}"
_CODE = (".py", ".pyc", ".so", ".pth")


class FirstRun:
    """Watches a run of a stage.

    Args:
        where: The program, for messages.
        stage: The stage's name.
        owner: The module that owns its weights, if any.
    """

    def __init__(self, where: str, stage: str, owner: torch.nn.Module | None) -> None:
        self._where, self._stage, self._owner = where, stage, owner
        self._files: list[str] = []

    def __enter__(self) -> FirstRun:
        _install()
        self._parts = set(_parts(self._owner))
        self._random = RandomStates()
        _active.files = self._files
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Refuses a run that must not be compiled, in place of its result or its error.

        Raises:
            CompileError: It made a part of the module, read a file, or drew.
        """
        _active.files = None
        if error is None or isinstance(error, Exception):
            self._check(error)

    def _check(self, error: BaseException | None) -> None:
        # The first reason is the one that explains the others: weights that are made now are also drawn now, and
        # perhaps read from a file.
        new_parts = sorted(set(_parts(self._owner)) - self._parts)
        if new_parts:
            raise CompileError(
                f"{self._where} cannot be compiled: its first run makes "
                f"{', '.join(map(repr, new_parts[:3]))}, which is not there before. Weights, buffers and modules that "
                f"a program has are made in __init__ or make_model. Or call the module once by hand before you add it "
                f"to the pipeline.",
                stage=self._stage,
                made=tuple(new_parts),
            ) from error
        if self._files:
            raise CompileError(
                f"{self._where} cannot be compiled: it reads the file {self._files[0]!r} while it runs. A program "
                f"would keep what the file says now, also when it has changed. Read it before, in __init__ or "
                f"make_model, or run the stage on 'cpu' or as a host stage.",
                stage=self._stage,
                files=tuple(self._files),
            ) from error
        generators = self._random.changed_generators()
        if generators:
            raise CompileError(draws_words(self._where, f"{generators[0]!r}"), stage=self._stage) from error


def _parts(owner: torch.nn.Module | None) -> Iterator[str]:
    """Names of modules, weights and buffers."""
    if owner is not None:
        yield from (name for name, _ in owner.named_modules(remove_duplicate=False))
        yield from (name for name, _ in owner.named_parameters(remove_duplicate=False))
        yield from (name for name, _ in owner.named_buffers(remove_duplicate=False))


class _Active(threading.local):
    """The list of files that the thread opens; None: nobody watches it."""

    files: list[str] | None = None


_active = _Active()
_hooks: list[bool] = []


def _install() -> None:
    """Has Python report each file that is opened; a hook stays for ever, and costs next to nothing between runs."""
    if not _hooks:
        _hooks.append(True)
        sys.addaudithook(_note_file)


def _note_file(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or _active.files is None:
        return
    file, mode, flags = args
    if isinstance(file, int) or not _reads(mode, flags):
        return
    path = str(Path(os.fsdecode(file)).absolute())
    if (
        not path.startswith(_RELEASE_FOLDERS)
        and not path.endswith(_CODE)
        and _is_read_by_stage(sys._getframe(1))
    ):
        _active.files.append(path)


def _reads(mode: str | None, flags: int) -> bool:
    if mode is None:
        return flags & (os.O_WRONLY | os.O_RDWR) != os.O_WRONLY
    return "r" in mode or "+" in mode


def _is_read_by_stage(frame: FrameType | None) -> bool:
    """Tells whether a stage's code reads, itself or by a library; not torch, and not Python while it imports."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(("<frozen importlib", "<frozen zipimport")):
            return False
        if file.startswith(_TORCH) and not file.endswith(_READERS):
            return False
        if not file.startswith((*_RELEASE_FOLDERS, "<frozen")):
            return not file.startswith(_PLUGIN)
        frame = frame.f_back
    return False

"""What a compiled application consists of, as ``manifest.json`` beside its files.

An *entry* is one program compiled for one or several combinations of buckets with the same shapes: a file with the
exported program, without weights, and the forms of what goes in and out. A *form* is a shape and a dtype.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import CompileError
from orchestrator.specs import dtype_name
from orchestrator_neuron.emulated.device import size_of

__all__ = ["FORMAT", "Entry", "Form", "Manifest", "read", "show_shapes", "write"]

#: Counts up when a folder of an older version can no longer be read, or programs would be others now.
FORMAT = 3

NAME = "manifest.json"


@dataclass(frozen=True)
class Form:
    """A shape and a dtype.

    Attributes:
        shape: Sizes.
        dtype: Element type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Form:
        """Returns the form of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of such a tensor."""
        return size_of(self.shape, self.dtype)

    def __str__(self) -> str:
        return f"{list(self.shape)} {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Entry:
    """One program at one shape.

    Attributes:
        program: The program's name.
        file: Name of its file.
        inputs: Forms of its tensors in order, the route last where there is one.
        outputs: Forms of what it gives, in order.
        constant_bytes: What tensors take that were compiled in.
    """

    program: str
    file: str
    inputs: tuple[Form, ...]
    outputs: tuple[Form, ...]
    constant_bytes: int = 0

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """What the router goes by: the shapes of all inputs."""
        return tuple(form.shape for form in self.inputs)


@dataclass(frozen=True)
class Manifest:
    """A compiled application.

    Attributes:
        application: Its name.
        weights: Name to form, on one rank.
        entries: Its entries.
    """

    application: str
    weights: Mapping[str, Form]
    entries: tuple[Entry, ...]


def show_shapes(shapes: Iterable[Iterable[int]]) -> str:
    """Returns ``[[2, 3], [4]]``, as NxD Inference's router spells it."""
    return str([list(shape) for shape in shapes])


def write(manifest: Manifest, folder: Path) -> None:
    """Writes it into the folder, as its last file."""
    data = {
        "format": FORMAT,
        "torch": torch.__version__,
        "application": manifest.application,
        "weights": {name: _plain(form) for name, form in manifest.weights.items()},
        "entries": [
            {
                "program": entry.program,
                "file": entry.file,
                "inputs": [_plain(form) for form in entry.inputs],
                "outputs": [_plain(form) for form in entry.outputs],
                "constant_bytes": entry.constant_bytes,
            }
            for entry in manifest.entries
        ],
    }
    (folder / NAME).write_text(json.dumps(data, indent=1))


def read(application: str, folder: Path) -> Manifest:
    """Reads what :func:`write` wrote.

    Raises:
        CompileError: The folder holds none, a damaged one, or one of another version.
    """
    try:
        data = json.loads((folder / NAME).read_text())
        version = data["format"]
        if version != FORMAT:
            raise CompileError(
                f"The compiled {application!r} in {str(folder)!r} has format {version}, this version reads {FORMAT}; "
                f"compile it again.",
                application=application,
            )
        entries = tuple(_entry(item) for item in data["entries"])
        weights = {name: _form(item) for name, item in data["weights"].items()}
        return Manifest(data["application"], weights, entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CompileError(
            f"The compiled {application!r} in {str(folder)!r} cannot be read ({type(error).__name__}: {error}); "
            f"compile it again.",
            application=application,
        ) from error


def _plain(form: Form) -> list[Any]:
    return [list(form.shape), dtype_name(form.dtype)]


def _form(data: Any) -> Form:
    shape, name = data
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype) or not all(map(_is_count, shape)):
        raise ValueError(f"{data!r} is no shape and dtype")
    return Form(tuple(shape), dtype)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _entry(data: Any) -> Entry:
    if not _is_count(data["constant_bytes"]):
        raise ValueError("constant_bytes is no number of bytes")
    return Entry(
        data["program"],
        data["file"],
        tuple(map(_form, data["inputs"])),
        tuple(map(_form, data["outputs"])),
        data["constant_bytes"],
    )

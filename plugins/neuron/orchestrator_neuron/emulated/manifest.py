"""The contents of a compiled application, as ``manifest.json`` beside its files.

An entry of it is one *version*: a program compiled for one or several combinations of buckets with the same shapes, in
a file with the exported program, without weights; and shape and dtype of each input and output.
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

__all__ = ["FORMAT", "ApplicationManifest", "CompiledVersion", "TensorMeta", "read", "show_shapes", "write"]

#: Counts up when a folder of an older version can no longer be read, or programs would be others now.
FORMAT = 3

NAME = "manifest.json"


@dataclass(frozen=True)
class TensorMeta:
    """A shape and a dtype.

    Attributes:
        shape: Sizes.
        dtype: Element type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorMeta:
        """Returns shape and dtype of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of such a tensor."""
        return size_of(self.shape, self.dtype)

    def __str__(self) -> str:
        return f"{list(self.shape)} {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class CompiledVersion:
    """One program at one shape.

    Attributes:
        program: The program's name.
        file: Name of its file.
        inputs: Of its tensors in order, the route last where there is one.
        outputs: Of its results, in order.
        constant_bytes: Bytes of the tensors that were compiled in.
    """

    program: str
    file: str
    inputs: tuple[TensorMeta, ...]
    outputs: tuple[TensorMeta, ...]
    constant_bytes: int = 0

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of all inputs, by which the router finds it."""
        return tuple(meta.shape for meta in self.inputs)


@dataclass(frozen=True)
class ApplicationManifest:
    """A compiled application.

    Attributes:
        application: Its name.
        weights: Name to shape and dtype, on one rank.
        versions: Its versions.
    """

    application: str
    weights: Mapping[str, TensorMeta]
    versions: tuple[CompiledVersion, ...]


def show_shapes(shapes: Iterable[Iterable[int]]) -> str:
    """Returns ``[[2, 3], [4]]``, as NxD Inference's router spells it."""
    return str([list(shape) for shape in shapes])


def write(manifest: ApplicationManifest, folder: Path) -> None:
    """Writes it into the folder, as its last file."""
    # Torch's version is there for people alone: the content key, which finds the folder, depends on it already.
    data = {
        "format": FORMAT,
        "torch": torch.__version__,
        "application": manifest.application,
        "weights": {name: _plain(meta) for name, meta in manifest.weights.items()},
        "entries": [
            {
                "program": version.program,
                "file": version.file,
                "inputs": [_plain(meta) for meta in version.inputs],
                "outputs": [_plain(meta) for meta in version.outputs],
                "constant_bytes": version.constant_bytes,
            }
            for version in manifest.versions
        ],
    }
    (folder / NAME).write_text(json.dumps(data, indent=1))


def read(application: str, folder: Path) -> ApplicationManifest:
    """Reads a manifest that :func:`write` wrote.

    Raises:
        CompileError: The folder holds none, a damaged one, or one of another version.
    """
    try:
        data = json.loads((folder / NAME).read_text())
        # The form comes before its content: one of another version may lack any of it.
        number = data["format"]
        if number != FORMAT:
            raise CompileError(
                f"The compiled {application!r} in {str(folder)!r} has format {number}, this version reads {FORMAT}; "
                f"compile it again.",
                application=application,
            )
        versions = tuple(_version(item) for item in data["entries"])
        weights = {name: _tensor_meta(item) for name, item in data["weights"].items()}
        return ApplicationManifest(data["application"], weights, versions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CompileError(
            f"The compiled {application!r} in {str(folder)!r} cannot be read ({type(error).__name__}: {error}); "
            f"compile it again.",
            application=application,
        ) from error


def _plain(meta: TensorMeta) -> list[Any]:
    return [list(meta.shape), dtype_name(meta.dtype)]


def _tensor_meta(data: Any) -> TensorMeta:
    shape, name = data
    dtype = vars(torch).get(name)
    if not isinstance(dtype, torch.dtype) or not all(map(_is_count, shape)):
        raise ValueError(f"{data!r} is no shape and dtype")
    return TensorMeta(tuple(shape), dtype)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _version(data: Any) -> CompiledVersion:
    if not _is_count(data["constant_bytes"]):
        raise ValueError("constant_bytes is no number of bytes")
    return CompiledVersion(
        data["program"],
        data["file"],
        tuple(map(_tensor_meta, data["inputs"])),
        tuple(map(_tensor_meta, data["outputs"])),
        data["constant_bytes"],
    )

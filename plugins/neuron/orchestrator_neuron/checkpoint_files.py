"""Opening a safetensors checkpoint: which files it has, and which weight is in which.

A *checkpoint* is a safetensors file, a folder with ``model.safetensors``, or a folder with
``model.safetensors.index.json`` and the shards it lists; or a ``state_dict`` in memory. Opening reads names and shapes,
no data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from orchestrator.errors import CompileError

__all__ = ["damage_error", "kind_of", "open_checkpoint"]

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def kind_of(name: str) -> str:
    """Returns the kind of a dtype as safetensors spells it: ``F32``, ``BF16``, ``I64``, ``U8``, ``BOOL``, ``C64``."""
    if name == "BOOL":
        return "bool"
    return {"F": "float", "B": "float", "C": "complex"}.get(name[0], "int")


@contextlib.contextmanager
def open_checkpoint(
    stage: str, checkpoint: str | Mapping[str, torch.Tensor]
) -> Iterator[tuple[Path | str, dict[str, Any]]]:
    """Opens a checkpoint; yields its path for messages and, by weight name, the open file that holds the weight.

    Args:
        stage: The stage's name, for messages.
        checkpoint: Path of the file or folder, or a ``state_dict``.

    Raises:
        CompileError: There is no such checkpoint, or it is damaged.
    """
    if not isinstance(checkpoint, str):
        state_dict = _InMemory(checkpoint)
        yield "state_dict", dict.fromkeys(checkpoint, state_dict)
        return
    path = Path(checkpoint).expanduser()
    # All shards stay open together: weights are read in the order of the module, from any of them.
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        for file, names in _files(stage, path):
            try:
                handle = stack.enter_context(safe_open(file, framework="pt"))
                keys = set(handle.keys())
            except (SafetensorError, OSError, ValueError) as error:
                raise damage_error(stage, file, error) from error
            # An index may promise more than its shard has; read late, that would be an error without a file's name.
            absent = [name for name in names or () if name not in keys]
            if absent:
                raise damage_error(stage, file, f"the index says that it has {absent[0]!r}, but it does not")
            files.update(dict.fromkeys(names if names is not None else sorted(keys), handle))
        yield path, files


class _InMemory:
    """A ``state_dict``, read like an open safetensors file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().cpu()

    def get_slice(self, name: str) -> _InMemorySlice:
        return _InMemorySlice(self._tensors[name])


class _InMemorySlice:
    """Shape and dtype of a tensor, with the methods of a safetensors slice."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        dtype = self._tensor.dtype
        if dtype is torch.bool:
            return "BOOL"
        kind = "C" if dtype.is_complex else "F" if dtype.is_floating_point else "I"
        return f"{kind}{8 * dtype.itemsize}"


def _files(stage: str, path: Path) -> list[tuple[Path, list[str] | None]]:
    """Returns the files of a checkpoint, with the names to read from each; ``None``: all of its names."""
    # The usual names in order: one file, then an index. Other files in a folder may belong to another model, so they
    # are named in the error and not read.
    if path.is_file():
        return [(path, None)]
    if not path.is_dir():
        raise CompileError(
            f"The checkpoint of stage {stage!r}, {str(path)!r}, does not exist. It is a .safetensors file or a folder "
            f"with {FILE}.",
            stage=stage,
            path=path,
        )
    if (path / FILE).is_file():
        return [(path / FILE, None)]
    if (path / INDEX).is_file():
        return _index_files(stage, path / INDEX)
    others = sorted(item.name for item in path.glob("*.safetensors"))
    hint = f" It has {', '.join(others[:3])}: name the file itself." if others else ""
    raise CompileError(
        f"The checkpoint of stage {stage!r}, the folder {str(path)!r}, has neither {FILE} nor {INDEX}.{hint}",
        stage=stage,
        path=path,
    )


def _index_files(stage: str, index: Path) -> list[tuple[Path, list[str] | None]]:
    try:
        shards: dict[str, list[str]] = {}
        for name, file in json.loads(index.read_text())["weight_map"].items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} is no file of this folder")
            shards.setdefault(file, []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise damage_error(stage, index, error) from error
    return [(index.parent / file, names) for file, names in shards.items()]


def damage_error(stage: str, path: Path | str, error: object) -> CompileError:
    """Returns the error that a file of a checkpoint cannot be read."""
    return CompileError(
        f"The checkpoint of stage {stage!r} cannot be read: {str(path)!r}: {error}. Write it again.",
        stage=stage,
        path=path,
    )

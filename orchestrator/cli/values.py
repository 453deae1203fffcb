"""Values of a request: read from files or text as an input wants them, and written as their kind asks.

    input                 taken from
    tensor                .npy; .safetensors with one tensor, or file.safetensors:key; .png or .jpg where its
                          dims are those of a picture
    str                   a .txt file, or the text itself
    int, float, bool      the number itself, or a .json file
    list, dict, tuple     a .json file, or JSON text
    list of tensors       .safetensors: its tensors in the order of their names
    any other type        a file, by the type's own `from_file`

    output                written as
    uint8 picture         .png, or .jpg
    other tensor          .npy, or .safetensors (also where numpy lacks the dtype)
    str                   .txt
    list of tensors       a folder of files, one for each, named by its place
    other Python value    .json

Nothing is cast or resized: whether a value fits its input is for the session to say.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch

from orchestrator.cli.json_values import to_plain
from orchestrator.cli.output_files import Batch, file_stems
from orchestrator.cli.pictures import is_picture, picture_layout, read_picture, write_picture
from orchestrator.cli.report import JobError, UsageError
from orchestrator.cli.tensors import (
    as_array,
    read_all,
    read_npy,
    read_safetensors,
    safetensors_of,
    save_npy,
)
from orchestrator.specs import PortSpec, TensorSpec, dtype_name, show_spec

__all__ = ["describe", "describe_input", "read_input", "write_output", "write_outputs"]

_PICTURES = (".png", ".jpg", ".jpeg")
_NUMBERS = (int, float, bool)
_CONTAINERS = (list, dict, tuple)
_KEY_MARK = ".safetensors:"
_MESSAGE_CHARACTERS = 200

#: Bytes of a text or JSON file; JSON takes up to 50 times as much memory.
LARGEST_TEXT = 64 << 20


def describe_input(name: str, spec: PortSpec) -> str:
    """Returns a line with the type of an input and the files it is read from."""
    return f"{name}: {show_spec(spec)}, from {_sources(spec)}"


def _sources(spec: PortSpec) -> str:
    if isinstance(spec, TensorSpec):
        return ".png, .jpg, .npy or .safetensors" if picture_layout(spec) else ".npy or .safetensors"
    if spec is str:
        return "text or .txt"
    if spec in _NUMBERS:
        return "a number or .json" if spec is not bool else "true, false or .json"
    if spec in _CONTAINERS:
        return "JSON text or .json" + (" or .safetensors" if spec is list else "")
    return "a file" if hasattr(spec, "from_file") else "Python only"


def read_input(name: str, text: str, spec: PortSpec, *, literal: bool = False) -> Any:
    """Returns the value of an input.

    Args:
        name: The input.
        text: A path, or the value itself where the input may be written out.
        spec: The spec of the input.
        literal: ``text`` is the value itself, whatever it looks like.

    Raises:
        UsageError: There is no such file, the input does not take its kind, or the text is no such value.
        JobError: The file's content cannot be read.
    """
    try:
        return _read(name, text, spec, literal)
    except (UsageError, JobError):
        raise
    except (MemoryError, RecursionError) as error:
        what = "takes more memory than there is" if isinstance(error, MemoryError) else "is nested too deeply"
        raise JobError(f"What is given for the input {name!r} {what}: {text[:80]!r}.") from error


def _read(name: str, text: str, spec: PortSpec, literal: bool) -> Any:
    # Types that only files hold come first; then a text is a path by its ending, unless it is said to be literal.
    if isinstance(spec, TensorSpec):
        return _read_tensor(name, text, spec)
    if hasattr(spec, "from_file"):
        return _read_own(spec, _existing(name, text))
    if spec not in (str, *_NUMBERS, *_CONTAINERS):
        raise UsageError(
            f"The input {name!r} takes a {spec.__name__}, which no file holds; run it from Python."
        )
    if spec is list and not literal and text.lower().endswith(".safetensors"):
        return read_all(_existing(name, text))
    suffix = ".txt" if spec is str else ".json"
    if not literal and text.lower().endswith(suffix):
        path = _existing(name, text)
        return _of_type(name, spec, _read_text(path), f"the file {text!r}", JobError)
    return _of_type(name, spec, text, repr(text), UsageError)


def _of_type(name: str, spec: type, text: str, where: str, error: type[Exception]) -> Any:
    # ``error`` says whose fault it is: a file's content is a failed job, a text of the command line wrong usage.
    if spec is str:
        return text
    try:
        value = json.loads(text)
    except RecursionError as cause:
        raise error(
            f"The input {name!r} takes a {spec.__name__}, but {_short(where)} is nested too deeply."
        ) from cause
    except ValueError as cause:
        raise error(
            f"The input {name!r} takes a {spec.__name__}, but {_short(where)} is no JSON: {cause}."
        ) from cause
    # JSON has neither tuples nor a difference between 1 and 1.0; nothing else is turned into another type.
    if spec is tuple and isinstance(value, list):
        return tuple(value)
    if spec is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not spec:
        raise error(
            f"The input {name!r} takes a {spec.__name__}, but {_short(where)} is a {type(value).__name__}."
        )
    return value


def _short(text: str) -> str:
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[:_MESSAGE_CHARACTERS]}..."


def _existing(name: str, text: str) -> Path:
    """The path of an ordinary file: a pipe or a device may never end."""
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError))
        why = "does not exist" if missing else f"cannot be opened: {getattr(error, 'strerror', error)}"
        raise UsageError(f"The file {text!r} for the input {name!r} {why}.") from error
    if not stat.S_ISREG(mode):
        why = "is a folder" if stat.S_ISDIR(mode) else "is no ordinary file, but a pipe or a device"
        raise UsageError(f"The file {text!r} for the input {name!r} {why}.")
    return path


def _read_own(spec: Any, path: Path) -> Any:
    """The value that a type's own ``from_file`` reads."""
    try:
        return spec.from_file(path)
    except (OSError, ValueError) as error:
        raise JobError(f"{str(path)!r} cannot be read as a {spec.__name__}: {error}") from error
    except Exception as error:  # a damaged file raises almost anything
        what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
        raise JobError(f"{str(path)!r} cannot be read as a {spec.__name__}: {what}") from error


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_TEXT + 1)
        if len(data) > LARGEST_TEXT:
            raise ValueError(f"it has more than {LARGEST_TEXT >> 20} MiB")
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        raise JobError(f"{str(path)!r} cannot be read as text in UTF-8: {error}.") from error


def _read_tensor(name: str, text: str, spec: TensorSpec) -> torch.Tensor:
    file, key = text, ""
    if _KEY_MARK in text:
        cut = text.rindex(_KEY_MARK) + len(_KEY_MARK) - 1
        file, key = text[:cut], text[cut + 1 :]
    suffix = Path(file).suffix.lower()
    if suffix not in (*_PICTURES, ".npy", ".safetensors"):
        raise UsageError(f"The input {name!r} takes {spec}, from a {_sources(spec)} file; not {text!r}.")
    path = _existing(name, file)
    if suffix in _PICTURES:
        return read_picture(name, path, spec)
    return read_npy(path) if suffix == ".npy" else read_safetensors(path, key)


def write_output(folder: Path, name: str, value: Any, *, picture: str = "png", tensors: str = "npy") -> Path:
    """Writes an output into a folder, atomically, and returns the path of the file, or of a folder of its own.

    Args:
        folder: An existing folder.
        name: The output, which names the file.
        value: Its value.
        picture: The format of uint8 pictures: ``png`` or ``jpg``.
        tensors: The format of other tensors: ``npy`` or ``safetensors``.

    Raises:
        JobError: It cannot be written, or has no form in a file.
    """
    return write_outputs(folder, {name: value}, picture=picture, tensors=tensors)[name]


def write_outputs(
    folder: Path, values: Mapping[str, Any], *, picture: str = "png", tensors: str = "npy"
) -> dict[str, Path]:
    """Writes outputs into a folder, as :func:`write_output` does each: all of them, or none.

    Raises:
        JobError: One cannot be written, or has no form in a file.
    """
    stems = file_stems(values)
    with Batch() as batch:
        writer = _OutputWriter(batch, picture, tensors)
        paths = {name: writer.write(folder, stems[name], name, value) for name, value in values.items()}
    for inner, files in writer.lists.items():
        _remove_older(inner, files)
    return paths


def _is_tensors(value: Any) -> TypeGuard[list[torch.Tensor]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, torch.Tensor) for item in value)


class _OutputWriter:
    """Writes values by their kinds into a batch of files.

    Attributes:
        lists: The folder of each list, with the files in it.
    """

    def __init__(self, batch: Batch, picture: str, tensors: str) -> None:
        self._batch = batch
        self._picture = picture
        self._tensors = tensors
        self.lists: dict[Path, set[Path]] = {}

    def write(self, folder: Path, stem: str, name: str, value: Any) -> Path:
        if isinstance(value, torch.Tensor):
            return self._tensor(folder / stem, name, value.detach().cpu().contiguous())
        if _is_tensors(value):
            inner = self._batch.folder(folder / stem)
            items = enumerate(value)
            self.lists[inner] = {self.write(inner, str(at), str(at), item) for at, item in items}
            return inner
        if isinstance(value, str):
            return self._text(folder / f"{stem}.txt", value)
        text = json.dumps(_plain(name, value), indent=2, ensure_ascii=False, allow_nan=False)
        return self._text(folder / f"{stem}.json", text + "\n")

    def _text(self, path: Path, text: str) -> Path:
        return self._batch.write(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))

    def _tensor(self, path: Path, name: str, value: torch.Tensor) -> Path:
        def ending(suffix: str) -> Path:
            return path.with_name(f"{path.name}.{suffix}")

        if is_picture(value):
            kind = self._picture
            return self._batch.write(ending(kind), lambda file: write_picture(value, kind, file))
        array = as_array(value) if self._tensors == "npy" else None
        if array is not None:
            return self._batch.write(ending("npy"), lambda file: save_npy(array, file))
        return self._batch.write(ending("safetensors"), lambda file: file.write(safetensors_of(name, value)))


def _remove_older(folder: Path, new_files: set[Path]) -> None:
    """Removes files of list items that an earlier run wrote and this one did not.

    Raises:
        JobError: It cannot be removed.
    """
    try:
        for path in set(folder.iterdir()) - new_files:
            if path.stem.isdecimal() and path.suffix in (*_PICTURES, ".npy", ".safetensors"):
                path.unlink()
    except OSError as error:
        raise JobError(f"{str(folder)!r} cannot be written: {error.strerror or error}.") from error


def _plain(name: str, value: Any) -> Any:
    try:
        return to_plain(value)
    except JobError as error:
        raise JobError(f"The output {name!r} cannot be shown or written: {error}") from error


#: Tensors of at most so many elements are printed whole as JSON.
SHOWN_ELEMENTS = 4096


def describe(name: str, value: Any) -> Any:
    """Returns an output that is not written to a file, for JSON.

    A tensor gives ``shape``, ``dtype``, ``min``, ``max`` and ``mean`` (``None`` where there is none, e.g. of
    no elements), and ``values`` if it has at most 4,096 elements. A list of tensors gives that of each in ``items``.
    Anything else gives its ``value``.
    """
    if _is_tensors(value):
        return {"items": [describe(name, item) for item in value]}
    if not isinstance(value, torch.Tensor):
        return {"value": _plain(name, value)}
    value = value.detach().cpu()
    summary = {"shape": list(value.shape), "dtype": dtype_name(value.dtype), **_statistics(value)}
    if value.numel() <= SHOWN_ELEMENTS and not value.is_complex():
        summary["values"] = to_plain(value)
    return summary


def _statistics(value: torch.Tensor) -> dict[str, float | None]:
    if not value.numel() or value.is_complex():
        return {"min": None, "max": None, "mean": None}
    numbers = value.to(torch.float64)
    exact = float if value.is_floating_point() else int
    figures = {"min": exact(numbers.min()), "max": exact(numbers.max()), "mean": float(numbers.mean())}
    return {key: figure if math.isfinite(figure) else None for key, figure in figures.items()}

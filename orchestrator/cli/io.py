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

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch

from orchestrator.cli.files import write_file, write_text
from orchestrator.cli.pictures import is_picture, picture_layout, read_picture, write_picture
from orchestrator.cli.plain import to_plain
from orchestrator.cli.report import JobError, UsageError
from orchestrator.specs import PortSpec, TensorSpec, dtype_name, show_spec

__all__ = ["describe", "describe_input", "read_input", "write_output"]

_PICTURES = (".png", ".jpg", ".jpeg")
_NUMBERS = (int, float, bool)
_CONTAINERS = (list, dict, tuple)
_KEYED = ".safetensors:"
_FILES = "pip install 'stage-orchestrator[files]'"


def describe_input(name: str, spec: PortSpec) -> str:
    """Returns a line that says what an input takes and from what it is read."""
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
        spec: What the input takes.
        literal: ``text`` is the value itself, whatever it looks like.

    Raises:
        UsageError: There is no such file, the input does not take its kind, or the text is no such value.
        JobError: The file's content cannot be read.
    """
    if isinstance(spec, TensorSpec):
        return _read_tensor(name, text, spec)
    if hasattr(spec, "from_file"):
        return _read_own(spec, _existing(name, text))
    if spec not in (str, *_NUMBERS, *_CONTAINERS):
        raise UsageError(
            f"The input {name!r} takes a {spec.__name__}, which no file holds; run it from Python."
        )
    if spec is list and not literal and text.lower().endswith(".safetensors"):
        return _read_all(_existing(name, text))
    suffix = ".txt" if spec is str else ".json"
    if not literal and text.lower().endswith(suffix):
        path = _existing(name, text)
        return _of_type(name, spec, _read_text(path), f"the file {text!r}", JobError)
    return _of_type(name, spec, text, repr(text), UsageError)


def _of_type(name: str, spec: type, text: str, where: str, error: type[Exception]) -> Any:
    if spec is str:
        return text
    try:
        value = json.loads(text)
    except ValueError as cause:
        raise error(
            f"The input {name!r} takes a {spec.__name__}, but {where} is no JSON: {cause}."
        ) from cause
    if spec is tuple and isinstance(value, list):
        return tuple(value)
    if spec is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not spec:
        raise error(f"The input {name!r} takes a {spec.__name__}, but {where} is a {type(value).__name__}.")
    return value


def _existing(name: str, text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        why = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"The file {text!r} for the input {name!r} {why}.")
    return path


def _read_own(spec: Any, path: Path) -> Any:
    """The value that a type's own ``from_file`` reads."""
    try:
        return spec.from_file(path)
    except (OSError, ValueError) as error:
        raise JobError(f"{str(path)!r} cannot be read as a {spec.__name__}: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise JobError(f"{str(path)!r} cannot be read as text in UTF-8: {error}.") from error


def _read_tensor(name: str, text: str, spec: TensorSpec) -> torch.Tensor:
    file, key = text, ""
    if _KEYED in text:
        cut = text.rindex(_KEYED) + len(_KEYED) - 1
        file, key = text[:cut], text[cut + 1 :]
    suffix = Path(file).suffix.lower()
    if suffix not in (*_PICTURES, ".npy", ".safetensors"):
        raise UsageError(f"The input {name!r} takes {spec}, from a {_sources(spec)} file; not {text!r}.")
    path = _existing(name, file)
    if suffix in _PICTURES:
        return read_picture(name, path, spec)
    return _read_npy(path) if suffix == ".npy" else _read_safetensors(path, key)


def _read_npy(path: Path) -> torch.Tensor:
    try:
        import numpy
    except ImportError as error:
        raise JobError(f"{str(path)!r} needs numpy: {_FILES}.") from error
    try:
        array = numpy.load(path, allow_pickle=False)
        if not isinstance(array, numpy.ndarray):
            array.close()
            raise ValueError("it is an archive of several arrays (.npz)")
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        return torch.from_numpy(native)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise JobError(f"{str(path)!r} cannot be read as a numpy array of numbers: {error}.") from error


def _read_safetensors(path: Path, key: str) -> torch.Tensor:
    with _open(path) as file:
        keys = sorted(file.keys())
        chosen = key or (keys[0] if len(keys) == 1 else "")
        if chosen not in keys:
            listed = ", ".join(repr(item) for item in keys[:12]) + (", ..." if len(keys) > 12 else "")
            raise UsageError(f"Name one tensor of {str(path)!r} as {path}:KEY; its keys: {listed or 'none'}.")
        tensor: torch.Tensor = file.get_tensor(chosen)
        return tensor


def _read_all(path: Path) -> list[torch.Tensor]:
    """All tensors of a file; numbers in their names count as such: "2" comes before "10"."""
    with _open(path) as file:
        names = sorted(
            file.keys(), key=lambda name: [part.zfill(20) for part in re.findall(r"\d+|\D+", name)]
        )
        return [file.get_tensor(name) for name in names]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise JobError(f"{str(path)!r} needs safetensors: {_FILES}.") from error
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise JobError(f"{str(path)!r} cannot be read as safetensors: {error}.") from error


def write_output(folder: Path, name: str, value: Any, *, picture: str = "png", tensors: str = "npy") -> Path:
    """Writes an output into a folder, atomically, and returns the path of the file, or of a folder of its own.

    Args:
        folder: An existing folder.
        name: The output, which names the file.
        value: Its value.
        picture: What uint8 pictures are written as: ``png`` or ``jpg``.
        tensors: What other tensors are written as: ``npy`` or ``safetensors``.

    Raises:
        JobError: It cannot be written, or has no form in a file.
    """
    if isinstance(value, torch.Tensor):
        return _write_tensor(folder, name, value.detach().cpu().contiguous(), picture, tensors)
    if _is_tensors(value):
        return _write_all(folder / name, value, picture, tensors)
    if isinstance(value, str):
        return write_text(folder / f"{name}.txt", value)
    text = json.dumps(_plain(name, value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(folder / f"{name}.json", text + "\n")


def _is_tensors(value: Any) -> TypeGuard[list[torch.Tensor]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, torch.Tensor) for item in value)


def _write_all(folder: Path, values: list[torch.Tensor], picture: str, tensors: str) -> Path:
    """Writes each tensor into a file; what an earlier run wrote for further places is removed."""
    try:
        folder.mkdir(exist_ok=True)
        written = {
            write_output(folder, str(at), value, picture=picture, tensors=tensors)
            for at, value in enumerate(values)
        }
        for path in set(folder.iterdir()) - written:
            if path.stem.isdecimal() and path.suffix in (*_PICTURES, ".npy", ".safetensors"):
                path.unlink()
    except OSError as error:
        raise JobError(f"{str(folder)!r} cannot be written: {error.strerror or error}.") from error
    return folder


def _write_tensor(folder: Path, name: str, value: torch.Tensor, picture: str, tensors: str) -> Path:
    if is_picture(value):
        return write_file(folder / f"{name}.{picture}", lambda file: write_picture(value, picture, file))
    if tensors == "npy":
        array = _as_array(value)
        if array is not None:
            return write_file(folder / f"{name}.npy", lambda file: _save_npy(array, file))
    return write_file(folder / f"{name}.safetensors", lambda file: file.write(_safetensors(name, value)))


def _as_array(value: torch.Tensor) -> Any:
    """The tensor as a numpy array; None where numpy lacks the dtype."""
    try:
        return value.numpy()
    except TypeError:
        return None
    except RuntimeError as error:
        raise JobError(f"Tensors as .npy need numpy: {_FILES}.") from error


def _save_npy(array: Any, file: BinaryIO) -> None:
    import numpy

    numpy.save(file, array, allow_pickle=False)


def _safetensors(name: str, value: torch.Tensor) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise JobError(f"Tensors as .safetensors need safetensors: {_FILES}.") from error
    return save({name: value})


def _plain(name: str, value: Any) -> Any:
    try:
        return to_plain(value)
    except JobError as error:
        raise JobError(f"The output {name!r} cannot be shown or written: {error}") from error


#: Tensors of at most so many elements are printed whole as JSON.
SHOWN_ELEMENTS = 4096


def describe(name: str, value: Any) -> Any:
    """Returns what JSON says of an output that is not written to a file.

    A tensor gives ``shape``, ``dtype``, ``min``, ``max`` and ``mean`` (``None`` where there is none, e.g. of
    no elements), and ``values`` if it has at most 4,096 elements. A list of tensors gives that of each in ``items``.
    Anything else gives its ``value``.
    """
    if _is_tensors(value):
        return {"items": [describe(name, item) for item in value]}
    if not isinstance(value, torch.Tensor):
        return {"value": _plain(name, value)}
    value = value.detach().cpu()
    found = {"shape": list(value.shape), "dtype": dtype_name(value.dtype), **_statistics(value)}
    if value.numel() <= SHOWN_ELEMENTS and not value.is_complex():
        found["values"] = to_plain(value)
    return found


def _statistics(value: torch.Tensor) -> dict[str, float | None]:
    if not value.numel() or value.is_complex():
        return {"min": None, "max": None, "mean": None}
    numbers = value.to(torch.float64)
    exact = float if value.is_floating_point() else int
    figures = {"min": exact(numbers.min()), "max": exact(numbers.max()), "mean": float(numbers.mean())}
    return {key: figure if math.isfinite(figure) else None for key, figure in figures.items()}

"""A folder of artifacts, keyed by content.

An artifact's *key* is a digest of everything that went into compiling it; a stage's part in that is its
*fingerprint*. A file is complete or absent: it is written beside its place, flushed, and renamed into it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.stage import ModelWrapper, Stage

__all__ = ["Artifact", "ArtifactStore", "content_key", "fingerprint", "write_atomically"]


def content_key(parts: Any) -> str:
    """Returns the digest (SHA-256, hex) of JSON-like data; other objects count by their ``repr``."""
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(stage: Stage) -> list[Any]:
    """Describes a stage for a content key, alike in every process: source, config, ports, and forms of its tensors.

    The content of weights is no part of it: a program is compiled for their shapes and dtypes.
    """
    ports = [(port.name, repr(port.spec), port.optional, port.keyword) for port in stage.inputs]
    given = [(port.name, repr(port.spec)) for port in stage.outputs]
    return [ports, given, sorted(stage.config.items()), _describe(stage.target)]


def _describe(target: Any) -> Any:
    if isinstance(target, functools.partial):
        return ["partial", _describe(target.func), _plain(target.args), _plain(target.keywords)]
    if isinstance(target, ModelWrapper):
        model = None if target.model_cls is None and target.__dict__.get("_model") is None else _model(target)
        return [_source(type(target)), _plain(target.config), target.tag, _describe(model)]
    if isinstance(target, torch.nn.Module):
        return [_describe_part(name, part) for name, part in target.named_modules()]
    if inspect.ismethod(target):
        return [_describe(target.__self__), target.__name__]
    attributes = {name: value for name, value in getattr(target, "__dict__", {}).items() if name[:2] != "__"}
    return [_source(target if inspect.isroutine(target) else type(target)), _plain(attributes)]


def _describe_part(name: str, part: torch.nn.Module) -> list[Any]:
    """One module of a tree, without the modules in it."""
    tensors = {**dict(part.named_parameters(recurse=False)), **dict(part.named_buffers(recurse=False))}
    forms = [(key, list(tensor.shape), str(tensor.dtype)) for key, tensor in tensors.items()]
    options = {key: value for key, value in vars(part).items() if key[0] != "_" and key != "training"}
    return [name, _source(type(part)), part.extra_repr(), forms, _plain(options)]


def _model(wrapper: ModelWrapper) -> Any:
    """The wrapper's model, without its weights where it is not built yet; None where it cannot be built at all."""
    if wrapper.__dict__.get("_model") is None:
        with contextlib.suppress(Exception), torch.device("meta"):
            return wrapper.make_model()
    with contextlib.suppress(Exception):
        return wrapper.model
    return None


def _source(thing: Any) -> list[str]:
    """Name and text of a class or function; torch's own is known by its version."""
    return _read_source(thing)


@functools.lru_cache(maxsize=256)
def _read_source(thing: Any) -> list[str]:
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    if name.startswith("torch."):
        return [name]
    try:
        return [name, inspect.getsource(thing)]
    except (OSError, TypeError):
        return [name]


def _plain(value: Any) -> Any:
    """Plain data as it is; other objects count by their type, since their ``repr`` may hold an address."""
    if isinstance(value, (str, int, float, bool, type(None), torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, dict):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return _source(value if isinstance(value, type) else type(value))[0]


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Artifact:
    """What a backend compiled for one stage and one bucket.

    Attributes:
        stage: The stage's name.
        key: Content key: model structure and config, specs, flags, adapters, versions; never a path.
        sizes: The bucket, as pairs of name and size.
    """

    stage: str
    key: str
    sizes: tuple[tuple[str, int], ...] = ()


class ArtifactStore:
    """Artifacts below one folder.

    Args:
        path: The folder; made when something is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write_plan(self, plan: str, artifacts: Iterable[Artifact]) -> None:
        """Writes the plan's JSON and the index of its artifacts."""
        index = [{"stage": item.stage, "key": item.key, "sizes": dict(item.sizes)} for item in artifacts]
        write_atomically(self.path / "artifacts.json", json.dumps(index, indent=1).encode())
        write_atomically(self.path / "plan.json", plan.encode())

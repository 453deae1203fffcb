"""Weights of an application: from a safetensors checkpoint or a ``state_dict``, or else from the stage's own module.

Names in a checkpoint are those of the module, to the letter: one that starts with ``model.`` stays as it is. All
names, shapes and kinds of dtype are compared before a byte of data is read, and all that does not fit is said at once.
Tied weights, one tensor under several names, stay one.

A weight named in the option ``shard_weights`` is whole in the checkpoint and cut into one part for each rank; the
module is what one rank runs, so it has the shape of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from orchestrator.errors import CompileError, nearest
from orchestrator_neuron.options import Settings
from orchestrator_neuron.stored import damaged, kind_of, opened

__all__ = ["load_weights", "rank_weights"]

#: How many names of a kind a message lists.
SHOWN = 20


@dataclass
class _Misfits:
    """What does not fit, by kind."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yields a line for each kind that there is."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.shapes,
            "of another kind": self.dtypes,
        }
        for kind, names in kinds.items():
            if names:
                more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                yield f"\n  {len(names)} {kind}: {', '.join(names[:SHOWN])}{more}."


def load_weights(stage: str, owner: torch.nn.Module | None, settings: Settings) -> dict[str, torch.Tensor]:
    """Returns all weights and buffers of a stage, on the host, by their names in the module.

    Floating-point ones have ``settings.torch_dtype`` where it is set, else the module's dtype. Those of
    ``shard_weights`` are whole; see :func:`rank_weights`.

    Args:
        stage: The stage's name, for messages.
        owner: The module that is traced; ``None``: the stage has no weights.
        settings: What is in force for the stage.

    Raises:
        CompileError: There is no such checkpoint, it is damaged, or it does not fit the module.
    """
    owned = _tensors(owner) if owner is not None else {}
    _check_shards(stage, owned, settings)
    found = _read(stage, owner, owned, settings) if settings.checkpoint is not None else owned
    cast: dict[int, torch.Tensor] = {}
    for name, tensor in found.items():
        if id(tensor) not in cast:
            cast[id(tensor)] = _cast(tensor.detach(), owned[name], settings)
    return {name: cast[id(tensor)] for name, tensor in found.items()}


def rank_weights(
    weights: Mapping[str, torch.Tensor], settings: Settings, rank: int
) -> dict[str, torch.Tensor]:
    """Returns the weights of one rank: parts of those in ``shard_weights``, as views, and all others whole."""
    dims = {id(weights[name]): dim for name, dim in settings.shard_weights}
    parts: dict[int, torch.Tensor] = {}
    for tensor in weights.values():
        if id(tensor) in dims and id(tensor) not in parts:
            parts[id(tensor)] = tensor.chunk(settings.world_size, dims[id(tensor)])[rank]
    return {name: parts.get(id(tensor), tensor) for name, tensor in weights.items()}


def _tensors(owner: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tied one appears under each of its names."""
    return {
        **dict(owner.named_parameters(remove_duplicate=False)),
        **dict(owner.named_buffers(remove_duplicate=False)),
    }


def _computed(owner: torch.nn.Module | None) -> set[str]:
    """Names of buffers that no checkpoint has, since the module computes them."""
    if owner is None:
        return set()
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in owner.named_modules(remove_duplicate=False)
        for name in part._non_persistent_buffers_set
    }


def _cast(tensor: torch.Tensor, owned: torch.Tensor, settings: Settings) -> torch.Tensor:
    floating = owned.is_floating_point() and settings.torch_dtype is not None
    return tensor.to(settings.torch_dtype if floating else owned.dtype)


def _check_shards(stage: str, owned: Mapping[str, torch.Tensor], settings: Settings) -> None:
    if settings.shard_weights and settings.checkpoint is None:
        raise CompileError(
            f"Stage {stage!r} has shard_weights but no checkpoint. The module has the shape that one rank runs; the "
            f"whole weights come from a file: config={{'checkpoint': 'model.safetensors', ...}}.",
            stage=stage,
        )
    for name, dim in settings.shard_weights:
        if name not in owned:
            raise CompileError(
                f"shard_weights of stage {stage!r} names {name!r}, which its module does not have."
                f"{nearest(name, owned)}",
                stage=stage,
                weight=name,
            )
        if not -owned[name].dim() <= dim < owned[name].dim():
            raise CompileError(
                f"shard_weights of stage {stage!r} cuts {name!r} along dim {dim}, but it is {list(owned[name].shape)}.",
                stage=stage,
                weight=name,
            )


def _read(
    stage: str, owner: torch.nn.Module | None, owned: Mapping[str, torch.Tensor], settings: Settings
) -> dict[str, torch.Tensor]:
    """Reads the checkpoint once it is known to fit; tied weights stay one tensor."""
    assert settings.checkpoint is not None
    with opened(stage, settings.checkpoint) as (path, files):
        sources = _compare(stage, path, files, owner, owned, settings)
        try:
            read = {name: files[name].get_tensor(name) for name in dict.fromkeys(sources.values())}
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
            raise damaged(stage, path, error) from error
    return {name: read[sources[name]] if name in sources else owned[name] for name in owned}


def _compare(
    stage: str,
    path: Path | str,
    files: Mapping[str, Any],
    owner: torch.nn.Module | None,
    owned: Mapping[str, torch.Tensor],
    settings: Settings,
) -> dict[str, str]:
    """Returns, for each weight that comes from the checkpoint, its name there; raises if anything does not fit."""
    wanted = {name: tensor for name, tensor in owned.items() if name not in _computed(owner)}
    present = {_place(tensor): name for name, tensor in wanted.items() if name in files}
    sources: dict[str, str] = {}
    misfits = _Misfits(unexpected=[repr(name) for name in files if name not in wanted])
    dims = {_place(owned[name]): dim for name, dim in settings.shard_weights}
    for name, tensor in wanted.items():
        source = name if name in files else present.get(_place(tensor))
        if source is None:
            misfits.missing.append(repr(name))
            continue
        sources[name] = source
        _compare_one(source, files[source].get_slice(source), tensor, dims, settings.world_size, misfits)
    lines = list(misfits.lines())
    if lines:
        raise CompileError(_misfit_text(stage, path, lines, wanted, files), stage=stage, path=path)
    return sources


def _compare_one(
    name: str, stored: Any, tensor: torch.Tensor, dims: Mapping[Any, int], ranks: int, misfits: _Misfits
) -> None:
    shape, has = list(tensor.shape), list(stored.get_shape())
    note, dim = "", dims.get(_place(tensor))
    if dim is not None:
        shape[dim] *= ranks
        note = f" ({ranks} ranks with {list(tensor.shape)} each)"
    if has != shape:
        misfits.shapes.append(f"{name!r} is {has}, the module has {shape}{note}")
    kinds = kind_of(stored.get_dtype()), _kind(tensor.dtype)
    if kinds[0] != kinds[1]:
        misfits.dtypes.append(f"{name!r} is {stored.get_dtype()} ({kinds[0]}), the module has {tensor.dtype}")


def _misfit_text(
    stage: str, path: Path | str, lines: list[str], wanted: Mapping[str, Any], names: Mapping[str, Any]
) -> str:
    prefix = _prefix(wanted, names)
    hint = f" Names in the file start with {prefix!r}, those of the module do not." if prefix else ""
    return (
        f"The checkpoint {str(path)!r} does not fit the module of stage {stage!r}; nothing was loaded."
        f"{''.join(lines)}\nNames are those of the module's state_dict(), to the letter.{hint} "
        f"Give the checkpoint of this model, or write one: "
        f"safetensors.torch.save_file(module.state_dict(), 'model.safetensors')."
    )


def _prefix(wanted: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    """What all names of the file have in front of the module's."""
    first = next(iter(wanted), "")
    for name in names:
        prefix = name.removesuffix(first) if first and name.endswith(f".{first}") else ""
        if prefix and all(prefix + other in names for other in wanted):
            return prefix
    return ""


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two names of one tied weight; parts of one storage differ."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "int"

"""Weights of an application: from a safetensors checkpoint or a ``state_dict``, or else from the stage's own module.

Names in a checkpoint are those of the module, to the letter: one that starts with ``model.`` stays as it is. All
names, shapes and kinds of dtype are compared before a byte of data is read, and all that does not fit is said at once.
Tied weights, one tensor under several names, stay one.

A weight named in the option ``shard_weights`` is whole in the checkpoint and cut into one part for each rank; the
module is the one that a rank runs, so it has the shape of a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from orchestrator.errors import CompileError, nearest
from orchestrator_neuron.checkpoint_files import damage_error, kind_of, open_checkpoint
from orchestrator_neuron.options import NeuronSettings

__all__ = ["load_weights", "rank_weights"]

#: How many names of a kind a message lists.
MAX_NAMES = 20


@dataclass
class _Misfits:
    """Weights that do not fit, by kind."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yields a line for each kind that there is."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.extra,
            "of another shape": self.shapes,
            "of another kind": self.dtypes,
        }
        for kind, names in kinds.items():
            if names:
                more = f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
                yield f"\n  {len(names)} {kind}: {', '.join(names[:MAX_NAMES])}{more}."


def load_weights(
    stage: str, owner: torch.nn.Module | None, settings: NeuronSettings
) -> dict[str, torch.Tensor]:
    """Returns all weights and buffers of a stage, on the host, by their names in the module.

    Floating-point ones have ``settings.torch_dtype`` where it is set, else the module's dtype. Those of
    ``shard_weights`` are whole; see :func:`rank_weights`.

    Args:
        stage: The stage's name, for messages.
        owner: The module that is traced; ``None``: the stage has no weights.
        settings: Those in force for the stage.

    Raises:
        CompileError: There is no such checkpoint, it is damaged, or it does not fit the module.
    """
    own_tensors = _tensors(owner) if owner is not None else {}
    _check_shards(stage, own_tensors, settings)
    weights = _read(stage, owner, own_tensors, settings) if settings.checkpoint is not None else own_tensors
    # By identity, so that a tied weight is cast once and stays one tensor.
    cast: dict[int, torch.Tensor] = {}
    for name, tensor in weights.items():
        if id(tensor) not in cast:
            cast[id(tensor)] = _cast(tensor.detach(), own_tensors[name], settings)
    return {name: cast[id(tensor)] for name, tensor in weights.items()}


def rank_weights(
    weights: Mapping[str, torch.Tensor], settings: NeuronSettings, rank: int
) -> dict[str, torch.Tensor]:
    """Returns weights of one rank of this process: parts of those in ``shard_weights``, as views, all else whole."""
    dims = {id(weights[name]): dim for name, dim in settings.shard_weights}
    parts: dict[int, torch.Tensor] = {}
    for tensor in weights.values():
        if id(tensor) in dims and id(tensor) not in parts:
            parts[id(tensor)] = tensor.chunk(settings.world_size, dims[id(tensor)])[
                settings.start_rank_id + rank
            ]
    return {name: parts.get(id(tensor), tensor) for name, tensor in weights.items()}


def _tensors(owner: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tied one appears under each of its names."""
    return {
        **dict(owner.named_parameters(remove_duplicate=False)),
        **dict(owner.named_buffers(remove_duplicate=False)),
    }


def _non_persistent(owner: torch.nn.Module | None) -> set[str]:
    """Names of buffers that no checkpoint has, since the module computes them."""
    if owner is None:
        return set()
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in owner.named_modules(remove_duplicate=False)
        for name in part._non_persistent_buffers_set
    }


def _cast(tensor: torch.Tensor, own_tensors: torch.Tensor, settings: NeuronSettings) -> torch.Tensor:
    floating = own_tensors.is_floating_point() and settings.torch_dtype is not None
    return tensor.to(settings.torch_dtype if floating else own_tensors.dtype)


def _check_shards(stage: str, own_tensors: Mapping[str, torch.Tensor], settings: NeuronSettings) -> None:
    # The module has the shape of a part, so it cannot be the source of the whole.
    if settings.shard_weights and settings.checkpoint is None:
        raise CompileError(
            f"Stage {stage!r} has shard_weights but no checkpoint. The module has the shape that one rank runs; the "
            f"whole weights come from a file: config={{'checkpoint': 'model.safetensors', ...}}.",
            stage=stage,
        )
    for name, dim in settings.shard_weights:
        if name not in own_tensors:
            raise CompileError(
                f"shard_weights of stage {stage!r} names {name!r}, which its module does not have."
                f"{nearest(name, own_tensors)}",
                stage=stage,
                weight=name,
            )
        if not -own_tensors[name].dim() <= dim < own_tensors[name].dim():
            raise CompileError(
                f"shard_weights of stage {stage!r} cuts {name!r} along dim {dim}, but it is "
                f"{list(own_tensors[name].shape)}.",
                stage=stage,
                weight=name,
            )


def _read(
    stage: str,
    owner: torch.nn.Module | None,
    own_tensors: Mapping[str, torch.Tensor],
    settings: NeuronSettings,
) -> dict[str, torch.Tensor]:
    """Reads the checkpoint once it is known to fit; tied weights stay one tensor."""
    assert settings.checkpoint is not None
    with open_checkpoint(stage, settings.checkpoint) as (path, files):
        sources = _compare(stage, path, files, owner, own_tensors, settings)
        try:
            tensors = {name: files[name].get_tensor(name) for name in dict.fromkeys(sources.values())}
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
            raise damage_error(stage, path, error) from error
    return {name: tensors[sources[name]] if name in sources else own_tensors[name] for name in own_tensors}


def _compare(
    stage: str,
    path: Path | str,
    files: Mapping[str, Any],
    owner: torch.nn.Module | None,
    own_tensors: Mapping[str, torch.Tensor],
    settings: NeuronSettings,
) -> dict[str, str]:
    """Returns, for each weight that comes from the checkpoint, its name there; raises if anything does not fit."""
    # 1. Which weights a checkpoint has to have. Of tied ones it may have any: they share a storage.
    targets = {name: tensor for name, tensor in own_tensors.items() if name not in _non_persistent(owner)}
    present = {_storage_key(tensor): name for name, tensor in targets.items() if name in files}
    sources: dict[str, str] = {}
    misfits = _Misfits(extra=[repr(name) for name in files if name not in targets])
    dims = {_storage_key(own_tensors[name]): dim for name, dim in settings.shard_weights}
    # 2. Each is compared by name, shape and kind, from the header alone: no data is read for a checkpoint that misfits.
    for name, tensor in targets.items():
        source = name if name in files else present.get(_storage_key(tensor))
        if source is None:
            misfits.missing.append(repr(name))
            continue
        sources[name] = source
        _compare_one(source, files[source].get_slice(source), tensor, dims, settings.world_size, misfits)
    # 3. Everything that does not fit is said at once: a checkpoint of another model has hundreds of such names.
    lines = list(misfits.lines())
    if lines:
        raise CompileError(_misfit_text(stage, path, lines, targets, files), stage=stage, path=path)
    return sources


def _compare_one(
    name: str, content: Any, tensor: torch.Tensor, dims: Mapping[Any, int], ranks: int, misfits: _Misfits
) -> None:
    # The file has the whole of a weight that is cut, the module the part of one rank. Dtypes are compared by kind
    # alone: floats are cast to the dtype in force, but integers are no floats.
    shape, has = list(tensor.shape), list(content.get_shape())
    note, dim = "", dims.get(_storage_key(tensor))
    if dim is not None:
        shape[dim] *= ranks
        note = f" ({ranks} ranks with {list(tensor.shape)} each)"
    if has != shape:
        misfits.shapes.append(f"{name!r} is {has}, the module has {shape}{note}")
    kinds = kind_of(content.get_dtype()), _kind(tensor.dtype)
    if kinds[0] != kinds[1]:
        misfits.dtypes.append(
            f"{name!r} is {content.get_dtype()} ({kinds[0]}), the module has {tensor.dtype}"
        )


def _misfit_text(
    stage: str, path: Path | str, lines: list[str], targets: Mapping[str, Any], names: Mapping[str, Any]
) -> str:
    prefix = _prefix(targets, names)
    hint = f" Names in the file start with {prefix!r}, those of the module do not." if prefix else ""
    return (
        f"The checkpoint {str(path)!r} does not fit the module of stage {stage!r}; nothing was loaded."
        f"{''.join(lines)}\nNames are those of the module's state_dict(), to the letter.{hint} "
        f"Give the checkpoint of this model, or write one: "
        f"safetensors.torch.save_file(module.state_dict(), 'model.safetensors')."
    )


def _prefix(targets: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    """Returns the prefix by which all names of the file differ from the module's; empty: there is none."""
    first = next(iter(targets), "")
    for name in names:
        prefix = name.removesuffix(first) if first and name.endswith(f".{first}") else ""
        if prefix and all(prefix + other in names for other in targets):
            return prefix
    return ""


def _storage_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Returns a key that is equal for two names of one tied weight; parts of one storage differ."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()


def _kind(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "bool"
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "int"

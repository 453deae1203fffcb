"""Checkpoints that are cut already: what NxD Inference's ``save_sharded_checkpoint`` writes, a file for each rank.

A rank's file has its part of each weight, by the names of the model. On the device each rank takes its own file, whose
pages are read when they are copied; on the host the parts are joined, as the model's layers cut them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import CompileError

__all__ = ["join_parts", "rank_files"]

_NAME = re.compile(r"tp(\d+)_sharded_checkpoint\.safetensors")


def rank_files(stage: str, checkpoint: Any, world: int = 0, ranks: range | None = None) -> list[Path] | None:
    """Returns the file of each rank; None: the checkpoint is whole.

    Args:
        stage: The stage's name, for messages.
        checkpoint: A path: of the folder with the files, or of the one above it; anything else is whole.
        world: How many ranks there are; 0: as many as there are files.
        ranks: Those whose files are wanted; None: all.

    Raises:
        CompileError: A rank has no file, or the files are of another number of ranks.
    """
    folder = Path(checkpoint).expanduser() if isinstance(checkpoint, str) else None
    if folder is None or not folder.is_dir():
        return None
    files: dict[int, Path] = {}
    for path in [*folder.glob("tp*"), *folder.glob("weights/tp*")]:
        match = _NAME.fullmatch(path.name)
        if match is not None:
            files.setdefault(int(match[1]), path)
    if not files:
        return None
    # The highest rank says how many there were: one that is missing below it was lost.
    count = max(files) + 1
    if count > (world or count):
        raise CompileError(
            f"The checkpoint of stage {stage!r}, {str(folder)!r}, was cut for {count} ranks, and the plan has {world}. "
            f"Plan with as many, or give the checkpoint that it was cut from.",
            stage=stage,
            path=folder,
        )
    wanted = ranks or range(world or count)
    lost = [rank for rank in wanted if rank not in files]
    if lost:
        raise CompileError(
            f"The checkpoint of stage {stage!r}, {str(folder)!r}, has no 'tp{lost[0]}_sharded_checkpoint.safetensors', "
            f"the file of rank {lost[0]} ({len(files)} of {world or count} ranks have one). Save it again with "
            f"save_sharded_checkpoint, or give the checkpoint that it was cut from.",
            stage=stage,
            path=folder,
        )
    return [files[rank] for rank in wanted]


def join_parts(
    stage: str,
    parts: Sequence[Mapping[str, torch.Tensor]],
    rank_model: torch.nn.Module,
    whole_model: torch.nn.Module,
) -> dict[str, torch.Tensor]:
    """Returns the weights of the whole model.

    Args:
        stage: The stage's name, for messages.
        parts: The weights of each rank.
        rank_model: The model of a rank, whose weights say how they are cut.
        whole_model: The model of one rank that has it all; its weights may be without content.

    Raises:
        CompileError: Parts do not join to what the whole model has.
    """
    cuts = dict(rank_model.named_parameters(remove_duplicate=False))
    shapes = {name: tuple(tensor.shape) for name, tensor in whole_model.state_dict().items()}
    weights: dict[str, torch.Tensor] = {}
    for name in parts[0].keys() & shapes.keys():
        tensors = [part[name] for part in parts]
        weights[name] = _joined(tensors, cuts.get(name))
        if tuple(weights[name].shape) != shapes[name]:
            raise CompileError(
                f"{name!r} of stage {stage!r} is {list(weights[name].shape)} when the parts of {len(parts)} ranks are "
                f"joined, and {list(shapes[name])} where one rank has it all: it was padded or repeated before it was "
                f"cut. Run the stage on 'nxdi', or give the checkpoint that it was cut from.",
                stage=stage,
                weight=name,
            )
    return weights


def _joined(tensors: list[torch.Tensor], cut: Any) -> torch.Tensor:
    """Parts of all ranks, as NxD's ``create_local_weight`` took them apart; the first, where all have the whole."""
    if not getattr(cut, "tensor_model_parallel", False):
        return tensors[0]
    # A rank may have several pieces, by a stride or as queries, keys and values: those of all ranks take turns.
    dim, count = cut.partition_dim, len(tensors)
    order = getattr(cut, "rank_ordering", None) or range(count)
    in_order = [tensor for _, tensor in sorted(zip(order, tensors, strict=True), key=lambda pair: pair[0])]
    sizes = [tensors[0].shape[dim] // cut.partition_stride] * cut.partition_stride
    if hasattr(cut, "fused_qkv"):
        heads = (cut.num_attention_heads, cut.num_key_value_heads, cut.num_key_value_heads)
        sizes = [number * cut.head_dim // count for number in heads]
    pieces = [torch.split(tensor, sizes, dim) for tensor in in_order]
    return torch.cat([row[turn] for turn in range(len(sizes)) for row in pieces], dim)

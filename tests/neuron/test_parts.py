"""What each rank has a part of, and weights that are cut already, on modules that cut themselves as NxD's layers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator import CompileError, PlanError, TensorSpec
from orchestrator_neuron.nxdi.parts import RankParts, read_parts
from orchestrator_neuron.nxdi.rank_files import join_parts, rank_files


def cut(weight: nn.Parameter, dim: int, stride: int = 1) -> nn.Parameter:
    """Marks a weight as NxD does."""
    weight.tensor_model_parallel, weight.partition_dim, weight.partition_stride = True, dim, stride  # type: ignore[attr-defined]
    return weight


class Columns(nn.Module):
    """Has some of the rows of a weight of 8, and gives some of the columns of a result."""

    def __init__(self, degree: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = cut(nn.Parameter(torch.zeros(8 // degree, 4)), 0, stride)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.shift


class Rows(nn.Module):
    """Takes some of the columns of a value, and another one whole."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.weight = cut(nn.Parameter(torch.zeros(4, 8 // degree)), 1)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"joined": x + h @ self.weight.T, "parts": h * 2}


class Squares(nn.Module):
    """Gives what is no part of the whole along one dim."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.weight = cut(nn.Parameter(torch.zeros(8 // degree, 8 // degree)), 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x.sum()


@pytest.mark.parametrize(
    ("build", "shapes", "parts"),
    [
        (Columns, [(2, 4)], RankParts({}, {"0": 1}, True)),
        (Rows, [(2, 4), (2, 4)], RankParts({1: 1}, {"parts": 1}, True)),
        (lambda _: nn.Linear(4, 8), [(2, 4)], RankParts()),
        # Without example inputs, or with such as no model takes, nothing is known.
        (Columns, [], RankParts(is_cut=True)),
        (Columns, [(2, 3)], RankParts(is_cut=True)),
    ],
)
def test_parts_are_read_off_a_model(
    build: Callable[[int], nn.Module], shapes: list[tuple[int, ...]], parts: RankParts
) -> None:
    assert read_parts(build, tuple(map(TensorSpec, shapes)), 2, "W") == parts


def test_what_is_no_part_of_the_whole_is_refused() -> None:
    with pytest.raises(PlanError, match=r"W gives \[4, 4\] on each of 2 ranks .* \[8, 8\] on one"):
        read_parts(Squares, (TensorSpec((2, 4)),), 2, "W")


@pytest.mark.parametrize("stride", [1, 2])
def test_parts_of_all_ranks_are_joined_as_they_were_cut(stride: int) -> None:
    whole = {"weight": torch.randn(8, 4), "shift": torch.randn(1)}
    # Pieces go to the ranks in turn, as cards are dealt.
    pieces = whole["weight"].split(8 // (2 * stride))
    parts = [{"weight": torch.cat(pieces[rank::2]), "shift": whole["shift"]} for rank in range(2)]
    joined = join_parts("net", parts, Columns(2, stride), Columns(1))
    assert all(torch.equal(joined[name], tensor) for name, tensor in whole.items())
    with pytest.raises(CompileError, match=r"'weight' of stage 'net' is \[12, 4\] when the parts of 3 ranks"):
        join_parts("net", [*parts, parts[0]], Columns(2), Columns(1))


def test_files_of_ranks(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    names = [f"tp{rank}_sharded_checkpoint.safetensors" for rank in (0, 1, 3)]
    for name in names:
        save_file({"w": torch.zeros(1)}, tmp_path / "weights" / name)
    # Either folder says where they are; a file, a dict and a folder of another kind are whole.
    for folder in (tmp_path, tmp_path / "weights"):
        paths = rank_files("net", str(folder), 4, range(2))
        assert paths == [tmp_path / "weights" / name for name in names[:2]]
    (tmp_path / "other").mkdir()
    for checkpoint in (str(tmp_path / "weights" / names[0]), {"w": torch.zeros(1)}, str(tmp_path / "other")):
        assert rank_files("net", checkpoint, 4) is None
    for world in (0, 4):
        with pytest.raises(CompileError, match=r"no 'tp2_sharded_.* rank 2 \(3 of 4 ranks have one\)"):
            rank_files("net", str(tmp_path), world)
    with pytest.raises(CompileError, match="cut for 4 ranks, and the plan has 2"):
        rank_files("net", str(tmp_path), 2)

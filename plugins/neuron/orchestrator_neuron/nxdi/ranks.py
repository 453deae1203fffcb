"""NxD's parallel state for as long as a model is built or tried, at any degree, without touching the process's own.

NxD's parallel layers ask a state of the whole process how many ranks there are, and open a process group where there is
none. ``ModelBuilder`` mocks ``torch.distributed`` while it builds a model, and so does this; but what was there before
is there again afterwards, and groups are plain objects, which a model may keep, copy and be described by.

Importing this module imports NxD.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch_xla.core.xla_model as xm  # type: ignore[import-not-found]
from neuronx_distributed.parallel_layers import parallel_state  # type: ignore[import-not-found]
from neuronx_distributed.trace.mock_torchdist import mock_distributed  # type: ignore[import-not-found]
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["RankGroup", "collective_shapes", "no_ranks", "ranks_of_degree"]

#: The state is the process's: one thread changes it at a time.
_STATE = threading.RLock()

#: Variables of the state by degree, world and cores: they are the same each time.
_STATES: dict[tuple[int, int, int], dict[str, Any]] = {}


class RankGroup:
    """What NxD's layers ask a process group: its size, and the place of rank 0 in it.

    Args:
        mesh: Ranks of all groups of its kind.
    """

    def __init__(self, mesh: Sequence[Sequence[int]]) -> None:
        self._mesh = [list(row) for row in mesh]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """NxD asserts that groups are torch's."""
        return ProcessGroup

    def size(self) -> int:
        """Returns how many ranks a group has."""
        return len(self._mesh[0])

    def rank(self) -> int:
        """Returns the place of rank 0."""
        return 0

    def __deepcopy__(self, memo: dict[int, Any]) -> RankGroup:
        return self


@contextlib.contextmanager
def no_ranks() -> Iterator[None]:
    """Runs its block as in a process that has no parallel state; what was there is there again afterwards."""
    with _STATE:
        before, is_aot = _variables(), parallel_state.get_aot_mode()
        parallel_state.destroy_model_parallel()
        try:
            yield
        finally:
            parallel_state.set_aot_mode(is_aot)
            vars(parallel_state).update(before)


@contextlib.contextmanager
def ranks_of_degree(degree: int, world: int, cores: int = 1) -> Iterator[None]:
    """Runs its block on rank 0 of a mocked world.

    Args:
        degree: Ranks that share one model.
        world: All ranks.
        cores: Physical cores of a logical one (``logical_nc_config``).
    """
    key = (degree, world, cores)
    with no_ranks(), mock_distributed(world_size=world):
        torch.distributed.init_process_group(backend="xla", rank=0, world_size=world)
        if key not in _STATES:
            # Meshes are tensors that are read, so no mode of the caller may see them.
            with _disable_current_modes(), torch.device("cpu"):
                parallel_state.initialize_model_parallel(
                    tensor_model_parallel_size=degree, skip_collective_init=True, lnc_size=cores
                )
            _STATES[key] = {name: _plain(value) for name, value in _variables().items()}
        vars(parallel_state).update(_STATES[key])
        yield


def _variables() -> dict[str, Any]:
    """The state: upper-case names of NxD's module that are no constants of its users."""
    return {
        name: value
        for name, value in vars(parallel_state).items()
        if name.startswith("_") and name.isupper() and name != "_AOT_MODE"
    }


def _plain(value: Any) -> Any:
    """A mocked group as a plain object."""
    mesh = getattr(value, "__dict__", {}).get("_mesh")
    return value if mesh is None else RankGroup(mesh)


@contextlib.contextmanager
def collective_shapes() -> Iterator[None]:
    """Replaces torch_xla's collectives by what gives tensors of the same shapes, so that a trial needs no device."""
    with (
        _STATE,
        patch.object(xm, "all_reduce", _all_reduce),
        patch.object(xm, "all_gather", _all_gather),
        patch.object(xm, "reduce_scatter", _reduce_scatter),
        patch.object(xm, "all_to_all", _all_to_all),
    ):
        yield


def _all_reduce(_kind: Any, values: Any, *_: Any, **__: Any) -> Any:
    return values.clone() if isinstance(values, torch.Tensor) else [value.clone() for value in values]


def _all_gather(value: torch.Tensor, dim: int = 0, groups: Any = None, *_: Any, **__: Any) -> torch.Tensor:
    return torch.cat([value] * len(groups[0]), dim)


def _reduce_scatter(
    reduce_type: Any,  # noqa: ARG001
    input: torch.Tensor,
    scale: Any,  # noqa: ARG001
    scatter_dim: int,
    shard_count: int,
    groups: Any = None,  # noqa: ARG001
    output: torch.Tensor | None = None,
    pin_layout: bool = True,  # noqa: ARG001
) -> torch.Tensor:
    part = input.narrow(scatter_dim, 0, input.shape[scatter_dim] // shard_count).clone()
    return part if output is None else output.copy_(part)


def _all_to_all(
    value: torch.Tensor, split_dimension: int, concat_dimension: int, split_count: int, *_: Any, **__: Any
) -> torch.Tensor:
    return torch.cat(value.chunk(split_count, split_dimension), concat_dimension)

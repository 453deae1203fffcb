"""Which inputs and outputs of a model each rank has a part of, read off the model and its wrapper's example inputs.

The model of one rank and the whole one are run on tensors without content. What the whole one refuses as it is, and
takes when it is larger by the degree, comes in parts; what it gives that much larger, leaves in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator.errors import PlanError
from orchestrator.isolation import Isolation, Leftovers
from orchestrator.specs import TensorSpec
from orchestrator_neuron.isolation import default_torch_state, silenced
from orchestrator_neuron.nxdi.checks import Row

__all__ = ["Build", "RankParts", "read_parts", "scaled_row"]

#: Builds a wrapper's model for a degree.
Build: TypeAlias = Callable[[int], torch.nn.Module]
#: Place of an input to a dim.
_Dims: TypeAlias = Mapping[int, int]
#: Shapes by key of a dict, or by place, as text.
_Shapes: TypeAlias = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class RankParts:
    """What each rank has a part of.

    Attributes:
        inputs: Place of an input to the dim along which the ranks' parts join.
        outputs: Key of an output (its place, where it has none) to that dim.
        is_cut: NxD's layers hold parts of weights.
    """

    inputs: _Dims = field(default_factory=dict)
    outputs: Mapping[str, int] = field(default_factory=dict)
    is_cut: bool = False


def scaled_row(row: Row, dims: _Dims, factor: int) -> Row:
    """Returns example inputs of which some are larger along a dim.

    Args:
        row: Of one rank.
        dims: Place to dim.
        factor: How many times as large.
    """
    specs = list(row)
    for place, dim in dims.items():
        sizes = list(specs[place].shape({}))
        sizes[dim] *= factor
        specs[place] = TensorSpec(tuple(sizes), specs[place].dtype)
    return tuple(specs)


def read_parts(build: Build, row: Row, degree: int, name: str) -> RankParts:
    """Reads them off a wrapper's models.

    Args:
        build: Builds them.
        row: Example inputs of one rank; empty: none are known.
        degree: That of the rank's model.
        name: The wrapper's, for messages.

    Raises:
        PlanError: The whole model gives something else than the ranks' parts joined.
    """
    # 1. A model whose layers are whole at this degree is the same on all ranks, and nothing is tried.
    is_cut, on_rank = _trial(build, degree, [({}, row)] if row else [])
    if not is_cut:
        return RankParts()
    # 2. One that does not run on tensors without content says nothing: its author declares what it gives.
    if on_rank is None:
        return RankParts(is_cut=True)
    # 3. Inputs are taken for whole wherever the whole model takes them so.
    _, whole = _trial(build, 1, ((dims, scaled_row(row, dims, degree)) for dims in _candidates(row)))
    if whole is None:
        return RankParts(is_cut=True)
    return RankParts(whole[0], _joined_dims(on_rank[1], whole[1], degree, name), is_cut=True)


def _candidates(row: Row) -> Iterator[_Dims]:
    """What may be in parts: nothing, one input, or all of them along their last dim."""
    yield {}
    for place, spec in enumerate(row):
        yield from ({place: dim} for dim in reversed(range(len(spec.dims))))
    if len(row) > 1:
        yield {place: len(spec.dims) - 1 for place, spec in enumerate(row) if spec.dims}


def _trial(
    build: Build, degree: int, rows: Iterable[tuple[_Dims, Row]]
) -> tuple[bool, tuple[_Dims, _Shapes] | None]:
    """Tells whether layers of the model of a degree are cut; and the first row that it takes, with what it gives."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    leftovers = Leftovers(mode, Isolation(mode))
    leftovers.bindings.note(build)
    models: list[torch.nn.Module] = []
    with default_torch_state(), silenced(), leftovers.watch(models), mode:
        models.append(build(degree))
        is_cut = any(getattr(weight, "tensor_model_parallel", False) for weight in models[0].parameters())
        for dims, row in rows:
            shapes = _run(models[0], row)
            if shapes is not None:
                return is_cut, (dims, shapes)
        return is_cut, None


def _run(model: torch.nn.Module, row: Row) -> _Shapes | None:
    """What a model gives for example inputs; None: it refuses them."""
    try:
        result = model(*(torch.zeros(spec.shape({}), dtype=spec.dtype) for spec in row))
    except Exception:
        return None
    if isinstance(result, torch.Tensor):
        return {"0": tuple(result.shape)}
    pairs = result.items() if isinstance(result, Mapping) else enumerate(result)
    return {str(key): tuple(value.shape) for key, value in pairs if isinstance(value, torch.Tensor)}


def _joined_dims(rank_shapes: _Shapes, whole_shapes: _Shapes, degree: int, name: str) -> dict[str, int]:
    """Of each output that ranks hold in parts the dim along which they join."""
    dims: dict[str, int] = {}
    for key, shape in rank_shapes.items():
        whole = whole_shapes.get(key, ())
        pairs = list(zip(shape, whole, strict=False))
        differing = [dim for dim, (part, size) in enumerate(pairs) if part != size]
        if (
            len(shape) != len(whole)
            or len(differing) > 1
            or any(shape[dim] * degree != whole[dim] for dim in differing)
        ):
            raise PlanError(
                f"The model of {name} gives {list(shape)} on each of {degree} ranks as its output {key!r}, and "
                f"{list(whole)} on one: these are no parts of it along one dim. Gather it inside the model.",
                wrapper=name,
            )
        dims |= dict.fromkeys([key], differing[0]) if differing else {}
    return dims

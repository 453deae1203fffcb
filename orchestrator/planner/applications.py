"""Applications: which stages share weights, and the bytes of weights on each device, each once.

Stages of one device that have a weight in common are entry points of one *application*: a module and its bound methods,
several stages of one object, modules that hold the same part. A device that computes at once has the weights of all its
stages once anyway. One that compiles has them once for each application, and its backend says whether two stages may be
compiled as one: their options may differ.

Tied parameters are one weight. So are two over the same memory where the device is the host; any other gets a copy of
each.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses import fake_tensor

from orchestrator.backend import CompilingBackend
from orchestrator.duplicate import owner_of
from orchestrator.isolation import outline
from orchestrator.plan.outline import show_bytes
from orchestrator.plan.records import PlannedApplication
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import PlanContext
from orchestrator.stage import ModelWrapper, Stage

__all__ = ["find_applications"]


@dataclass(frozen=True)
class _Weights:
    """The weights of a stage.

    Attributes:
        owner: What has them, held so that the identity of none is used again.
        sizes: Each weight by what tells it from others, with its bytes on the device.
        tensors: The same for each tensor, by its identity: what stages of two devices share.
    """

    owner: Any
    sizes: Mapping[Hashable, int]
    tensors: Mapping[int, int]


def find_applications(context: PlanContext) -> PlanContext:
    """Finds the stages of each device that share weights, and adds up its bytes of weights."""
    # Models that are not built yet are outlined once for each wrapper: stages of one wrapper have one set of weights.
    models: dict[int, Any] = {}
    weights = {
        name: _weights(context, stage, models)
        for name, stage in context.graph.stages.items()
        if context.devices[name] != HOST
    }
    applications: list[PlannedApplication] = []
    totals = dict.fromkeys(context.groups, 0)
    notes: list[str] = []
    # A device's weights are those of its groups of stages: no weight is in two of them, but for stages that share some
    # and cannot be compiled as one.
    for device in context.groups:
        groups = _WeightGroups(context, device, weights)
        notes += groups.notes
        for names in groups.in_order():
            size = sum({key: size for name in names for key, size in weights[name].sizes.items()}.values())
            totals[device] += size
            if len(names) > 1:
                applications.append(PlannedApplication(device, names, size))
    notes += _copy_notes(context, weights)
    return replace(context, applications=tuple(applications), weights=totals).with_notes(*notes)


class _WeightGroups:
    """The stages of a device, grouped by the weights that they share.

    Attributes:
        notes: Stages that share weights and are kept apart, a sentence each.
    """

    def __init__(self, context: PlanContext, device: str, weights: Mapping[str, _Weights]) -> None:
        self.notes: list[str] = []
        self._device, self._backend = device, context.groups[device]
        self._stages = {
            name: stage for name, stage in context.graph.stages.items() if context.devices[name] == device
        }
        self._group_of = {name: [name] for name in self._stages}
        # One stage for each group that has a weight: whoever has it too joins the first of them that it may join.
        holders: dict[Hashable, list[str]] = {}
        for name in self._stages:
            for key in weights[name].sizes:
                self._join(name, holders.setdefault(key, []))

    def _join(self, name: str, holders: list[str]) -> None:
        if any(self._group_of[holder] is self._group_of[name] for holder in holders):
            return
        partner = next((holder for holder in holders if self._can_join(holder, name)), None)
        if partner is None:
            self.notes += [
                f"{holder!r} and {name!r} share weights, but {self._device!r} does not compile them as one, as "
                f"with other options or a checkpoint of their own: each has a copy of its own."
                for holder in holders[:1]
            ]
            holders.append(name)
            return
        group = self._group_of[partner]
        group += self._group_of[name]
        for member in group:
            self._group_of[member] = group

    def _can_join(self, one: str, other: str) -> bool:
        if not isinstance(self._backend, CompilingBackend):
            return True
        return self._backend.can_join(self._stages[one], self._stages[other])

    def in_order(self) -> list[tuple[str, ...]]:
        """Returns the groups, and the stages in each, in the order of the graph."""
        groups = {id(group): set(group) for group in self._group_of.values()}
        return [tuple(name for name in self._stages if name in group) for group in groups.values()]


def _copy_notes(context: PlanContext, weights: Mapping[str, _Weights]) -> Iterator[str]:
    """Yields a note for each two devices that have copies of the same weights."""
    # Within one device stages that share a weight are one application, so copies are only between two devices.
    stages: dict[str, list[str]] = {device: [] for device in context.groups}
    for name in weights:
        stages[context.devices[name]].append(name)
    devices = list(stages)
    for at, first in enumerate(devices):
        for second in devices[at + 1 :]:
            one, other = (
                {key: size for name in stages[device] for key, size in weights[name].tensors.items()}
                for device in (first, second)
            )
            shared = one.keys() & other.keys()
            if not shared:
                continue
            names = [
                next(name for name in stages[device] if not shared.isdisjoint(weights[name].tensors))
                for device in (first, second)
            ]
            yield (
                f"{names[0]!r} on {first!r} and {names[1]!r} on {second!r} share weights: each device has a copy of "
                f"them ({show_bytes(sum(one[key] for key in shared))} on {first!r})."
            )


def _weights(context: PlanContext, stage: Stage, models: dict[int, Any]) -> _Weights:
    """The weights of a stage, in the dtypes in which its device holds them: integers stay as they are."""
    backend = context.groups[context.devices[stage.name]]
    owner = _owner(backend.rank_form(stage), models)
    sizes: dict[Hashable, int] = {}
    tensors: dict[int, int] = {}
    for tensor in (*owner.parameters(), *owner.buffers()) if isinstance(owner, torch.nn.Module) else ():
        floating = tensor.dtype.is_floating_point
        dtype = backend.held_dtype(stage, tensor.dtype) if floating else tensor.dtype
        tensors[id(tensor)] = tensor.numel() * dtype.itemsize
        key = _piece(tensor) if backend.capabilities.host_memory else id(tensor)
        sizes[key] = tensors[id(tensor)]
    return _Weights(owner, sizes, tensors)


def _piece(tensor: torch.Tensor) -> Hashable:
    """What tells the memory of a weight from that of others; the tensor itself where it has none."""
    if tensor.is_meta or isinstance(tensor, fake_tensor.FakeTensor) or not tensor.numel():
        return id(tensor)
    try:
        place = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return id(tensor)
    return (place, tensor.storage_offset(), tensor.shape, tensor.stride()) if place else id(tensor)


def _owner(stage: Stage, models: dict[int, Any]) -> Any:
    """The owner of a stage's weights; a wrapper's model that is not built yet is built without memory."""
    owner = owner_of(stage.target)
    if not isinstance(owner, ModelWrapper):
        return owner
    if not owner.makes_model:
        return None
    if id(owner) not in models:
        built = owner.__dict__.get("_model")
        models[id(owner)] = _skeleton(owner) if built is None else built
    return models[id(owner)]


def _skeleton(wrapper: ModelWrapper) -> Any:
    """The wrapper's model without content; the real one where its class cannot be built so."""
    try:
        return outline(wrapper)
    except Exception:
        return wrapper.model

"""The models of an application's submodels: what a rank has of them, for planning, and whole, for the host."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from neuronx_distributed.trace.trace import get_sharded_checkpoint  # type: ignore[import-not-found]
from neuronx_distributed.utils.model_utils import init_on_device  # type: ignore[import-not-found]

from orchestrator.errors import GraphError
from orchestrator_neuron.isolation import environment_variable
from orchestrator_neuron.nxdi.adopt import CACHE
from orchestrator_neuron.nxdi.classes import EncoderModelInstance
from orchestrator_neuron.nxdi.ranks import ranks_of_degree
from orchestrator_neuron.nxdi.read import copy_of, overrides

__all__ = [
    "ApplicationWeights",
    "HostModel",
    "SubmodelMemory",
    "meta_model",
    "models_of",
    "submodel_instance",
]

#: NxD Inference's own CPU mode, a variable of the environment.
_CPU_MODE = "NXD_CPU_MODE"


@dataclass(frozen=True)
class SubmodelMemory:
    """What a submodel keeps on the device.

    Attributes:
        names: Parameters of its model.
        places: For each the place of its new value among the outputs, in order.
        shapes: Their shapes.
        dtype: Of all of them.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Elements of all of them."""
        return sum(map(math.prod, self.shapes))

    def parts(self, whole: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the parameters as views of a flat tensor."""
        pieces = torch.split(whole, [math.prod(shape) for shape in self.shapes])
        return {
            name: piece.view(shape)
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }


def models_of(application: Any) -> list[list[Any]]:
    """Returns the wrappers of an application in groups that share weights.

    There is one group, but for NxD Inference's models for pictures and text: they have those of a vision encoder, too.
    """
    groups = [application.models, getattr(application, "vision_models", [])]
    return [list(group) for group in groups if group]


class ApplicationWeights:
    """The weights of an application, which its submodels share.

    For planning those of one rank, without content; on the host all of them, from its checkpoint.

    Args:
        application: The user's application.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self._holder: torch.nn.Module | None = None
        self._names: dict[str, frozenset[str]] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> ApplicationWeights:
        return self

    def check_names(self, tag: str, names: Iterable[str]) -> None:
        """Makes sure that a submodel has no weights that the first one lacks.

        Raises:
            GraphError: It has.
        """
        group = next(
            models for models in models_of(self._application) if tag in [item.tag for item in models]
        )
        loaded = self._names.setdefault(group[0].tag, frozenset(names))
        own = [name for name in names if name not in loaded]
        if own:
            raise GraphError(
                f"The submodel {tag!r} of {type(self._application).__name__} has weights that the first one lacks, "
                f"{own[:5]}, and NxD Inference loads those of the first alone. Make an application for each.",
                submodel=tag,
            )

    @property
    def holder(self) -> torch.nn.Module:
        """A module that has them: those of its first submodel, of each of its groups."""
        if self._holder is None:
            parameters: list[torch.nn.Parameter] = []
            for wrapper, *_ in models_of(self._application):
                neuron = wrapper.config.neuron_config
                module, aliases = meta_model(wrapper, wrapper.config, neuron.tp_degree, neuron.world_size)
                state_ids = {id(parameter) for parameter in aliases}
                parameters += [
                    parameter for parameter in module.parameters() if id(parameter) not in state_ids
                ]
            self._holder = torch.nn.ParameterList(parameters).requires_grad_(False)
        return self._holder

    def load(self, wrapper: Any, config: Any) -> Any:
        """Returns the model instance of a submodel, whole, with weights that all submodels share.

        Args:
            wrapper: Its wrapper.
            config: Its config for one rank.

        Raises:
            GraphError: The checkpoint cannot be read, or does not fit.
        """
        with whole_on_host():
            return self._load(wrapper, config)

    def _load(self, wrapper: Any, config: Any) -> Any:
        name = type(self._application).__name__
        instance = submodel_instance(wrapper, config)
        instance.load_module()
        module = instance.module.eval().requires_grad_(False)
        try:
            if not self._tensors:
                # The application reads and converts the checkpoint by its config, which is for all ranks.
                reader = copy.copy(self._application)
                reader.config, reader.neuron_config = config, config.neuron_config
                self._tensors = reader.checkpoint_loader_fn()
                get_sharded_checkpoint(self._tensors, module, 0, 1)
                # Parameters, so that submodels have the same ones.
                self._tensors = {
                    key: torch.nn.Parameter(value, requires_grad=False)
                    for key, value in self._tensors.items()
                }
            left = module.load_state_dict(self._tensors, strict=False, assign=True).missing_keys
        except Exception as error:
            raise GraphError(
                f"The weights of {name} cannot be taken from its model_path {self._application.model_path!r}: {error}",
                application=name,
            ) from error
        _, aliases = instance.get(0)
        state_ids = {id(parameter) for parameter in aliases}
        own = module.state_dict(keep_vars=True)
        shared = {id(own[key]) for key in own if key not in left}
        missing = [key for key in left if id(own[key]) not in state_ids | shared]
        if missing:
            raise GraphError(
                f"The checkpoint of {name} at {self._application.model_path!r} lacks {missing[:5]}.",
                application=name,
            )
        return instance


class HostModel(torch.nn.Module):
    """A submodel whole on the host, with what it keeps as a port.

    Args:
        instance: Its model instance, which hands out its model for each bucket.
        memory: What it keeps, if anything.
        names: Its input ports.
        places: Of each port but the cache its place in a row.
        shapes: Of each bucket the shapes of these.
        fillings: What the other places of a row get.
    """

    def __init__(
        self,
        instance: Any,
        memory: SubmodelMemory | None,
        names: Sequence[str],
        places: Sequence[int],
        shapes: Sequence[tuple[Any, ...]],
        fillings: Mapping[int, torch.Tensor],
    ) -> None:
        super().__init__()
        self.model = instance.module
        self._instance, self._memory = instance, memory
        self._names, self._places = tuple(names), tuple(places)
        self._shapes, self._fillings = list(shapes), dict(fillings)

    def forward(self, *values: torch.Tensor) -> Any:
        """Runs it once; returns what it hands over, and last what it keeps."""
        # 1. The row of the bucket that these sizes are: nothing else is compiled on the device.
        named = dict(zip(self._names, values, strict=True))
        cache = named.pop(CACHE, None)
        bucket = self._shapes.index(tuple(tuple(value.shape) for value in named.values()))
        places = {**self._fillings, **dict(zip(self._places, named.values(), strict=True))}
        row = tuple(places[place] for place in range(len(places)))
        # 2. What it keeps are parameters of its model, views of one tensor here; who begins it has a new one.
        memory = self._memory
        if memory is None:
            results = self._run(bucket, {}, row)
            return results[0] if len(results) == 1 else tuple(results)
        if cache is None:
            cache = torch.zeros(memory.size, dtype=memory.dtype)
        parts = memory.parts(cache)
        results = self._run(bucket, {name: part.clone() for name, part in parts.items()}, row)
        # 3. Outputs that it keeps go back into that tensor.
        for place, name in zip(memory.places, memory.names, strict=True):
            parts[name].copy_(results[place])
        return (*(value for place, value in enumerate(results) if place not in memory.places), cache)

    def _run(
        self, bucket: int, parts: dict[str, torch.Tensor], row: tuple[torch.Tensor, ...]
    ) -> list[torch.Tensor]:
        with whole_on_host(), torch.no_grad():
            module, _ = self._instance.get(bucket)
            results = torch.func.functional_call(module, parts, row)
        return list(results) if isinstance(results, (tuple, list)) else [results]


@contextlib.contextmanager
def whole_on_host() -> Iterator[None]:
    """Runs its block in NxD Inference's own CPU mode, as if there were one rank: its kernels are plain operations."""
    with ranks_of_degree(1, 1), environment_variable(_CPU_MODE, "1"):
        yield


def meta_model(
    wrapper: Any, config: Any, degree: int, world: int
) -> tuple[torch.nn.Module, Mapping[torch.Tensor, int]]:
    """Builds the model of a submodel without content; returns it, and what it keeps with the place of each output."""
    cores = getattr(config.neuron_config, "logical_nc_config", 1)
    with (
        ranks_of_degree(degree, world, cores),
        init_on_device(torch.device("meta"), force_custom_init_on_device=True),
    ):
        instance = submodel_instance(wrapper, config)
        instance.load_module()
        module, aliases = instance.get(0)
    return module.eval(), aliases


def submodel_instance(wrapper: Any, config: Any) -> Any:
    """Returns the model instance of a wrapper: its own, or NxD Inference's for models that keep nothing.

    Args:
        wrapper: The user's wrapper; a copy of it is asked.
        config: The config to build with.
    """
    from neuronx_distributed_inference.models.model_base import (  # type: ignore[import-not-found]
        NeuronBaseModel,
    )

    kind, model = type(wrapper), wrapper.model_cls
    is_inherited = not overrides(wrapper, "get_model_instance")
    if is_inherited and not (isinstance(model, type) and issubclass(model, NeuronBaseModel)):
        return EncoderModelInstance(model, config, **(wrapper.model_init_kwargs or {}))
    return kind.get_model_instance(copy_of(wrapper, config))

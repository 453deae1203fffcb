"""The models of users' wrappers: built as NxD Inference would, at any degree, in a mocked world.

On the host a model is whole, so its degree is 1. What one rank of a device runs is built at the degree of the plan, and
serves planning alone: shapes and weights are read off it.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from neuronx_distributed.utils.model_utils import init_on_device  # type: ignore[import-not-found]

from orchestrator_neuron.nxdi.checks import Row
from orchestrator_neuron.nxdi.ranks import collective_shapes, ranks_of_degree
from orchestrator_neuron.nxdi.read import instance_of

__all__ = ["RankModel", "build_model", "config_of_degree"]

#: Degrees of a ``NeuronConfig``; not all versions have all of them.
_DEGREES = (
    "tp_degree",
    "pp_degree",
    "ep_degree",
    "cp_degree",
    "attention_dp_degree",
    "moe_tp_degree",
    "moe_ep_degree",
)


def config_of_degree(config: Any, rows: list[Row], degree: int, world: int) -> Any:
    """Returns a copy of a user's config, for a model on the host that computes in the dtypes of the examples.

    Args:
        config: The user's.
        rows: Example inputs of the wrapper.
        degree: Ranks that share the model.
        world: All ranks.
    """
    config = copy.deepcopy(config)
    neuron = config.neuron_config
    if degree == 1:
        for name in _DEGREES:
            if getattr(neuron, name, 1) not in (1, None):
                setattr(neuron, name, 1)
    neuron.tp_degree, neuron.world_size, neuron.local_ranks_size = degree, world, world
    neuron.start_rank_id = 0
    # Where the device's dtype is not that of the examples, the plan casts at the borders, and the host computes as
    # the examples say.
    dtypes = {spec.dtype for row in rows for spec in row if spec.dtype.is_floating_point}
    if neuron.torch_dtype not in dtypes:
        neuron.torch_dtype, neuron.cast_type = torch.float32, "as-declared"
    return config


def build_model(
    wrapper: Any,
    arguments: dict[str, Any],
    rows: list[Row],
    degree: int,
    world: int,
    has_content: bool = True,
) -> torch.nn.Module:
    """Builds a model by its wrapper's own ``get_model_instance``, or of its model class; in eval mode.

    That of one rank among several runs in trials only: see :class:`RankModel`.

    Args:
        wrapper: The user's wrapper, which is not written to.
        arguments: Keyword arguments of its model class.
        rows: Example inputs of the wrapper.
        degree: Ranks that share the model.
        world: All ranks.
        has_content: Its weights have; else they are on the meta device, and those of one rank say how they are cut.
    """
    config = config_of_degree(wrapper.config, rows, degree, world)
    cores = getattr(config.neuron_config, "logical_nc_config", 1)
    place = contextlib.nullcontext() if has_content else init_on_device(torch.device("meta"), False, True)
    with ranks_of_degree(degree, world, cores), place:
        instance = instance_of(wrapper, arguments, config)
        instance.load_module()
        # `get` of a language model's instance reads its cache; what is built is there without it.
        model = getattr(instance, "module", None)
        if model is None:
            model, _ = instance.get(0)
    model.requires_grad_(False)
    is_run = has_content and degree > 1
    return (model if not is_run else RankModel(model, degree, world, cores)).eval()


class RankModel(torch.nn.Module):
    """What one rank runs of a model, for trials: collectives inside it give shapes only.

    Args:
        model: The model at its degree.
        degree: Ranks that share it.
        world: All ranks.
        cores: Physical cores of a logical one.
    """

    def __init__(self, model: torch.nn.Module, degree: int, world: int, cores: int) -> None:
        super().__init__()
        self.model = model
        self._ranks = (degree, world, cores)

    def forward(self, *values: Any, **keywords: Any) -> Any:
        """Runs it on rank 0."""
        with ranks_of_degree(*self._ranks), collective_shapes():
            return self.model(*values, **keywords)

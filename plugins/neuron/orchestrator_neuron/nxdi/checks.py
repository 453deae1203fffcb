"""Checks of a user's NxD Inference wrapper, before anything is compiled.

Each check is a failure that NxD Inference would show late, in the wrong place, or as wrong numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch

from orchestrator.errors import GraphError, PlanError, PlanOptionError
from orchestrator.specs import PortSpec, TensorSpec, show_spec
from orchestrator_neuron.options import NeuronSettings

__all__ = ["Row", "check_dtypes", "check_example", "check_modes", "differences", "mend_flags", "row_misfit"]

#: Specs of the example inputs of one bucket.
Row: TypeAlias = tuple[TensorSpec, ...]


def mend_flags(wrapper: Any) -> dict[str, Any]:
    """Returns the keyword arguments of the wrapper's model, also where they landed in the wrong parameter.

    ``super().__init__(config, model_cls, tag, compiler_args, priority_model_idx, model_init_kwargs)`` is the old form
    of the constructor. Today its sixth parameter is ``pipeline_execution``.

    Raises:
        GraphError: ``pipeline_execution`` is neither a bool nor such a dict.
    """
    # Positional arguments of the old constructor land one parameter further: a dict in place of a flag tells.
    name, flag = type(wrapper).__name__, wrapper.pipeline_execution
    arguments = dict(wrapper.model_init_kwargs or {})
    if isinstance(flag, bool):
        return arguments
    if not isinstance(flag, Mapping):
        raise GraphError(
            f"{name}.pipeline_execution is {flag!r}, not a bool. It is the sixth parameter of NxD Inference's "
            f"ModelWrapper, so an argument given by position has landed there; give arguments by name.",
            wrapper=name,
        )
    warnings.warn(
        f"{name} gives model_init_kwargs by position, and the sixth parameter of NxD Inference's ModelWrapper is "
        f"pipeline_execution; {dict(flag)!r} is taken as model_init_kwargs. Give it by name.",
        stacklevel=4,
    )
    return arguments or dict(flag)


def check_modes(wrapper: Any) -> None:
    """Refuses modes of NxD Inference in which no value stays on the device.

    Raises:
        GraphError: ``async_mode`` or ``on_cpu`` is on.
    """
    name, neuron = type(wrapper).__name__, wrapper.config.neuron_config
    if neuron.async_mode or wrapper.async_mode:
        raise GraphError(
            f"{name} has async_mode=True. NxD Inference then ignores pipeline_execution and takes the arguments for "
            f"those of a language model (it reads the third and reshapes the first); leave async_mode off.",
            wrapper=name,
        )
    if neuron.on_cpu:
        raise GraphError(
            f"{name} has on_cpu=True, NxD Inference's own CPU mode, which has no ranked values. Leave it off, and "
            f"plan with device='cpu' or device='neuron-emulated' instead.",
            wrapper=name,
        )


def check_example(wrapper: Any, row: Any) -> None:
    """Refuses example inputs that are not all tensors.

    Raises:
        GraphError: A None, a number, a dict and so on among them.
    """
    if not isinstance(row, (tuple, list)):
        raise GraphError(
            f"The input_generator of {type(wrapper).__name__} gives a {type(row).__name__} where a tuple of tensors "
            f"belongs: return [(a, b)].",
            wrapper=type(wrapper).__name__,
        )
    for place, value in enumerate(row):
        if not isinstance(value, torch.Tensor):
            raise GraphError(
                f"Example input {place} of {type(wrapper).__name__} is {value!r}. A program takes tensors, by "
                f"position; leave out what is None, and make a number a tensor or a part of the config.",
                wrapper=type(wrapper).__name__,
            )


def check_dtypes(wrapper: Any, rows: list[Row]) -> None:
    """Refuses the default dtype where the example inputs are of another.

    Raises:
        GraphError: ``NeuronConfig`` was given no ``torch_dtype``, which means bfloat16, and an example is float32.
    """
    neuron = wrapper.config.neuron_config
    has_dtype = getattr(neuron, "overrides_torch_dtype", True)
    if has_dtype or neuron.cast_type != "config":
        return
    for row in rows:
        for place, value in enumerate(row):
            if value.dtype.is_floating_point and value.dtype != neuron.torch_dtype:
                raise GraphError(
                    f"The NeuronConfig of {type(wrapper).__name__} states no torch_dtype, so NxD Inference casts the "
                    f"model to {neuron.torch_dtype}, but example input {place} is {value.dtype}. Say which is meant: "
                    f"NeuronConfig(torch_dtype={value.dtype}, ...).",
                    wrapper=type(wrapper).__name__,
                )


def differences(stage: str, wrapper: Any, settings: NeuronSettings, own: bool) -> Iterator[str]:
    """Yields nothing; raises where a user's NeuronConfig and the plan's options cannot both hold.

    Args:
        stage: The stage's name.
        wrapper: The user's wrapper.
        settings: Those in force for the stage.
        own: The user's whole application is used, so its config decides everything.

    Raises:
        PlanError: They differ.
    """
    # Ranks and cores are the process's, whoever compiles; degree and dtype come from the plan, unless the application
    # compiles itself: then its config decides, and options that it would not see are refused.
    neuron = wrapper.config.neuron_config
    pairs: dict[str, tuple[Any, Any]] = {
        "world_size": (neuron.world_size, settings.world_size),
        "local_ranks_size": (neuron.local_ranks_size, settings.ranks),
        "start_rank_id": (neuron.start_rank_id, settings.start_rank_id),
        "logical_nc_config": (neuron.logical_nc_config, settings.logical_nc_config),
    }
    if own:
        pairs["tp_degree"] = (neuron.tp_degree, settings.tp_degree)
        dtype = neuron.torch_dtype if neuron.cast_type == "config" else None
        pairs["torch_dtype"] = (dtype or torch.float32, settings.torch_dtype or torch.float32)
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise PlanOptionError(
                f"The NeuronConfig of stage {stage!r} says {name}={theirs!r}, but the plan has {ours!r}. All stages "
                f"of one process share their ranks and cores. Change the NeuronConfig, or plan with "
                f"options={{{name!r}: {theirs!r}}}.",
                stage=stage,
                option=name,
            )
    # Expert and pipeline groups are the user's, of ranks of the plan; NxD refuses others when it traces.
    degrees = {name: getattr(neuron, name, 1) for name in ("pp_degree", "ep_degree")}
    needs = settings.tp_degree * math.prod(degrees.values())
    if settings.world_size % needs:
        degrees_text = ", ".join(f"{name}={size}" for name, size in degrees.items())
        raise PlanOptionError(
            f"The NeuronConfig of stage {stage!r} says {degrees_text}, which with tp_degree={settings.tp_degree} "
            f"takes a multiple of {needs} ranks, but the plan has {settings.world_size}. Plan with "
            f"options={{'world_size': {needs}}}, or change the NeuronConfig.",
            stage=stage,
            option="world_size",
        )
    for name in ("compiler_args", "checkpoint", "shard_weights") if own else ():
        if getattr(settings, name):
            raise PlanOptionError(
                f"Stage {stage!r} is an application of NxD Inference, which compiles and loads itself, so the option "
                f"{name!r} has no effect on it. Give its wrapper to from_nxdi instead, or leave the option out.",
                stage=stage,
                option=name,
            )
    yield from ()


def row_misfit(stage: str, rows: list[Row], inputs: Mapping[str, PortSpec]) -> PlanError | None:
    """Returns the error of an application whose own example inputs differ from the plan's; None: they fit.

    Args:
        stage: The stage's name.
        rows: Its example inputs.
        inputs: Fed ports, in order, with the spec of their value. Dims with a name are left to the compiler.
    """
    specs = [spec for spec in inputs.values() if isinstance(spec, TensorSpec)]
    if any(len(row) == len(specs) and all(map(_fits, specs, row)) for row in rows):
        return None
    rows_text = "; ".join(", ".join(map(show_spec, row)) for row in rows)
    return PlanError(
        f"Stage {stage!r} is fed {', '.join(show_spec(spec) for spec in specs)}, but its own input_generator compiles "
        f"it for {rows_text}, and only these shapes run. Change one of them; or give its wrapper to from_nxdi, which "
        f"is compiled for what the plan feeds.",
        stage=stage,
    )


def _fits(spec: TensorSpec, example: TensorSpec) -> bool:
    pairs = zip(spec.dims, example.dims, strict=False)
    return len(spec.dims) == len(example.dims) and all(
        dim == size for dim, size in pairs if isinstance(dim, int)
    )

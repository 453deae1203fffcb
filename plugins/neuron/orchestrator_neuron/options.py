"""Options of the two Neuron device families, for a whole plan or for one stage, and the settings of a stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.errors import PlanError, PlanOptionError

__all__ = [
    "OPTION_TYPES",
    "PLATFORMS",
    "SINGLE_CORE_PLATFORMS",
    "NeuronSettings",
    "normalize",
    "settings_for",
    "with_platform",
]

#: Names of the options, with the types a value may have.
OPTION_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "tp_degree": int,
    "world_size": int,
    "local_ranks_size": int,
    "start_rank_id": int,
    "torch_dtype": (torch.dtype, str),
    "logical_nc_config": int,
    "platform": str,
    "compiler_args": str,
    "adapters": (str, dict, tuple),
    "hazards": str,
    "checkpoint": (str, os.PathLike, dict),
    "sharded": (dict, tuple),
    "shard_weights": (dict, tuple),
}

#: Options that speak of one stage's weights or ports; they have no meaning for a whole plan.
STAGE_ONLY = ("checkpoint", "sharded", "shard_weights")
#: Options of the process: they are the same for all stages.
PROCESS_WIDE = ("world_size", "local_ranks_size", "start_rank_id", "logical_nc_config", "platform", "hazards")
#: Platforms, and those of them whose cores are not joined to logical ones.
PLATFORMS = ("trn1", "inf2", "trn2", "trn3")
SINGLE_CORE_PLATFORMS = ("trn1", "inf2")
#: Options that speak of edges; they have no meaning for one stage.
PLAN_ONLY = ("adapters",)
PLACES = ("cost", "producer", "consumer", "program", "host")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class NeuronSettings:
    """Options in force for one stage.

    Attributes:
        tp_degree: Ranks that share the stage's work.
        world_size: Ranks of the device group.
        local_ranks_size: Those of them that this process runs: rows of a ranked value.
        start_rank_id: The first one of these.
        torch_dtype: Dtype of weights and floating-point values; None: they stay as they are.
        logical_nc_config: Physical cores of one logical core.
        compiler_args: Arguments for the compiler; empty: its defaults.
        checkpoint: A safetensors file, a folder with ``model.safetensors``, or a ``state_dict``; ``None``: the
            module's own weights.
        sharded: Output port to the dim along which the ranks' parts join.
        shard_weights: Weight to the dim along which it is cut into one part for each rank.
    """

    tp_degree: int = 1
    world_size: int = 1
    local_ranks_size: int = 0
    start_rank_id: int = 0
    torch_dtype: torch.dtype | None = None
    logical_nc_config: int = 2
    compiler_args: str = ""
    checkpoint: str | Mapping[str, torch.Tensor] | None = None
    sharded: tuple[tuple[str, int], ...] = ()
    shard_weights: tuple[tuple[str, int], ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks of this process: all, unless ``local_ranks_size`` says otherwise."""
        return self.local_ranks_size or self.world_size


def normalize(options: Mapping[str, Any], stage: str = "") -> dict[str, Any]:
    """Returns options in one form: dtypes as such, dicts as sorted pairs.

    Args:
        options: Options by name.
        stage: The stage they are of; empty: the whole plan.

    Raises:
        PlanError: A value is none of its option.
    """
    return {name: _check(name, value, stage) for name, value in options.items() if name in OPTION_TYPES}


def with_platform(options: Mapping[str, Any], platform: str) -> dict[str, Any]:
    """Returns a plan's options with what follows from the platform, where that is not trn2.

    Args:
        options: Options in one form.
        platform: The one to plan for where they name none.

    Raises:
        PlanError: Logical cores are asked for where there are none.
    """
    platform = options.get("platform", platform)
    if platform not in SINGLE_CORE_PLATFORMS:
        return {**options, **({"platform": platform} if platform != "trn2" else {})}
    if options.get("logical_nc_config", 1) != 1:
        raise PlanOptionError(
            f"On {platform} a core is a core: logical_nc_config=1, not {options['logical_nc_config']!r}. Leave the "
            f"option out, or plan for another platform: options={{'platform': 'trn2'}}.",
            option="logical_nc_config",
        )
    return {**options, "platform": platform, "logical_nc_config": 1}


def settings_for(options: Mapping[str, Any], stage: str, config: Mapping[str, Any]) -> NeuronSettings:
    """Returns the settings in force for a stage: its own options over those of the plan.

    Raises:
        PlanError: A value is none of its option, or an option of the whole process differs for the stage.
    """
    whole, own = dict(options), normalize(config, stage)
    # 1. Ranks and cores are of the process: NxD Inference crashes on loading the second stage of another world.
    world = int(whole.get("world_size", whole.get("tp_degree", 1)))
    defaults = {
        "local_ranks_size": world,
        "start_rank_id": 0,
        "logical_nc_config": 2,
        "platform": "trn2",
        "hazards": "solve",
    }
    process_options = {**defaults, **whole, "world_size": world}
    for name in PROCESS_WIDE:
        if own.get(name, process_options[name]) != process_options[name]:
            raise PlanOptionError(
                f"Stage {stage!r} asks for {name}={own[name]!r}, but all stages of one process share one; give it to "
                f"the plan: options={{{name!r}: {own[name]!r}}}. (NxD Inference crashes while loading weights when "
                f"world sizes differ.)",
                stage=stage,
                option=name,
            )
    # 2. The stage's own options win, but for those.
    effective = {**whole, **own, "world_size": world}
    fields = {name: value for name, value in effective.items() if name in NeuronSettings.__dataclass_fields__}
    settings = NeuronSettings(**fields)
    # 3. Ranks of a stage form groups of equal size, and a sharded output needs one group: several would hold it twice.
    if world % settings.tp_degree:
        who = f"Stage {stage!r} has" if stage else "The plan has"
        raise PlanOptionError(
            f"{who} tp_degree={settings.tp_degree}, which does not divide the world size {world}; plan with "
            f"options={{'world_size': {settings.tp_degree}}} or a multiple of it.",
            stage=stage,
            option="tp_degree",
        )
    _check_processes(settings, stage)
    if settings.sharded and settings.tp_degree != world:
        raise PlanError(
            f"Stage {stage!r} declares sharded outputs with tp_degree={settings.tp_degree} in a world of {world} "
            f"ranks: groups of ranks would hold the same parts twice. Give it tp_degree={world}.",
            stage=stage,
        )
    return settings


def _check_processes(settings: NeuronSettings, stage: str) -> None:
    """Makes sure that the ranks of this process are some of the world's, and that no part is in another process.

    Raises:
        PlanError: They are not, or one is.
    """
    first, count, world = settings.start_rank_id, settings.ranks, settings.world_size
    if first + count > world or world % count or first % count:
        raise PlanOptionError(
            f"Ranks {first} to {first + count - 1} of {world} are no share of a process: processes have equally many "
            f"ranks each, one after another. Change local_ranks_size={count} or start_rank_id={first}.",
            option="local_ranks_size",
        )
    if settings.sharded and count < world:
        raise PlanError(
            f"Stage {stage!r} declares sharded outputs, and {world - count} of its {world} parts are in other "
            f"processes (local_ranks_size={count}). Gather the outputs inside the stage, or run all ranks in one "
            f"process.",
            stage=stage,
        )


def _check(name: str, value: Any, stage: str) -> Any:
    kinds = OPTION_TYPES[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        alternatives = kinds if isinstance(kinds, tuple) else (kinds,)
        raise _wrong(name, value, stage, f"a {' or '.join(kind.__name__ for kind in alternatives)}")
    _check_owner(name, stage)
    lowest = 0 if name == "start_rank_id" else 1
    if isinstance(value, int) and value < lowest:
        raise _wrong(name, value, stage, "a positive int" if lowest else "an int from 0 on")
    if name == "logical_nc_config" and value not in (1, 2):
        raise _wrong(name, value, stage, "1 or 2")
    if name == "platform" and value not in PLATFORMS:
        raise _wrong(name, value, stage, " or ".join(map(repr, PLATFORMS)))
    if name == "hazards" and value not in ("solve", "ignore"):
        raise _wrong(name, value, stage, "'solve' or 'ignore'")
    return _FORMS[name](value, stage) if name in _FORMS else value


def _check_owner(name: str, stage: str) -> None:
    """Some options are of one stage, some of the whole plan."""
    if not stage and name in STAGE_ONLY:
        raise PlanOptionError(
            f"The option {name!r} is of one stage: pipeline.add('name', stage, config={{{name!r}: ...}}).",
            option=name,
        )
    if stage and name in PLAN_ONLY:
        raise PlanOptionError(
            f"The option {name!r} of stage {stage!r} is of edges, so it goes to the plan: "
            f"options={{'adapters': {{'a.out -> b.in': ...}}}}.",
            option=name,
            stage=stage,
        )


def _checkpoint(value: Any, stage: str) -> Any:
    if not isinstance(value, dict):
        return os.fspath(value)
    strange = next((name for name, item in value.items() if not isinstance(item, torch.Tensor)), None)
    if strange is not None:
        raise _wrong("checkpoint", strange, stage, "a path, or a state_dict of tensors by name")
    return value


def _dtype(value: Any, stage: str) -> torch.dtype:
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if dtype not in _DTYPES:
        raise _wrong("torch_dtype", value, stage, "float32, float16 or bfloat16")
    return dtype  # type: ignore[no-any-return]


def _places(value: Any, stage: str) -> Any:
    pairs = () if isinstance(value, str) else _pairs("adapters", value, stage, str)
    for place in (value,) if isinstance(value, str) else (place for _, place in pairs):
        if place not in PLACES:
            raise _wrong("adapters", place, stage, f"one of {', '.join(map(repr, PLACES))}")
    return value if isinstance(value, str) else pairs


def _pairs(name: str, value: Any, stage: str, kind: type) -> tuple[tuple[str, Any], ...]:
    items = tuple(value.items()) if isinstance(value, Mapping) else tuple(value)
    for item in items:
        fits = isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str)
        if not fits or not isinstance(item[1], kind) or isinstance(item[1], bool):
            raise _wrong(name, value, stage, f"a dict of names to {kind.__name__}")
    return tuple(sorted((key, content) for key, content in items))


def _wrong(name: str, value: Any, stage: str, legal: str) -> PlanOptionError:
    where = f" of stage {stage!r}" if stage else ""
    return PlanOptionError(f"The option {name!r}{where} is {legal}, not {value!r}.", option=name, stage=stage)


#: Options with a canonical form, and the function that brings a value to it.
_FORMS: Mapping[str, Callable[[Any, str], Any]] = {
    "adapters": _places,
    "checkpoint": _checkpoint,
    "sharded": lambda value, stage: _pairs("sharded", value, stage, int),
    "shard_weights": lambda value, stage: _pairs("shard_weights", value, stage, int),
    "torch_dtype": _dtype,
}

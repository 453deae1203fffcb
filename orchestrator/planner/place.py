"""Place: every stage on a device group.

The most specific wish wins: ``placement`` by stage, then by the inlined pipeline around it, then the stage's own
``device``, then the plan's. A host stage is on the host and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from orchestrator.backend import Backend
from orchestrator.errors import PlanError, PlanOptionError, nearest
from orchestrator.plan.steps import HOST
from orchestrator.planner.context import PlanContext
from orchestrator.stage import Stage

__all__ = ["place"]


def place(context: PlanContext) -> PlanContext:
    """Assigns devices and makes the backend object of each group.

    Raises:
        PlanError: An unknown stage, device or option, or a host stage placed on a device.
    """
    # Devices first, each in the form that its backend writes it in; then one backend object for each group, since
    # options are checked against all of them; then what each stage says of its own.
    stages = context.graph.stages
    _check_placement(context)
    resolve = context.options.resolve
    devices: dict[str, str] = {}
    remarks: dict[str, None] = {}
    families: dict[str, tuple[str, type[Backend]]] = {}
    for name, stage in stages.items():
        wish = _wish(context, stage)
        if wish == HOST:
            devices[name] = HOST
            continue
        backend_name, kind = resolve(wish)
        devices[name] = kind.canonical(wish)
        families[devices[name]] = (backend_name, kind)
        if remark := kind.remark(wish):
            remarks[remark] = None
    # Where all stages are on the host the plan's device is looked up even so: a wrong name would pass unseen.
    if not families and context.options.device != HOST:
        resolve(str(context.options.device))
    groups = {device: kind(device, _options(context, kind)) for device, (_, kind) in families.items()}
    remarks |= dict.fromkeys(_check_options(context, groups))
    for name, stage in stages.items():
        _check_config(stage, groups.get(devices[name]))
    return replace(
        context,
        groups=groups,
        backends={device: name for device, (name, _) in families.items()},
        devices=devices,
    ).with_notes(*remarks)


def _check_placement(context: PlanContext) -> None:
    stages = context.graph.stages
    names = set(stages) | {name[:cut] for name in stages for cut, mark in enumerate(name) if mark == "/"}
    for name, device in context.options.placement.items():
        if name not in names:
            raise PlanOptionError(
                f"placement names {name!r}, but there is no such stage.{nearest(name, names)}", stage=name
            )
        if not isinstance(device, (str, torch.device)):
            raise PlanOptionError(
                f"placement puts {name!r} on {device!r}; a device is a string like 'cuda:0'.", stage=name
            )


def _wish(context: PlanContext, stage: Stage) -> str:
    placement = context.options.placement
    path = stage.name.split("/")
    # From the longest path to the shortest, so that the innermost inlined pipeline wins.
    choice = next(
        (
            placement["/".join(path[:end])]
            for end in range(len(path), 0, -1)
            if "/".join(path[:end]) in placement
        ),
        None,
    )
    if stage.host:
        if placement.get(stage.name, HOST) != HOST:
            raise PlanError(
                f"Stage {stage.name!r} is a host stage (device='host'), so it cannot be placed on "
                f"{placement[stage.name]!r}.",
                stage=stage.name,
            )
        return HOST
    wish = (stage.device or context.options.device) if choice is None else choice
    if wish == HOST:
        raise PlanError(
            f"Stage {stage.name!r} cannot be placed on the host by a plan; add it with device='host' and declare "
            f"its outputs, or place it on 'cpu'.",
            stage=stage.name,
        )
    return str(wish) if isinstance(wish, torch.device) else wish


def _options(context: PlanContext, kind: type[Backend]) -> dict[str, Any]:
    return {
        name: value for name, value in context.options.backend_options.items() if name in kind.option_types
    }


def _check_options(context: PlanContext, groups: dict[str, Backend]) -> Iterator[str]:
    """Checks the plan's options; yields a note of each that another device than those of the plan has.

    Raises:
        PlanOptionError: No device has it, or it takes another type.
    """
    option_types = {name: kind for backend in groups.values() for name, kind in backend.option_types.items()}
    for name, value in context.options.backend_options.items():
        others = () if name in option_types else context.options.families_with(name)
        if others:
            # The same call of `plan` does while stages are moved from one device to another.
            yield (
                f"The option {name!r} has no effect: no stage is on a device that has it "
                f"({', '.join(map(repr, others))})."
            )
            continue
        if name not in option_types:
            raise PlanOptionError(
                f"No backend of this plan knows the option {name!r}.{nearest(name, option_types)}",
                option=name,
            )
        if not isinstance(value, option_types[name]):
            kinds = option_types[name]
            type_names = " or ".join(
                kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
            )
            raise PlanOptionError(f"Option {name!r} takes {type_names}, not {value!r}.", option=name)


def _check_config(stage: Stage, backend: Backend | None) -> None:
    option_types = dict(backend.option_types) if backend else {}
    for name in stage.config:
        if name not in option_types:
            where = f"its backend on {backend.device!r}" if backend else "a host stage"
            raise PlanOptionError(
                f"config of stage {stage.name!r} has {name!r}, which neither the stage nor {where} knows."
                f"{nearest(name, [*option_types, *stage.accepts])}",
                stage=stage.name,
                option=name,
            )

"""Aliases: outputs that a stage's author says are an input, updated; proven while it runs on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.backend import CompilingBackend
from orchestrator.errors import PlanError, nearest
from orchestrator.planner.context import PlanContext
from orchestrator.planner.infer.outputs import port_names
from orchestrator.planner.infer.probe import ProbeResult
from orchestrator.specs import TensorSpec, show_spec
from orchestrator.stage import Stage

__all__ = ["check_aliases", "check_provable", "updates_in_place"]


def updates_in_place(context: PlanContext, stage: Stage) -> bool:
    """Tells whether what a stage writes into its inputs stays there: on a device that computes eagerly.

    Raises:
        PlanError: The device frees values by call, so that no two may be one, or compiles the stage as it is.
    """
    # A device that compiles gives new values, or keeps states; one that is eager must let two values be one.
    backend = context.groups.get(context.devices[stage.name])
    if not stage.aliases or backend is None:
        return False
    if isinstance(backend, CompilingBackend):
        if backend.foldable(stage) or backend.own_states(stage):
            return False
        raise PlanError(
            f"Stage {stage.name!r} is compiled for {backend.device!r} as its author made it, with the state that it "
            f"keeps there by itself; aliases={dict(stage.aliases)} is for stages that the plan compiles. Leave it out.",
            stage=stage.name,
            device=backend.device,
        )
    if backend.capabilities.refcounted:
        return True
    raise PlanError(
        f"Stage {stage.name!r} updates inputs in place (aliases={dict(stage.aliases)}), but on {backend.device!r} "
        f"every value is freed by itself, so that an output cannot be an input. Place it on another device.",
        stage=stage.name,
        device=backend.device,
    )


def check_provable(name: str, stage: Stage) -> None:
    """Refuses aliases of a stage that nobody can try.

    Raises:
        PlanError: It has some, and no wrapper that answers for them.
    """
    if stage.aliases and not (stage.wrapper is not None and stage.wrapper.aliases):
        output, port = stage.aliases[0]
        raise PlanError(
            f"Stage {stage.name!r} (call {name!r}) cannot be tried while planning, so that nothing proves that its "
            f"output {output!r} is its input {port!r}, as aliases= says, and that it writes nowhere else. Leave the "
            f"alias out and let the stage give a new tensor.",
            stage=stage.name,
            call=name,
            port=port,
        )


def check_aliases(name: str, stage: Stage, arguments: Mapping[str, Any], outcome: ProbeResult) -> set[str]:
    """Makes sure that outputs are the inputs that aliases name, in one trial.

    Args:
        name: The call.
        stage: Its stage, which has aliases.
        arguments: What each port got: shape and dtype, or a constant.
        outcome: What came of it.

    Returns:
        The keys of these outputs, as the stage calls them.

    Raises:
        PlanError: One is none, or another tensor.
    """
    # Both ends must be there, then have one form, and only then be one tensor: so each fault is told by its own name.
    keys = [key for key, _, _ in outcome.outputs]
    key_of = dict(zip(port_names(name, stage, outcome), keys, strict=True))
    forms = {key: (shape, dtype) for key, shape, dtype in outcome.outputs}
    for output, port in stage.aliases:
        if output not in key_of:
            what = f"which it does not give; it gives {list(key_of)}.{nearest(output, key_of)}"
            raise _alias_error(name, stage, output, port, f"names the output {output!r}, {what}")
        if port not in arguments:
            raise _alias_error(name, stage, output, port, f"names the input {port!r}, which is not fed")
        argument, form = arguments[port], forms[key_of[output]]
        if not isinstance(argument, tuple) or not isinstance(argument[1], torch.dtype):
            what = f"says that {output!r} is the input {port!r}, which is a Python constant, not a tensor"
            raise _alias_error(name, stage, output, port, what)
        if form != argument:
            raise _alias_error(
                name,
                stage,
                output,
                port,
                f"says that '{name}.{output}' is '{name}.{port}', updated, but the output is {_show(form)} and the "
                f"input {_show(argument)}",
            )
        if (key_of[output], port) not in outcome.input_outputs:
            raise _alias_error(
                name,
                stage,
                output,
                port,
                f"says that '{name}.{output}' is '{name}.{port}', updated, but the stage gives another tensor. Write "
                f"into the input ({port}.index_copy_(...), {port}[...] = ...) and return {port} itself, or leave the "
                f"alias out",
            )
    return {key_of[output] for output, _ in stage.aliases}


def _show(form: tuple[tuple[int, ...], torch.dtype]) -> str:
    return show_spec(TensorSpec(form[0], form[1]))


def _alias_error(name: str, stage: Stage, output: str, port: str, what: str) -> PlanError:
    return PlanError(
        f"aliases of stage {stage.name!r} (call {name!r}) {what}.",
        stage=stage.name,
        call=name,
        output=output,
        port=port,
    )

"""What a stage's exception becomes: a :class:`~orchestrator.errors.StageError` that names stage and inputs.

A host stage that reads the request alone may refuse it, as the plan itself does: an
:class:`~orchestrator.errors.InputError` of its own stays one.

The step that raised is found from the traceback: the innermost frame of a generated function, by its line. That
frame also holds the inputs of the step, so nothing has to be noted while a request runs.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Container, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING

from orchestrator.errors import InputError, OrchestratorError, StageError
from orchestrator.plan.steps import HOST, CallStep, Step, adapter_of
from orchestrator.runner.codegen.request_entry import is_entry
from orchestrator.specs import show_tensor
from orchestrator.surroundings import autocast_hint

if TYPE_CHECKING:
    from orchestrator.runner.variant import PlanVariant

__all__ = ["explain", "is_own", "release"]

#: The folder of this project: what is raised in it was raised by no stage.
_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"

#: Folders of the runner, and of what it drives chunks and iterations with.
_OWN_FOLDERS = tuple(f"{Path(__file__).parents[1] / name}{os.sep}" for name in ("runner", "plan"))


def is_own(variant: PlanVariant, error: Exception) -> bool:
    """Tells whether the runner itself raised: a check of a request or of a stage's output, or a region's driver.

    An error of this project that a stage raised, say from a session of its own, is that stage's failure.
    """
    if not isinstance(error, OrchestratorError):
        return False
    codes = {code.code for code in variant.codes}
    # Outside of generated code it is the request that was refused. Behind the innermost generated frame, files of the
    # runner are ours; the first one that is not is a stage's, and so is all behind that.
    is_running, own = False, True
    for frame, _ in _frames(codes, error):
        if frame.f_code in codes:
            is_running = own = True
        elif is_running and own:
            own = frame.f_code.co_filename.startswith(_OWN_FOLDERS)
    return own


def _frames(codes: Container[CodeType], error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yields the frames of this request with their lines.

    They end where another request begins: one that a stage ran in a session of its own, or an earlier one that the
    same exception object came out of (Python keeps its old frames behind the new ones).
    """
    is_running = False
    for frame, line in traceback.walk_tb(error.__traceback__):
        if is_running and is_entry(frame.f_code):
            return
        is_running = is_running or frame.f_code in codes
        yield frame, line


def explain(variant: PlanVariant, error: Exception) -> OrchestratorError:
    """Returns the error to raise for an exception that a request ran into."""
    origin = _find(variant, error)
    if origin is None:
        return StageError(
            f"A request of {variant.plan.pipeline!r} failed: {_describe(error)}.{autocast_hint()}"
        )
    step, frame = origin
    variables = {**frame.f_globals, **frame.f_locals}  # a constant is a global of the generated function
    values = {index: variables.get(f"v{index}") for index in step.inputs}
    match step:
        case CallStep() if isinstance(error, InputError) and _refuses_request(variant, step, error):
            return InputError(f"Stage {step.name!r} refuses the request: {error.message}", **error.objects)
        case CallStep():
            return _call_error(variant, step, values, error)
    return _step_error(step, values, error)


def _find(variant: PlanVariant, error: BaseException) -> tuple[Step, FrameType] | None:
    """The step that raised, and the frame that ran it: the innermost one, since a region's body has one of its own."""
    codes = {code.code: code for code in variant.codes}
    origin = None
    for frame, line in _frames(codes, error):
        code = codes.get(frame.f_code)
        if code is not None and line in code.lines:
            origin = code.lines[line], frame
    return origin


def _refuses_request(variant: PlanVariant, step: CallStep, error: InputError) -> bool:
    """Tells whether an error that a stage raised is about what it got of the request, as it came, and nothing else."""
    # An error of a session in the stage, or of another stage's value, is that stage's failure, whatever it says.
    plan = variant.plan
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    names = {name for name, _ in plan.inputs}
    return (
        step in plan.steps
        and plan.call(step.name).device == HOST
        and all(plan.values[index].origin in names for index in step.inputs)
        and not is_entry(frame.f_code)
        and not frame.f_code.co_filename.startswith(_PACKAGE)
    )


def _call_error(
    variant: PlanVariant, step: CallStep, values: dict[int, object], error: Exception
) -> StageError:
    call = variant.plan.call(step.name)
    # As text: an error may live long, and holds no tensor.
    ports = [port for port, _ in call.inputs]
    inputs = {port: show_tensor(values[index]) for port, index in zip(ports, step.inputs, strict=True)}
    arguments = ", ".join(f"{port}={text}" for port, text in inputs.items()) or "nothing"
    return StageError(
        f"Stage {call.stage!r} (call {call.name!r} on {call.device}) raised {_describe(error)}. "
        f"It was given {arguments}.{autocast_hint()}",
        stage=call.stage,
        call=call.name,
        device=call.device,
        inputs=inputs,
    )


def _step_error(step: Step, values: dict[int, object], error: Exception) -> StageError:
    arguments = ", ".join(show_tensor(value) for value in values.values())
    adapter = adapter_of(step)
    return StageError(
        f"The {adapter or step.op} of {step.label!r} raised {_describe(error)}. "
        f"It was given {arguments}.{autocast_hint()}",
        origin=step.label,
        adapter=adapter,
    )


def release(variant: PlanVariant, error: BaseException) -> None:
    """Frees the handles that a failed request leaves on devices that do not count references."""
    plan, executable = variant.plan, variant.executable
    strict = {
        group.memory
        for group in plan.groups
        if not executable.backends[group.device].capabilities.refcounted and group.memory != HOST
    }
    if not strict:
        return
    codes = {code.code: code for code in variant.codes}
    # A carry may go by another name for what is not this frame's: a constant, or what its caller owns.
    skip = set(map(id, [None, *executable.constants.values()]))
    for frame, _ in _frames(codes, error):
        if frame.f_code not in codes:
            continue
        arguments, values = codes[frame.f_code].arguments, codes[frame.f_code].values
        skip |= {id(frame.f_locals.get(f"v{index}")) for index in arguments}
        # What this frame made and did not free yet, each handle once however many names it has.
        for name, handle in frame.f_locals.items():
            index = int(name[1:]) if name[0] == "v" and name[1:].isdigit() else -1
            is_mine = (
                index >= 0
                and index not in arguments
                and values[index].memory in strict
                and not values[index].constant
            )
            if is_mine and id(handle) not in skip:
                skip.add(id(handle))
                executable.backend_of(values[index].memory).free(handle)


def _describe(error: Exception) -> str:
    """Class and text of an exception, without its full stop; an exception may fail at telling its text."""
    try:
        return f"{type(error).__name__}: {error}".removesuffix(".")
    except Exception:
        return type(error).__name__

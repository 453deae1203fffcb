"""What a stage's exception becomes: a :class:`~orchestrator.errors.StageError` that names stage and inputs.

The step that raised is found from the traceback: the innermost frame of a generated function, by its line. That
frame also holds the values the step was given, so nothing has to be noted while a request runs.
"""

from __future__ import annotations

import traceback
from collections.abc import Container, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError, StageError
from orchestrator.plan.model import HOST, Step
from orchestrator.runner.codegen.request_entry import is_entry
from orchestrator.specs import show_tensor
from orchestrator.surroundings import autocast_hint

if TYPE_CHECKING:
    from orchestrator.runner.variant import Lane

__all__ = ["explain", "is_own", "release"]

_HERE = str(Path(__file__).parent)


def is_own(lane: Lane, error: Exception) -> bool:
    """Tells whether the runner itself raised: a check of a request or of a stage's output, or a region's driver.

    An error of this project that a stage raised, say from a session of its own, is that stage's failure.
    """
    if not isinstance(error, OrchestratorError):
        return False
    codes = {code.code for code in lane.codes}
    entered, own = False, True
    for frame, _ in _frames(codes, error):
        if frame.f_code in codes:
            entered = own = True
        elif entered and own:
            own = frame.f_code.co_filename.startswith(_HERE)
    return own


def _frames(codes: Container[CodeType], error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yields the frames of this request with their lines.

    They end where another request begins: one that a stage ran in a session of its own, or an earlier one that the
    same exception object came out of (Python keeps its old frames behind the new ones).
    """
    running = False
    for frame, line in traceback.walk_tb(error.__traceback__):
        if running and is_entry(frame.f_code):
            return
        running = running or frame.f_code in codes
        yield frame, line


def explain(lane: Lane, error: Exception) -> OrchestratorError:
    """Returns the error to raise for an exception that a request ran into."""
    found = _find(lane, error)
    if found is None:
        return StageError(f"A request of {lane.plan.pipeline!r} failed: {_said(error)}.{autocast_hint()}")
    step, frame = found
    held = {**frame.f_globals, **frame.f_locals}  # a constant is a global of the generated function
    given = {index: held.get(f"v{index}") for index in step.inputs}
    return _call_error(lane, step, given, error) if step.op == "call" else _step_error(step, given, error)


def _find(lane: Lane, error: BaseException) -> tuple[Step, FrameType] | None:
    codes = {code.code: code for code in lane.codes}
    found = None
    for frame, line in _frames(codes, error):
        code = codes.get(frame.f_code)
        if code is not None and line in code.lines:
            found = code.lines[line], frame
    return found


def _call_error(lane: Lane, step: Step, given: dict[int, object], error: Exception) -> StageError:
    call = lane.plan.call(step.name)
    ports = [port for port, _ in call.inputs]
    inputs = {port: show_tensor(given[index]) for port, index in zip(ports, step.inputs, strict=True)}
    listed = ", ".join(f"{port}={shown}" for port, shown in inputs.items()) or "nothing"
    return StageError(
        f"Stage {call.stage!r} (call {call.name!r} on {call.device}) raised {_said(error)}. "
        f"It was given {listed}.{autocast_hint()}",
        stage=call.stage,
        call=call.name,
        device=call.device,
        inputs=inputs,
    )


def _step_error(step: Step, given: dict[int, object], error: Exception) -> StageError:
    shown = ", ".join(show_tensor(value) for value in given.values())
    return StageError(
        f"The {step.adapter or step.op} of {step.name!r} raised {_said(error)}. It was given {shown}.{autocast_hint()}",
        origin=step.name,
        adapter=step.adapter,
    )


def release(lane: Lane, error: BaseException) -> None:
    """Frees the handles that a failed request leaves on devices that do not count references."""
    plan, programs = lane.plan, lane.programs
    strict = {
        group.memory
        for group in plan.groups
        if not programs.backends[group.device].capabilities.refcounted and group.memory != HOST
    }
    if not strict:
        return
    codes = {code.code: code for code in lane.codes}
    # A carry may go by another name for what is not this frame's: a constant, or what its caller owns.
    freed = set(map(id, [None, *programs.constants.values()]))
    for frame, _ in _frames(codes, error):
        if frame.f_code not in codes:
            continue
        given = codes[frame.f_code].arguments
        freed |= {id(frame.f_locals.get(f"v{index}")) for index in given}
        for name, handle in frame.f_locals.items():
            index = int(name[1:]) if name[0] == "v" and name[1:].isdigit() else -1
            held = (
                index >= 0
                and index not in given
                and plan.values[index].memory in strict
                and not plan.values[index].constant
            )
            if held and id(handle) not in freed:
                freed.add(id(handle))
                programs.backend_of(plan.values[index].memory).free(handle)


def _said(error: Exception) -> str:
    """Class and text of an exception, without its full stop; an exception may fail at telling its text."""
    try:
        return f"{type(error).__name__}: {error}".removesuffix(".")
    except Exception:
        return type(error).__name__

"""Watching loops: values of an iteration while the loop still runs, progress, and cancelling.

A session that nobody watches runs code without any of this. Who watches gets code of a kind that calls a
:class:`ProgressHook` after every iteration; a listener belongs to the thread that runs the request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.adapter import Adapter
from orchestrator.duplicate import owner_of
from orchestrator.errors import CancelledError, InputError, nearest
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import HOST, AdaptStep, LoopStep, Step, body_of, iter_steps, with_body
from orchestrator.specs import TensorSpec, plain_dims
from orchestrator.stage import Stage

__all__ = ["Listener", "ProgressHook", "outputs_before_loops", "with_progress_outputs"]

#: Called with loop, iterations that are done, the most there are, and the watched values by name. Before the first
#: iteration, with 0 of 0, the values are outputs that are there already, and what watched carries start with.
Listener = Callable[[str, int, int, dict[str, Any]], None]


class ProgressHook(threading.local):
    """What generated code calls after an iteration; each thread has its own listener."""

    listener: Listener | None = None
    cancel: threading.Event | None = None
    failure: Exception | None = None

    def __call__(self, loop: str, iterations: int, most: int, values: dict[str, Any]) -> None:
        """Tells the listener of an iteration.

        Raises:
            CancelledError: Somebody asked for that, or the listener raised.
        """
        # A listener's failure ends the request as a cancel does; ``run`` raises it in place of that error, so that no
        # stage is blamed for it.
        if self.listener is not None:
            try:
                self.listener(loop, iterations, most, values)
            except Exception as error:
                self.failure = error
        if self.failure is not None or (self.cancel is not None and self.cancel.is_set()):
            when = f"after iteration {iterations} of {most} of" if iterations else "before"
            raise CancelledError(
                f"The request was cancelled {when} loop {loop!r}.",
                loop=loop,
                done=iterations,
            )

    def _listener_failure(self) -> Exception | None:
        return self.failure

    def run(
        self,
        request: Callable[[], dict[str, Any]],
        listener: Listener | None,
        cancel: threading.Event | None,
    ) -> dict[str, Any]:
        """Runs a request in this thread, listening to it.

        Raises:
            Exception: What the listener raised, or the request.
        """
        # A listener may run a request of the same session: what it puts here is for that request alone.
        before = self.listener, self.cancel, self.failure
        self.listener, self.cancel, self.failure = listener, cancel, None
        try:
            return request()
        except CancelledError:
            failure = self._listener_failure()
            if failure is None:
                raise
        finally:
            self.listener, self.cancel, self.failure = before
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame


def with_progress_outputs(plan: Plan, names: Iterable[str], stages: Mapping[str, Stage]) -> Plan:
    """Returns the plan that hands out values of each iteration.

    Args:
        plan: The plan.
        names: Outputs that a loop gives, or ports of loops (``decode.token``; ``token`` is that of each loop that has
            one).
        stages: Its stages by name.

    Raises:
        InputError: No loop gives one of them.
    """
    targets = {name: _find(plan, name) for name in names}
    owners = {call.name: owner_of(stages[call.stage].target) for call in plan.calls}
    values = list(plan.values)
    return replace(plan, steps=_steps(plan, plan.steps, targets, owners, values), values=tuple(values))


def outputs_before_loops(plan: Plan) -> dict[int, tuple[tuple[str, int], ...]]:
    """Returns what can be handed out before a loop runs: outputs on the host, by the position of the step.

    A step is listed that is a loop or holds one; an output is listed once, before the first of them that runs after it
    was made.
    """
    outputs = {name: index for name, index in plan.outputs if plan.values[index].memory == HOST}
    available = set(range(len(plan.inputs))) | {at for at, value in enumerate(plan.values) if value.constant}
    ready: dict[int, tuple[tuple[str, int], ...]] = {}
    for position, step in enumerate(plan.steps):
        if any(iter_steps((step,), LoopStep)):
            pairs = tuple((name, index) for name, index in outputs.items() if index in available)
            outputs = {name: index for name, index in outputs.items() if index not in available}
            ready |= {position: pairs} if pairs else {}
        available |= set(step.outputs)
    return ready


def _ports(plan: Plan) -> dict[str, tuple[str, int]]:
    """Ports of all loops, each with the loop and the value of an iteration; a carry goes before what is collected."""
    ports: dict[str, tuple[str, int]] = {}
    for loop in iter_steps(plan.steps, LoopStep):
        for index, part in zip(loop.stacks, loop.collects, strict=True):
            origin = plan.values[index].origin
            ports[origin] = ports[origin.removesuffix("[]")] = loop.name, part
        for carry in loop.carries:
            ports[plan.values[carry.argument].origin] = loop.name, carry.yielded
    return ports


def _find(plan: Plan, name: str) -> dict[str, int]:
    """The loops that a name stands for, each with the value of an iteration."""
    # By the output that the port of a loop feeds, by the port's whole name, by its last part.
    ports = _ports(plan)
    outputs = dict(plan.outputs)
    source = next((edge.source for edge in plan.edges if edge.target == name and name in outputs), "")
    for port in (source, name):
        if port in ports:
            return dict([ports[port]])
    ends = [ports[port] for port in ports if port.rpartition(".")[2] == name]
    if ends:
        return dict(ends)
    outputs_of_loops = [edge.target for edge in plan.edges if edge.source in ports and edge.target in outputs]
    raise InputError(
        f"partial names {name!r}, which no loop gives in its iterations.{nearest(name, [*outputs_of_loops, *ports])}",
        partial=name,
    )


def _steps(
    plan: Plan,
    steps: Sequence[Step],
    targets: Mapping[str, dict[str, int]],
    owners: Mapping[str, Any],
    values: list[PlannedValue],
) -> tuple[Step, ...]:
    new_steps: list[Step] = []
    for step in steps:
        step = with_body(step, _steps(plan, body_of(step), targets, owners, values))
        match step:
            case LoopStep(name=name):
                own_targets = {output: loops[name] for output, loops in targets.items() if name in loops}
                step = _with_progress(plan, step, own_targets, values)
                steps_before, step = _with_start(plan, step, own_targets, owners, values)
                new_steps += steps_before
        new_steps.append(step)
    return tuple(new_steps)


def _with_progress(
    plan: Plan, loop: LoopStep, own_targets: dict[str, int], values: list[PlannedValue]
) -> LoopStep:
    """Adds to a body what brings values home, and to the loop what they are called."""
    # After the body's own steps: by then each value is there. What is made on its way home is freed on the way;
    # the value itself is the loop's.
    steps, pairs = list(loop.body), []
    for name, index in own_targets.items():
        pairs.append((name, _bring_home(plan, index, steps, values)))
    return replace(loop, body=tuple(steps), progress_outputs=tuple(pairs))


def _with_start(
    plan: Plan,
    loop: LoopStep,
    own_targets: Mapping[str, int],
    owners: Mapping[str, Any],
    values: list[PlannedValue],
) -> tuple[list[Step], LoopStep]:
    """Adds what is told before the first iteration: steps before the loop, and to the loop what values are called.

    That is the start of a carry which the same object makes, at the same port, as what the loop goes on with: the first
    of its values is ready before the loop, and is one like all others.
    """
    steps: list[Step] = []
    pairs = []
    for name, index in own_targets.items():
        for carry in loop.carries:
            (first, port), (later, later_port) = (
                plan.values[at].origin.rpartition(".")[::2] for at in (carry.initial, carry.yielded)
            )
            owner = owners.get(first)
            is_alike = owner is not None and owner is owners.get(later) and port == later_port
            if carry.yielded == index and is_alike:
                pairs.append((name, _bring_home(plan, carry.initial, steps, values)))
    # What was brought home is dead once it is told; it is the loop that tells it.
    own_values = tuple(dict.fromkeys(at for _, at in pairs if at >= len(plan.values)))
    loop = replace(
        loop,
        progress_starts=tuple(pairs),
        inputs=(*loop.inputs, *own_values),
        frees=(*loop.frees, *own_values),
    )
    return steps, loop


def _bring_home(plan: Plan, index: int, steps: list[Step], values: list[PlannedValue]) -> int:
    """Adds the steps that bring a value to the host, and returns the value there; each step frees what it reads."""
    for at, adapter in enumerate(_adapters_home(plan, values[index])):
        source, dead = values[index], (index,) if at else ()
        assert isinstance(source.spec, TensorSpec)
        memory = HOST if adapter.kind == "download" else source.memory
        real = source.unpadded or adapter.kind == "cut"
        values.append(PlannedValue(source.origin, adapter.result(source.spec), memory, real))
        outputs = (len(values) - 1,)
        steps.append(AdaptStep((index,), outputs, source.origin, adapter, device=source.memory, frees=dead))
        index = len(values) - 1
    return index


def _adapters_home(plan: Plan, value: PlannedValue) -> list[Adapter]:
    """What brings a value to the host, at its own size where that is known."""
    if not isinstance(value.spec, TensorSpec):
        return []
    dims = plain_dims(value.spec.dims)
    plain = all(isinstance(dim, (int, str)) for dim in dims)
    cut = [Adapter("cut", dims)] if not value.unpadded and plain and value.spec.names else []
    if value.memory == HOST:
        return cut
    download = Adapter("download", device=HOST)
    compiled = any(group.runs_programs for group in plan.groups if group.memory == value.memory)
    return [download, *cut] if compiled else [*cut, download]

"""Hazard: no value is read after the program that made it has run again.

A program owns one output buffer for each bucket, and running it again overwrites what it gave before. So every reader
of a value must come before the next run of its program: the *next run* here is a later call of the same stage, the
next chunk of a region, or the next iteration of a loop. Three ways out, in this order:

    reorder   readers are moved before the next run, where they do not need what it gives
    replica   the later call runs a second program of the same application and weights, told apart by a routing input;
              a call that gives a carry takes turns between the two (double buffering)
    spill     the value goes over the host, which copies it out of the buffer before the next run

The pass works on *blocks*: a call with what is fused into it, an adapter, or a region or loop as a whole (whose body
is treated in the same way by itself). What it can neither order nor give a replica it marks as
spilled, and the steps are made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from orchestrator.backend import CompilingBackend
from orchestrator.errors import PlanError
from orchestrator.graph import Edge, NodeKey, next_port
from orchestrator.plan.iterations import may_skip
from orchestrator.plan.steps import (
    BranchStep,
    CallStep,
    Carry,
    LeafStep,
    LoopLikeStep,
    LoopStep,
    RegionStep,
    Step,
    body_of,
    with_body,
)
from orchestrator.planner.context import PlanContext
from orchestrator.planner.hazards.programs import ProgramTable, is_program
from orchestrator.planner.hazards.reorder import Conflict, Resolution, Schedule

__all__ = ["solve_hazards"]


def solve_hazards(context: PlanContext) -> PlanContext:
    """Orders the steps, names the program of each, and makes replicas; or marks edges as spilled.

    Returns:
        The context with programs; where :attr:`PlanContext.spills` has grown, its steps must be made again first.
    """
    if not any(map(context.is_compiled, context.groups)):
        return context
    return _Solver(context, ProgramTable(context)).run()


@dataclass
class _Solver:
    context: PlanContext
    programs: ProgramTable
    routes: dict[str, int] = field(default_factory=dict)
    alternates: dict[str, int] = field(default_factory=dict)
    moves: list[str] = field(default_factory=list)
    spills: dict[Edge, str] = field(default_factory=dict)

    def run(self) -> PlanContext:
        steps = self._order(self.context.steps, self._hazard_devices())
        # A spill changes the route of an edge, and with it values, steps and what can share a program: nothing that was
        # ordered here stands then. All spills of one pass are gathered, so that there are few passes.
        if self.spills:
            return replace(self.context, spills={**self.context.spills, **self.spills})
        return self._finish(steps)

    def _resolve(self, conflict: Conflict) -> Resolution:
        """Gives a call another program, or two to take turns between; where neither is left, spills the value."""
        # Of a carry both values live at once, in each iteration anew: another program for the call would not help, only
        # two in turns.
        if conflict.carry is not None:
            if self._double_buffer(conflict.producer):
                return Resolution.ANEW
            self.spills |= self._carry_edges(conflict)
            return Resolution.COPY
        # The later call takes the other program where it is one call; a region or loop runs many, so the producer does.
        call = conflict.later if conflict.later in self.context.calls else conflict.producer
        if call in self.context.calls and self._can_replicate(call):
            self.routes[call] = self.routes.get(call, 0) + 1
            return Resolution.OTHER_PROGRAM if call == conflict.later else Resolution.ANEW
        self.spills |= self._edges_to_spill(conflict)
        return Resolution.COPY

    def _hazard_devices(self) -> frozenset[str]:
        """Devices on which hazards are looked for."""
        return frozenset(
            device
            for device, backend in self.context.groups.items()
            if backend.capabilities.output_buffers and backend.options.get("hazards", "solve") != "ignore"
        )

    def _order(
        self,
        steps: tuple[Step, ...],
        devices: frozenset[str],
        live_out: tuple[int, ...] = (),
        carries: tuple[Carry, ...] = (),
    ) -> tuple[Step, ...]:
        """Orders steps, those of bodies too."""
        # A conflict may be solved by what a call in here runs. Then these steps are ordered anew, no others: no call
        # of them is anywhere else.
        while True:
            moves = len(self.moves)
            order = self._try_order(steps, devices, live_out, carries)
            if order is not None:
                return order
            del self.moves[moves:]

    def _try_order(
        self,
        steps: tuple[Step, ...],
        devices: frozenset[str],
        live_out: tuple[int, ...],
        carries: tuple[Carry, ...],
    ) -> tuple[Step, ...] | None:
        blocks: list[Step] = []
        for step in steps:
            # Bodies first: what a block runs, and what it reads, hangs on the order inside it.
            match step:
                case LoopLikeStep():
                    step = with_body(step, self._order(step.body, devices, step.yields, step.carries))
                case RegionStep():
                    step = with_body(step, self._order(step.body, devices, step.outputs))
            blocks.append(step)
        carry_buffers = self._carry_buffers(blocks, devices, carries)
        run_by = partial(self._run_by, devices=devices)
        schedule = Schedule(
            tuple(blocks),
            run_by,
            self.programs.fused_adapters,
            live_out,
            carry_buffers,
            self._may_skip,
        )
        order = schedule.solve(self._resolve)
        self.moves += schedule.moves
        return order

    def _carry_buffers(
        self, steps: Iterable[Step], devices: frozenset[str], carries: Iterable[Carry]
    ) -> dict[int, tuple[tuple[int, int], str]]:
        """Carries whose next value is in the buffer of a program that does not take turns with another."""
        calls = {step.name: step for step in steps if isinstance(step, CallStep)}
        # A call of a loop inside may give the carry too; its program runs several times an iteration, and where the
        # value is kept was decided with that in mind (schedule/locations.py).
        buffers = {}
        for carry in carries:
            if self.context.values[carry.argument].origin in self.programs.state_of:
                continue  # it is in no buffer
            name = self.programs.fused_adapters.epilogue.get(carry.yielded, ("", ()))[0]
            key = (
                self._run_by(calls[name], devices) if name in calls and name not in self.alternates else None
            )
            if key is not None:
                buffers[carry.argument] = (key, name)
        return buffers

    def _double_buffer(self, call: str) -> bool:
        """Makes a call take turns between two programs that nothing else runs; tells whether it can."""
        # The two programs overwrite each other's last but one value only if nothing else runs either of them.
        stage = self.context.calls[call].stage
        others = {
            route
            for name, other_call in self.context.calls.items()
            if other_call.stage == stage and name != call
            for route in (self.routes.get(name, 0), self.alternates.get(name, 0))
        }
        free = [route for route in range(self.context.replicas) if route not in others]
        if len(free) < 2 or not self._foldable(call):
            return False
        self.routes[call], self.alternates[call] = free[:2]
        return True

    def _carry_edges(self, conflict: Conflict) -> Mapping[Edge, str]:
        """The edge that hands a carry to the next iteration."""
        assert conflict.carry is not None
        origin = self.context.values[conflict.carry].origin
        reason = (
            f"the program of {conflict.producer!r} has one output buffer and runs again in the next iteration before "
            f"{conflict.reader!r} has read it; the carry is copied out over the host"
        )
        loop = self.context.graph.into(NodeKey("exit", origin.rpartition(".")[0]))
        return {edge: reason for edge in loop if edge.destination == next_port(origin)}

    def _may_skip(self, step: Step) -> bool:
        match step:
            case LoopStep() | BranchStep():
                return may_skip(step, self.context.values, self.context.dims)
        return False

    def _run_by(self, step: Step, devices: frozenset[str]) -> tuple[int, int] | None:
        if not is_program(self.context, step) or step.device not in devices:
            return None
        return self.programs.key(step), self._route(step)

    def _route(self, step: Step) -> int:
        return self.routes.get(step.name, 0) if isinstance(step, CallStep) else 0

    def _can_replicate(self, call: str) -> bool:
        last = max(self.routes.get(call, 0), self.alternates.get(call, 0))
        return self._foldable(call) and call not in self.alternates and last + 1 < self.context.replicas

    def _foldable(self, call: str) -> bool:
        stage = self.context.graph.calls[call].stage
        backend = self.context.groups[self.context.devices[stage.name]]
        return isinstance(backend, CompilingBackend) and backend.foldable(stage)

    def _edges_to_spill(self, conflict: Conflict) -> Mapping[Edge, str]:
        """Edges from the call whose value is destroyed to the calls that read it too late."""
        reason = (
            f"the program of {conflict.producer!r} has one output buffer and runs again in {conflict.later!r} before "
            f"{conflict.reader!r} reads it; the value is copied out over the host"
        )
        # What destroys the value may be a call, or a loop by what enters or leaves it; what the pipeline gives was
        # brought home right after it was made.
        edges = {
            edge: reason
            for kind in ("call", "exit", "enter")
            for edge in self.context.graph.out_of(NodeKey(kind, conflict.producer))
            if edge.target.kind in ("call", "enter", "exit")
            and (conflict.readers is None or edge.target.name in conflict.readers)
        }
        # Each pass spills an edge more or stops here: the passes come to an end.
        if not edges.keys() - self.context.spills.keys():
            raise PlanError(f"No order of the calls saves a value: {reason}.", call=conflict.producer)
        return edges

    def _finish(self, steps: tuple[Step, ...]) -> PlanContext:
        # A call in two programs by turns is told of once, and not as one that runs another program too.
        notes = [
            f"{call!r} runs another program of {self.context.calls[call].stage!r} (route {route}): each owns one "
            f"output buffer, and what is in it is still to be read."
            for call, route in self.routes.items()
            if route and call not in self.alternates
        ]
        notes += [
            f"{call!r} takes turns between two programs of {self.context.calls[call].stage!r}: what one iteration gave "
            f"is still there while the next one reads it."
            for call in self.alternates
        ]
        programs = self.programs.plan_programs(self.routes, self.alternates)
        return replace(self.context, steps=self._with_programs(steps), programs=programs).with_notes(
            *self.moves, *notes
        )

    def _with_programs(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """Writes into every step the program that it runs."""
        result: list[Step] = []
        for step in steps:
            match step:
                case LeafStep() if is_program(self.context, step):
                    result.append(self._with_program(step))
                case _:
                    result.append(with_body(step, self._with_programs(body_of(step))))
        return tuple(result)

    def _with_program(self, step: LeafStep) -> LeafStep:
        program = self.programs.name(step, self._route(step))
        match step:
            case CallStep(name=name) if name in self.alternates:
                alternate = self.programs.name(step, self.alternates[name])
                return replace(step, program=program, alternate=alternate)
        return replace(step, program=program)

"""Hazard: no value is read after the program that made it has run again.

A program owns one output buffer for each bucket, and running it again overwrites what it gave before. So every reader
of a value must come before the next run of its program: the *next run* here is a later call of the same stage, the
next chunk of a region, or the next iteration of a loop. Three ways out, in this order:

    reorder   readers are moved before the next run, where they do not need what it gives
    twin      the later call runs a second program of the same application and weights, told apart by a routing input;
              a call that gives a carry takes turns between the two (double buffering)
    spill     the value goes over the host, which copies it out of the buffer before the next run

The pass works on *blocks*: a call with what is folded into it, an adapter, or a region or loop as a whole (whose body
is treated in the same way by itself). What it cannot order or twin it marks as spilled, and the steps are made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from orchestrator.backend import CompilingBackend
from orchestrator.errors import PlanError
from orchestrator.graph import Edge, next_port
from orchestrator.plan.iterations import may_skip
from orchestrator.plan.model import Step
from orchestrator.planner.context import Draft
from orchestrator.planner.hazards.programs import Programs, Signature, is_program
from orchestrator.planner.hazards.reorder import Blocks, Clash

__all__ = ["solve_hazards"]


def solve_hazards(draft: Draft) -> Draft:
    """Orders the steps, names the program of each, and makes twins; or marks edges as spilled.

    Returns:
        The draft with programs; where :attr:`Draft.spilled` has grown, its steps must be made again first.
    """
    if not any(map(draft.compiled, draft.groups)):
        return draft
    return _Solver(draft, Programs(draft)).run()


@dataclass
class _Solver:
    draft: Draft
    programs: Programs
    routes: dict[str, int] = field(default_factory=dict)
    doubles: dict[str, int] = field(default_factory=dict)
    moves: list[str] = field(default_factory=list)

    def run(self) -> Draft:
        watched = self._watched()
        while True:
            self.moves.clear()
            clash = self._order(self.draft.steps, watched)
            if isinstance(clash, tuple):
                return self._finished(clash)
            if clash.carried is not None:
                if not self._doubled(clash.made_by):
                    return replace(self.draft, spilled={**self.draft.spilled, **self._spilled_carry(clash)})
                continue
            twin = clash.later if clash.later in self.draft.calls else clash.made_by
            if twin in self.draft.calls and self._can_twin(twin):
                self.routes[twin] = self.routes.get(twin, 0) + 1
                continue
            spilled = self._spilled(clash)
            return replace(self.draft, spilled={**self.draft.spilled, **spilled})

    def _watched(self) -> frozenset[str]:
        """Devices on which hazards are looked for."""
        return frozenset(
            device
            for device, backend in self.draft.groups.items()
            if backend.capabilities.output_buffers and backend.options.get("hazards", "solve") != "ignore"
        )

    def _order(
        self,
        steps: Iterable[Step],
        watched: frozenset[str],
        given: tuple[int, ...] = (),
        carries: tuple[tuple[int, int, int], ...] = (),
    ) -> tuple[Step, ...] | Clash:
        """Orders steps, those of bodies too, with the routes of the moment."""
        ordered: list[Step] = []
        for step in steps:
            if step.body:
                ends, inner = (step.loop.ends, step.loop.carries) if step.loop else (step.outputs, ())
                body = self._order(step.body, watched, ends, inner)
                if isinstance(body, Clash):
                    return body
                step = replace(step, body=body)
            ordered.append(step)
        carried = self._carried(ordered, watched, carries)
        folds = self.programs.folds
        run_by, may_skip = partial(self._run_by, watched=watched), self._may_skip
        blocks = Blocks(tuple(ordered), run_by, folds, given, carried, may_skip)
        solved = blocks.solve()
        self.moves += blocks.moves
        return solved

    def _carried(
        self, steps: Iterable[Step], watched: frozenset[str], carries: Iterable[tuple[int, int, int]]
    ) -> dict[int, tuple[tuple[Signature, int], str]]:
        """Carries whose next value is in the buffer of a program that does not take turns with another."""
        calls = {step.name: step for step in steps if step.op == "call"}
        found = {}
        for _, head, given in carries:
            name = self.programs.folds.after.get(given, ("", ()))[0]
            key = self._run_by(calls[name], watched) if name in calls and name not in self.doubles else None
            if key is not None:
                found[head] = (key, name)
        return found

    def _doubled(self, call: str) -> bool:
        """Makes a call take turns between two programs that nothing else runs; tells whether it can."""
        stage = self.draft.calls[call].stage
        others = {
            route
            for name, planned in self.draft.calls.items()
            if planned.stage == stage and name != call
            for route in (self.routes.get(name, 0), self.doubles.get(name, 0))
        }
        free = [route for route in range(self.draft.twins) if route not in others]
        if len(free) < 2 or not self._foldable(call):
            return False
        self.routes[call], self.doubles[call] = free[:2]
        return True

    def _spilled_carry(self, clash: Clash) -> Mapping[Edge, str]:
        """The edge that hands a carry to the next iteration."""
        assert clash.carried is not None
        origin = self.draft.values[clash.carried].origin
        reason = (
            f"the program of {clash.made_by!r} has one output buffer and runs again in the next iteration before "
            f"{clash.reader!r} has read it; the carry is copied out over the host"
        )
        return {edge: reason for edge in self.draft.graph.edges if edge.destination == next_port(origin)}

    def _may_skip(self, step: Step) -> bool:
        return step.loop is not None and may_skip(step.loop, self.draft.values, self.draft.dims)

    def _run_by(self, step: Step, watched: frozenset[str]) -> tuple[Signature, int] | None:
        if not is_program(self.draft, step) or step.device not in watched:
            return None
        return self.programs.key(step), self._route(step)

    def _route(self, step: Step) -> int:
        return self.routes.get(step.name, 0) if step.op == "call" else 0

    def _can_twin(self, call: str) -> bool:
        last = max(self.routes.get(call, 0), self.doubles.get(call, 0))
        return self._foldable(call) and call not in self.doubles and last + 1 < self.draft.twins

    def _foldable(self, call: str) -> bool:
        stage = self.draft.graph.calls[call].stage
        backend = self.draft.groups[self.draft.devices[stage.name]]
        return isinstance(backend, CompilingBackend) and backend.foldable(stage)

    def _spilled(self, clash: Clash) -> Mapping[Edge, str]:
        """Edges from the call whose value is destroyed to the calls that read it too late."""
        reason = (
            f"the program of {clash.made_by!r} has one output buffer and runs again in {clash.later!r} before "
            f"{clash.reader!r} reads it; the value is copied out over the host"
        )
        found = {
            edge: reason
            for edge in self.draft.graph.edges
            if edge.source.name == clash.made_by
            and edge.target.kind in ("call", "enter", "exit")
            and (clash.readers is None or edge.target.name in clash.readers)
        }
        if not found.keys() - self.draft.spilled.keys():
            raise PlanError(f"No order of the calls saves a value: {reason}.", call=clash.made_by)
        return found

    def _finished(self, steps: tuple[Step, ...]) -> Draft:
        notes = [
            f"{call!r} runs another program of {self.draft.calls[call].stage!r} (route {route}): each owns one output "
            f"buffer, and what is in it is still to be read."
            for call, route in self.routes.items()
            if route and call not in self.doubles
        ]
        notes += [
            f"{call!r} takes turns between two programs of {self.draft.calls[call].stage!r}: what one iteration gave "
            f"is still there while the next one reads it."
            for call in self.doubles
        ]
        planned = self.programs.planned(self.routes, self.doubles)
        return replace(self.draft, steps=self._named(steps), programs=planned).noted(*self.moves, *notes)

    def _named(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """Writes into every step the program that it runs."""
        named = []
        for step in steps:
            name = self.programs.name(step, self._route(step)) if is_program(self.draft, step) else ""
            twin = self.programs.name(step, self.doubles[step.name]) if name and self._is_double(step) else ""
            named.append(replace(step, program=name, twin=twin, body=self._named(step.body)))
        return tuple(named)

    def _is_double(self, step: Step) -> bool:
        return step.op == "call" and step.name in self.doubles

"""Hazard: no value is read after the program that made it has run again.

A program owns one output buffer for each bucket, and running it again overwrites what it gave before. So every reader
of a value must come before the next run of its program: the *next run* here is a later call of the same stage, or the
next chunk of a region. Three ways out, in this order:

    reorder   readers are moved before the next run, where they do not need what it gives
    twin      the later call runs a second program of the same application and weights, told apart by a routing input
    spill     the value goes over the host, which copies it out of the buffer before the next run

The pass works on *blocks*: a call with what is folded into it, an adapter, or a region as a whole (whose body is
treated in the same way by itself). What it cannot order or twin it marks as spilled, and the steps are made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.backend import CompilingBackend
from orchestrator.errors import PlanError
from orchestrator.graph import Edge
from orchestrator.plan.model import Step
from orchestrator.planner.draft import Draft
from orchestrator.planner.order import Blocks, Clash
from orchestrator.planner.programs import Programs, Signature, is_program

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
    moves: list[str] = field(default_factory=list)

    def run(self) -> Draft:
        watched = self._watched()
        while True:
            self.moves.clear()
            clash = self._order(self.draft.steps, watched)
            if isinstance(clash, tuple):
                return self._finished(clash)
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
        self, steps: Iterable[Step], watched: frozenset[str], given: tuple[int, ...] = ()
    ) -> tuple[Step, ...] | Clash:
        """Orders steps, those of regions too, with the routes of the moment."""
        ordered: list[Step] = []
        for step in steps:
            if step.body:
                body = self._order(step.body, watched, step.outputs)
                if isinstance(body, Clash):
                    return body
                step = replace(step, body=body)
            ordered.append(step)
        blocks = Blocks(tuple(ordered), lambda step: self._run_by(step, watched), self.programs.folds, given)
        solved = blocks.solve()
        self.moves += blocks.moves
        return solved

    def _run_by(self, step: Step, watched: frozenset[str]) -> tuple[Signature, int] | None:
        if not is_program(self.draft, step) or step.device not in watched:
            return None
        return self.programs.key(step), self._route(step)

    def _route(self, step: Step) -> int:
        return self.routes.get(step.name, 0) if step.op == "call" else 0

    def _can_twin(self, call: str) -> bool:
        stage = self.draft.graph.calls[call].stage
        backend = self.draft.groups[self.draft.devices[stage.name]]
        foldable = isinstance(backend, CompilingBackend) and backend.foldable(stage)
        return foldable and self.routes.get(call, 0) + 1 < self.draft.twins

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
            and edge.target.kind == "call"
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
        ]
        planned = self.programs.planned(self.routes)
        return replace(self.draft, steps=self._named(steps), programs=planned).noted(*self.moves, *notes)

    def _named(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """Writes into every step the program that it runs."""
        named = []
        for step in steps:
            name = self.programs.name(step, self._route(step)) if is_program(self.draft, step) else ""
            named.append(replace(step, program=name, body=self._named(step.body)))
        return tuple(named)

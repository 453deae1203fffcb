"""Verify, third part, continued: which locks a request holds while it goes over the steps."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.plan.model import Plan
from orchestrator.plan.steps import Step
from orchestrator.planner.verify.edges import demand

__all__ = ["LockReplay"]


class LockReplay:
    """Follows the locks of one request.

    Two requests that take locks in one order never wait for each other: who holds the last one that is held waits for
    none. So a lock may be taken only while all that are held come before it.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._places = {lock.name: place for place, lock in enumerate(plan.locks)}
        self._members = {lock.name: lock.members for lock in plan.locks}
        self._lock_of = {member: lock.name for lock in plan.locks for member in lock.members}
        self._held: list[str] = []

    def _demand(self, holds: bool, what: str) -> None:
        demand(self._plan, holds, what)

    def take(self, step: Step) -> None:
        """Takes the locks of a step.

        Raises:
            PlanError: There is no such lock, it is held, or one is held that comes after it.
        """
        for name in step.locks:
            self._demand(name in self._places, f"{step.label!r} takes {name!r}, which is no lock")
            later = [other for other in self._held if self._places[other] >= self._places[name]]
            self._demand(not later, f"{step.label!r} takes the lock {name!r} while {later} is held")
            self._held.append(name)

    def give_back(self, step: Step) -> tuple[str, ...]:
        """Gives back the locks of a step; returns what another request may use from here on.

        Raises:
            PlanError: One of them is not held.
        """
        for name in step.unlocks:
            self._demand(
                name in self._held, f"{step.label!r} gives the lock {name!r} back, which is not held"
            )
            self._held.remove(name)
        return self.guarded(step.unlocks)

    def guarded(self, names: Iterable[str]) -> tuple[str, ...]:
        """Returns the members of locks."""
        return tuple(member for name in names for member in self._members.get(name, ()))

    def check_held(self, step: Step, members: Iterable[str]) -> None:
        """Makes sure that what a step runs or writes is this request's.

        Raises:
            PlanError: A lock is not held.
        """
        for member in sorted(members):
            self._demand(
                self._lock_of.get(member) in self._held,
                f"{step.label!r} runs while another request may use {member!r}",
            )

    def finish(self) -> None:
        """Ends the request.

        Raises:
            PlanError: It holds a lock for ever; or a program with an output buffer, or a state, has not just one lock.
        """
        self._demand(not self._held, f"the locks {self._held} are never given back")
        # Each of what is to be guarded is, by one lock, and nothing else is.
        plan = self._plan
        buffered = {group.device for group in plan.groups if group.overwrites_outputs}
        needs = [program.name for program in plan.programs if program.device in buffered]
        needs += [state.name for state in plan.states]
        members = [member for lock in plan.locks for member in lock.members]
        self._demand(sorted(members) == sorted(needs), f"its locks guard {members}, not {needs}")
        self._demand(len(self._places) == len(plan.locks), "two locks have one name")

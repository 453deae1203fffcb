"""Verify, seventh part: a carry that lives in an application is written and read by its programs alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedProgram, PlannedState
from orchestrator.plan.steps import CallStep, Carry, LoopStep, RegionStep, Step, iter_steps
from orchestrator.planner.verify.edges import demand
from orchestrator.program import ProgramInput, ProgramOutput
from orchestrator.specs import TensorSpec, combinations

__all__ = ["check_states"]


def check_states(plan: Plan) -> None:
    """Checks every state, and that programs speak of no other.

    Raises:
        PlanError: One may be read before it was written, or by somebody else, or after it was overwritten.
    """
    names = [state.name for state in plan.states]
    uses = {item.state for program in plan.programs for item in _ends(program)} - {""}
    demand(plan, len(set(names)) == len(names), "two states have one name")
    demand(plan, uses == set(names), f"its programs use the states {sorted(uses)}, not {names}")
    for state in plan.states:
        _StateChecker(plan, state).run()


class _StateChecker:
    """Follows a state through the steps: written once, then read and written once in each iteration, then forgotten."""

    def __init__(self, plan: Plan, state: PlannedState) -> None:
        self.plan = plan
        self.state = state
        #: Steps that run once for a request, or for a chunk of it, in order; and the dims of such chunks.
        self.steps: tuple[Step, ...] = ()
        self.dims: tuple[str, ...] = ()
        #: Calls that write it, with whether they read it before.
        self.calls: list[tuple[CallStep, bool]] = []

    def _check(self, holds: bool, what: str) -> None:
        demand(self.plan, holds, f"the state {self.state.name!r} {what}")

    def run(self) -> None:
        # 1. The steps: who makes each of its values, and who reads it. A value is read by the next step that updates
        #    it and by nobody else, so that its memory never holds anything that somebody still needs.
        carries = [update.carry for update in self.state.updates]
        loops = [
            (step, carry)
            for step in iter_steps(self.plan.steps, LoopStep)
            for carry in step.carries
            if self.plan.values[carry.argument].origin in carries
        ]
        for steps, dims in _sequences(self.plan):
            if loops and loops[0][0] in steps:
                self.steps, self.dims = steps, dims
        origins = [self.plan.values[carry.argument].origin for _, carry in loops]
        self._check(carries[:1] == [self.state.name], "is not called like its first carry")
        self._check(
            origins == carries and all(loop in self.steps for loop, _ in loops),
            f"is the carries {origins}, not {carries}, or one of a loop that may run several times",
        )
        value = loops[0][1].initial
        self._start(value, self.steps[: self.steps.index(loops[0][0])])
        for (loop, carry), update in zip(loops, self.state.updates, strict=True):
            self._check(carry.initial == value, f"is not what {loop.name!r} begins with")
            self._iteration(loop, carry, update.output)
            value = next(end for other, end in zip(loop.carries, loop.results, strict=True) if other is carry)
        self._read(value, 0)
        self._chunks()
        # 2. The programs: those that these calls run take and give it, in one form, and no others do; they run for
        #    nobody else.
        self._programs()

    def _start(self, value: int, before: tuple[Step, ...]) -> None:
        """Checks who makes the first value."""
        starts = [step for step in iter_steps(before, CallStep) if value in step.outputs]
        self._check(len(starts) == 1 and {*starts} <= {*before}, "is not made by one call, before its loops")
        origin = self.plan.values[value].origin
        self._check(origin == self.state.start, f"is said to begin with {self.state.start!r}, not {origin!r}")
        self.calls.append((starts[0], False))

    def _iteration(self, loop: LoopStep, carry: Carry, output: str) -> None:
        """Checks who reads and makes it in an iteration."""
        updates = [step for step in iter_steps(loop.body, CallStep) if carry.yielded in step.outputs]
        self._check(
            len(updates) == 1 and {*updates} <= {*loop.body}, f"is not updated by one call of {loop.name!r}"
        )
        origin = self.plan.values[carry.yielded].origin
        self._check(origin == output, f"is said to become {output!r}, not {origin!r}")
        for index, readers in ((carry.initial, 1), (carry.argument, 1), (carry.yielded, 0)):
            self._read(index, readers)
        self._check(carry.argument in updates[0].inputs, "is not read by the call that updates it")
        self._check(loop.yields.count(carry.yielded) == 1, "is carried or collected twice")
        self.calls.append((updates[0], True))

    def _read(self, index: int, readers: int) -> None:
        # A region reads what is read in its body, and nothing else.
        steps = (step for step in iter_steps(self.plan.steps) if not isinstance(step, RegionStep))
        reads = sum(step.inputs.count(index) for step in steps)
        self._check(reads == readers, "is read by somebody else")
        self._check(index not in {value for _, value in self.plan.outputs}, "is an output")

    def _chunks(self) -> None:
        """Checks that nothing cuts the calls that write it into chunks but what cuts all of them together."""
        cut = {dim.name for dim in self.plan.dims if dim.can_chunk} - {*self.dims}
        values = {index for call, _ in self.calls for index in (*call.inputs, *call.outputs)}
        specs = [self.plan.values[index].spec for index in values]
        names = {name for spec in specs if isinstance(spec, TensorSpec) for name in spec.names}
        self._check(cut.isdisjoint(names), "is one of calls that may run several times")

    def _programs(self) -> None:
        # 1. Its programs run in the calls that write it, and in no others; a call in turns has two of them.
        writers = {
            name: (call, reads)
            for call, reads in self.calls
            for name in filter(None, (call.program, call.alternate))
        }
        users = [
            step
            for step in iter_steps(self.plan.steps, CallStep)
            if not writers.keys().isdisjoint((step.program, step.alternate))
        ]
        self._check(
            all(any(step is call for call, _ in self.calls) for step in users), "is updated by others"
        )
        applications = {self.plan.application(self.plan.program(name)) for name in writers}
        self._check(len(applications) == 1, f"is of several applications, {sorted(applications)}")
        # 2. Each of them takes and gives it once, as its call does; every other program knows nothing of it.
        ports = {update.port.rpartition(".")[2] for update in self.state.updates}
        for program in self.plan.programs:
            inputs = [item for item in program.inputs if item.state == self.state.name]
            outputs = [item for item in program.outputs if item.state == self.state.name]
            expected = (int(writers[program.name][1]), 1) if program.name in writers else (0, 0)
            self._check(
                (len(inputs), len(outputs)) == expected,
                f"is not taken and given by {program.name!r} as it should be",
            )
            self._check(not inputs or program.device == self.state.device, f"is not on {program.device!r}")
            # What picks the program's version are the sizes of its other inputs: a state has one size.
            names = {
                name for item in program.inputs if item.spec and not item.state for name in item.spec.names
            }
            loose = {name for item in inputs if item.spec for name in item.spec.names} - names
            fixed = all(len(dim.buckets) == 1 for dim in self.plan.dims if dim.name in loose)
            self._check(fixed, f"is all that tells the sizes {sorted(loose)} to {program.name!r}")
            self._check(
                {item.port for item in inputs} <= ports, f"comes into {program.name!r} by other ports"
            )
        # 3. Each update is that of a call, in their order.
        for update, (call, _) in zip(self.state.updates, self.calls[1:], strict=True):
            self._check(update.port.rpartition(".")[0] == call.name, f"does not come in by {update.port!r}")
        self._forms()

    def _forms(self) -> None:
        """Checks that its value has one form everywhere, for which its memory suffices."""
        items = [
            item for program in self.plan.programs for item in _ends(program) if item.state == self.state.name
        ]
        specs = [item.spec for item in items if item.spec is not None]
        self._check(
            len(specs) == len(items)
            and all(spec.same_form(specs[0]) for spec in specs)
            and not any(item.adapters for item in items),
            "has several forms",
        )
        dims = {dim.name: dim for dim in self.plan.dims}
        self._check(not any(dims[name].any for name in specs[0].names), "is of any size")
        shapes = [
            specs[0].shape(sizes)
            for sizes in combinations(specs[0].names, {name: dim.buckets for name, dim in dims.items()})
        ]
        largest = tuple(map(max, zip(*shapes, strict=True)))
        self._check(
            not self.state.spec.names
            and (largest, specs[0].dtype) == (self.state.spec.shape({}), self.state.spec.dtype),
            "is not as large as the largest of its values",
        )


def _sequences(plan: Plan) -> Iterator[tuple[tuple[Step, ...], tuple[str, ...]]]:
    """Yields steps that run one after the other, none of them twice, with the dims of what they are a chunk of.

    Those of a request come first, of no dims, then those of each region.
    """
    cut = {dim.name for dim in plan.dims if dim.can_chunk}

    def flat(steps: Iterable[Step]) -> Iterator[Step]:
        for step in steps:
            match step:
                case RegionStep(dims=dims, body=body) if cut.isdisjoint(dims):
                    yield from flat(body)
                case _:
                    yield step

    whole = tuple(flat(plan.steps))
    yield whole, ()
    for step in whole:
        if isinstance(step, RegionStep):
            yield tuple(flat(step.body)), step.dims


def _ends(program: PlannedProgram) -> Iterator[ProgramInput | ProgramOutput]:
    yield from program.inputs
    yield from program.outputs

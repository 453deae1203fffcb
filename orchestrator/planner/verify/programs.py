"""Verify, third part: programs take and give what the steps say, and no buffer is read after it was overwritten.

Another request may run a program as soon as its lock is given back: that counts as if the program had run again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.adapter import Adapter
from orchestrator.plan.iterations import may_skip
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedGroup, PlannedProgram
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BlockStep,
    BranchStep,
    CallStep,
    LeafStep,
    LoopLikeStep,
    LoopStep,
    MapStep,
    RegionStep,
    Step,
    StepVisitor,
    adapter_of,
    iter_steps,
)
from orchestrator.planner.verify.buffers import check_buffers, check_routes
from orchestrator.planner.verify.edges import demand
from orchestrator.planner.verify.locks import LockReplay
from orchestrator.specs import PortSpec, TensorSpec, show_spec

__all__ = ["check_programs"]

#: The value that is really read for another name of it, and what its reader's program does to it.
Read = tuple[int, tuple[Adapter, ...]]

#: Programs in whose buffers a value may be, each with which of its runs gave it.
Owners = tuple[tuple[str, int], ...]


def check_programs(plan: Plan) -> None:
    """Checks the programs of a plan against its steps.

    Args:
        plan: The plan; its steps were replayed already.

    Raises:
        PlanError: They differ, or a value is read too late.
    """
    _ProgramChecker(plan).run()


@dataclass(frozen=True)
class _Pass:
    """What the run of a loop did.

    Attributes:
        runs: Program to how often it ran.
        results: For each result the buffers that it is in, each with how often its program has run since, and what gave
            it.
    """

    runs: Mapping[str, int]
    results: tuple[tuple[Owners | None, Any], ...]


def _programs_of(step: LeafStep) -> tuple[str, ...]:
    return (step.program, step.alternate) if isinstance(step, CallStep) else (step.program,)


class _ProgramChecker(StepVisitor):
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.dims = {dim.name: dim for dim in plan.dims}
        self.groups = {group.device: group for group in plan.groups}
        self.by_memory = {group.memory: group for group in plan.groups if not group.host_memory}
        self.programs = {program.name: program for program in plan.programs}
        self.calls = {call.name: call for call in plan.calls}
        self.states = {origin: state.name for state in plan.states for origin in state.origins}
        self.constants = {(value.origin, value.spec) for value in plan.values if value.constant}
        # By value: what it is another name of; the output of a program that gave it; the buffers that it may be in.
        self.names: dict[int, Read] = {}
        self.program_outputs: dict[int, tuple[str, str, tuple[Adapter, ...]]] = {}
        self.owner: dict[int, Owners] = {}
        # How often each program has run, and whether calls in turns run their second one: a value is gone when its
        # program has run again.
        self.turn: dict[str, int] = {}
        self.odd = False
        self.passes: dict[tuple[int, Hashable], _Pass] = {}
        self.used_names: set[str] = set()
        self.locks = LockReplay(plan)

    def _demand(self, holds: bool, what: str) -> None:
        demand(self.plan, holds, what)

    def run(self) -> None:
        self._demand(len(self.programs) == len(self.plan.programs), "two programs have one name")
        self.visit(self.plan.steps)
        self.locks.finish()
        idle = sorted(set(self.programs) - self.used_names)
        self._demand(not idle, f"program {idle[:1]} never runs")
        _check_consumers(self.plan, frozenset(self.names))
        check_buffers(self.plan, self.owner)
        check_routes(self.plan)

    def visit_step(self, step: Step) -> None:
        """Runs a step between taking locks and giving them back; what they guard may be another request's then."""
        self.locks.take(step)
        super().visit_step(step)
        for name in self.locks.give_back(step):
            self.turn[name] = self.turn.get(name, 0) + 1

    def visit_region(self, step: RegionStep) -> None:
        """Runs the body twice: the next chunk comes after every chunk."""
        self.visit(step.body)
        self.visit(step.body)

    def visit_branch(self, step: BranchStep) -> None:
        """Runs a branch; in its body what enters it is where it is outside."""
        for entry in step.slices:
            self._alias(entry.part, entry.whole)
        self._run_loop(step, may_skip=True)

    def visit_map(self, step: MapStep) -> None:
        """Runs the batches of a map."""
        self._run_loop(step, may_skip=False)

    def visit_loop(self, step: LoopStep) -> None:
        """Runs the iterations of a loop."""
        self._run_loop(step, may_skip=may_skip(step, self.plan.values, self.dims))

    def _run_loop(self, step: LoopLikeStep, *, may_skip: bool) -> None:
        """Runs a loop, unless it was run already with what enters it in the same buffers: it would do the same again.

        So nested loops take time for each of them, not for each iteration of each iteration.
        """
        key = id(step), self._entry(step)
        programs = [
            name
            for leaf in iter_steps(step.body, LeafStep)
            for name in _programs_of(leaf)
            if name in self.programs
        ]
        programs += [name for inner in iter_steps(step.body) for name in self.locks.guarded(inner.unlocks)]
        earlier = self.passes.get(key)
        if earlier is None:
            before = {name: self.turn.get(name, 0) for name in programs}
            self._iterate(step, may_skip=may_skip)
            self.passes[key] = _Pass(
                {name: self.turn.get(name, 0) - runs for name, runs in before.items()},
                tuple(self._relative(result) for result in step.results),
            )
            return
        # The same again: programs have run as often as then, and results are in the same buffers, as many runs ago.
        for name, runs in earlier.runs.items():
            if runs:
                self.turn[name] = self.turn.get(name, 0) + runs
        for result, (owners, source) in zip(step.results, earlier.results, strict=True):
            buffers = None if owners is None else tuple((name, self.turn[name] - age) for name, age in owners)
            self._set_state(result, (buffers, source))

    def _entry(self, step: LoopLikeStep) -> Hashable:
        """What the run of a loop hangs on: the buffers that its inputs are in, and how many runs ago."""
        return tuple(self._relative(index) for index in step.inputs)

    def _relative(self, index: int) -> tuple[Owners | None, Hashable]:
        """The buffers that a value is in, each with how often its program has run since, and what gave the value."""
        owners, source = self._state(index)
        if owners is None:
            return None, source
        return tuple((name, self.turn[name] - turn) for name, turn in owners), source

    def _iterate(self, step: LoopLikeStep, *, may_skip: bool) -> None:
        """Runs a loop's body often enough for every program that takes turns to come round again."""
        # Before the first iteration a carry is where it starts, and so is the result of a loop that never runs.
        around = self.odd
        for carry, result in zip(step.carries, step.results, strict=True):
            self._alias(carry.argument, carry.initial)
            self._alias(result, carry.initial)
        starts = [self._state(carry.initial)[0] for carry in step.carries]
        # Two programs in turns repeat after two iterations, and a hazard shows one turn after that.
        before = dict(self.turn)
        for turn in range(4):
            self.odd = bool(turn % 2)
            self.visit(step.body)
            for index in step.yields:
                self._reads(step, index)
            # All carries move at once: none may see what another became.
            fresh = [self._state(carry.yielded) for carry in step.carries]
            for carry, result, state in zip(step.carries, step.results, fresh, strict=True):
                self._set_state(carry.argument, state)
                self._set_state(result, state)
        self.odd = around
        if may_skip:
            for result, owners in zip(step.results, starts, strict=True):
                self._let_through(result, owners or (), before)

    def _let_through(self, final: int, owners: Owners, before: Mapping[str, int]) -> None:
        """What a loop gives that did not run is in the buffer that its carry started in."""
        late = tuple((name, self.turn[name] if turn == before[name] else turn) for name, turn in owners)
        if late:
            self.owner[final] = (*self.owner.get(final, ()), *late)

    def _alias(self, name: int, index: int) -> None:
        self._set_state(name, self._state(index))

    def _state(self, index: int) -> tuple[Any, Any]:
        """The buffer that a value is in, and what gave it."""
        root, _ = self.names.get(index, (index, ()))
        return self.owner.get(root), self.program_outputs.get(root)

    def _set_state(self, index: int, state: tuple[Any, Any]) -> None:
        tables: tuple[dict[int, Any], ...] = (self.owner, self.program_outputs)
        for table, value in zip(tables, state, strict=True):
            if value is None:
                table.pop(index, None)
            else:
                table[index] = value

    def visit_call(self, step: CallStep) -> None:
        group = self.groups.get(step.device)
        for index in step.inputs:
            self._reads(step, index)
        if group is None or not group.runs_programs:
            self._demand(not step.program, f"call {step.name!r} has a program where calls run by themselves")
            return
        call = self.calls[step.name]
        program = self._program(step, call.stage)
        self._demand(
            [item.port for item in program.inputs] == [port for port, _ in call.inputs],
            f"program {program.name!r} takes other ports than call {step.name!r} is fed",
        )
        _check_inputs(self, program, step.inputs)
        _check_outputs(self.plan, program, dict(call.outputs))
        self._starts(step, group, program)
        for (port, _), index in zip(call.outputs, step.outputs, strict=True):
            self.program_outputs[index] = program.name, port, ()

    def _program(self, step: LeafStep, stage: str) -> PlannedProgram:
        match step:
            case CallStep(alternate=str(alternate)) if alternate and self.odd:
                name = alternate
            case _:
                name = step.program
        program = self.programs.get(name)
        self._demand(program is not None, f"step {step.op} {step.label!r} runs {name!r}, no program")
        assert program is not None
        same = (program.stage, program.device) == (stage, step.device)
        self._demand(same, f"program {program.name!r} is not of {stage or 'adapters'!r} on {step.device}")
        self.used_names.add(program.name)
        return program

    def _starts(self, step: LeafStep, group: PlannedGroup, program: PlannedProgram) -> None:
        """A program runs: what it gave before is gone."""
        own = [self.names.get(index, (index, ()))[0] for index in step.inputs]
        has_hazards = group.output_buffers and group.option("hazards", "solve") != "ignore"
        self._demand(
            not has_hazards
            or program.name not in {name for index in own for name, _ in self.owner.get(index, ())},
            f"{step.label!r} reads the buffer that it writes",
        )
        states = ({item.state for item in program.inputs} | {item.state for item in program.outputs}) - {""}
        self.locks.check_held(step, {program.name, *states} if group.output_buffers else states)
        self.turn[program.name] = self.turn.get(program.name, 0) + 1
        # A state stays where it is: a loop that reads it must find what this request wrote there.
        for index in step.outputs:
            name = self.states.get(self.plan.values[index].origin, program.name if has_hazards else "")
            if name:
                self.owner[index] = ((name, self.turn.setdefault(name, 0)),)

    def _reads(self, step: Step, index: int) -> None:
        root, _ = self.names.get(index, (index, ()))
        for name, turn in self.owner.get(root, ()):
            self._demand(
                self.turn[name] == turn,
                f"{step.label!r} reads {self.plan.values[root].origin!r} after its program {name!r} has run "
                f"again, or may have for another request",
            )
        if root in self.program_outputs:
            self._gives(step, root)

    def _gives(self, step: Step, root: int) -> None:
        """A program gives what is read of it, in its form, and to the host alone where it says so."""
        name, port, after = self.program_outputs[root]
        program, spec = self.programs[name], self.plan.values[root].spec
        forms = [item.spec for item in program.outputs if (item.port, item.adapters) == (port, after)]
        sound = isinstance(spec, TensorSpec) and any(item.same_form(spec) for item in forms)
        self._demand(sound, f"program {name!r} does not give what {step.label!r} reads")
        adapter = adapter_of(step)
        is_download = adapter is not None and adapter.kind == "download"
        self._demand(
            is_download or not program.to_host,
            f"{step.label!r} reads on the device what {name!r} gives the host",
        )

    def visit_adapter(self, step: AdaptStep) -> None:
        # Between two values on a device with programs an adapter is part of one; elsewhere, and where it copies a value
        # as it is, it runs by itself.
        (source,), (target,) = step.inputs, step.outputs
        place = step.adapter.place
        group = self.by_memory.get(self.plan.values[source].memory)
        inside = group is not None and group.runs_programs and self.plan.values[target].memory != HOST
        moves = step.adapter.kind in ("upload", "copy", "clone")
        self._demand(
            bool(place) == (inside and not moves),
            f"the adapter '{step.adapter}' of {step.origin!r} has {'a' if place else 'no'} place in a program",
        )
        # Compiled into a consumer it runs nothing now: its target is another name of what its readers' programs read.
        # Compiled into a producer it gave its target along with the source, in the same buffer's run.
        if place == "consumer":
            root, before = self.names.get(source, (source, ()))
            self.names[target] = root, (*before, step.adapter)
        elif place == "producer":
            self._demand(
                source in self.program_outputs,
                f"'{step.adapter}' is folded into a producer that there is not",
            )
            program, port, after = self.program_outputs[source]
            self.program_outputs[target] = program, port, (*after, step.adapter)
            if source in self.owner:
                self._demand(
                    self.owner[source][0][1] == self.turn[program],
                    f"'{step.adapter}' comes after its producer",
                )
                self.owner[target] = self.owner[source]
        else:
            self._reads(step, source)
            if place == "program":
                self._weightless(step, source)

    def _weightless(self, step: AdaptStep, source: int) -> None:
        program, group = self._program(step, ""), self.groups.get(step.device)
        assert group is not None
        root, before = self.names.get(source, (source, ()))
        # It is a program of its own, without a stage: one input with all adapters up to here, one output as it is.
        adapters = (*before, step.adapter)
        sound = [item.port for item in program.inputs] == ["value"] and program.inputs[0].adapters == adapters
        self._demand(sound, f"program {program.name!r} does not do what '{step.adapter}' says")
        spec = self.plan.values[root].spec
        input_spec = program.inputs[0].spec
        fits = isinstance(spec, TensorSpec) and input_spec is not None and input_spec.same_form(spec)
        self._demand(fits, f"program {program.name!r} takes another form than {show_spec(spec)}")
        output_spec = self.plan.values[step.outputs[0]].spec
        plain = len(program.outputs) == 1 and not program.outputs[0].adapters
        self._demand(
            plain, f"program {program.name!r} does not give the one value that '{step.adapter}' makes"
        )
        _check_outputs(self.plan, program, {"value": output_spec})
        self._starts(step, group, program)


def _check_inputs(checker: _ProgramChecker, program: PlannedProgram, indices: Iterable[int]) -> None:
    """A program takes what its call reads, in its form; equal constants go by one name."""
    plan = checker.plan
    for item, index in zip(program.inputs, indices, strict=True):
        root, before = checker.names.get(index, (index, ()))
        spec = plan.values[root].spec
        if not isinstance(spec, TensorSpec):
            # Which value a constant has is told by the pipeline, not the plan.
            same = item.spec is None and (item.constant, spec) in checker.constants
            demand(plan, same, f"program {program.name!r} has another constant at {item.port!r}")
            continue
        same = item.spec is not None and item.spec.same_form(spec) and item.adapters == before
        demand(
            plan, same, f"program {program.name!r} takes another form at {item.port!r} than {show_spec(spec)}"
        )


def _check_outputs(plan: Plan, program: PlannedProgram, ports: Mapping[str, PortSpec]) -> None:
    """A program gives ports that there are, each form of one once, and what its adapters make of it."""
    forms = [(item.port, item.adapters) for item in program.outputs]
    sound = bool(forms) and len(set(forms)) == len(forms) and {port for port, _ in forms} <= ports.keys()
    demand(
        plan, sound, f"program {program.name!r} gives {[port for port, _ in forms]}, not ports of its stage"
    )
    for item in program.outputs:
        spec = ports[item.port]
        for adapter in item.adapters:
            spec = adapter.result(spec) if isinstance(spec, TensorSpec) else spec
        same = isinstance(spec, TensorSpec) and item.spec.same_form(spec)
        demand(
            plan, same, f"program {program.name!r} gives {item.port!r} in another form than {show_spec(spec)}"
        )


def _check_consumers(plan: Plan, names: frozenset[int]) -> None:
    """What was folded into a consumer is read by programs alone."""
    groups = {group.device: group for group in plan.groups}
    for step in iter_steps(plan.steps):
        able = names.isdisjoint(step.inputs)
        demand(
            plan,
            able or _does_adapters(step, groups),
            f"{step.label!r} reads a value whose adapters no program does",
        )


def _does_adapters(step: Step, groups: Mapping[str, PlannedGroup]) -> bool:
    """Tells whether a step does what was folded into a value's consumer: by its program, or in its body."""
    match step:
        case CallStep():
            group = groups.get(step.device)
            return group is not None and group.runs_programs
        case AdaptStep(adapter=adapter):
            return adapter.place in ("consumer", "program")
        case BlockStep(body=body):
            return bool(body)
    return False

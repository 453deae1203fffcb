"""Straight-line Python for a list of steps.

Every value is a local variable (``v7``), every stage and adapter a global of the generated function, so a step
costs what the same call costs by hand. ``del`` after the last reader frees a value by reference count. Each line
belongs to a step (:attr:`Code.lines`): when a stage raises, the line of the traceback tells which one, and nothing
on the way there pays for it.

Two things travel with a run where something depends on sizes: ``R``, its record, with the real size of each name,
to which host stages add the sizes that they decide, and ``B``, the bucket that each name runs in.
"""

from __future__ import annotations

import functools
import itertools
import linecache
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType, MappingProxyType
from typing import Any

from orchestrator.adapter import MOVES
from orchestrator.plan.programs import FusedAdapters
from orchestrator.plan.records import PlannedCall, PlannedValue
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    BranchStep,
    CallStep,
    LeafStep,
    LoopStep,
    MapStep,
    RegionStep,
    Step,
    StepVisitor,
    iter_steps,
)
from orchestrator.plan.updated import updates_of
from orchestrator.program import outputs_of
from orchestrator.runner.codegen.checks import make_unwritten, versions
from orchestrator.runner.codegen.loops import LoopWriter
from orchestrator.runner.codegen.request_entry import file_name
from orchestrator.runner.codegen.writer import CodeWriter
from orchestrator.runner.compiled.region import LoadedRegion
from orchestrator.runner.load.load import Executable
from orchestrator.runner.sharing import Sharing
from orchestrator.specs import TensorSpec, dim_names, plain_dims
from orchestrator.stage import Stage

__all__ = ["Code", "CodeGenerator"]

_serial = itertools.count()


@dataclass
class Code:
    """A generated function.

    Attributes:
        function: The function: ``(R, B, *values)``, or ``(*values)`` where nothing depends on sizes.
        takes_sizes: Whether it takes ``R`` and ``B``.
        lines: Line number to step.
        arguments: Values that are its parameters; its caller owns them.
        values: Values of the plan that it was written from.
        source: Its text.
    """

    function: Callable[..., Any]
    takes_sizes: bool
    lines: dict[int, Step]
    arguments: frozenset[int]
    values: tuple[PlannedValue, ...] = field(repr=False)
    source: str = field(repr=False)

    @property
    def code(self) -> CodeType:
        """The code object, as found in frames of a traceback."""
        return self.function.__code__


class CodeGenerator:
    """Generates functions for parts of one plan.

    Args:
        executable: The loaded plan.
        exact: Requests are at bucket sizes: padding and cutting of the pipeline's own dims is left out.
        caller_owned: Values that are not freed: several runs share them.
        sharing: Which values share memory.
        driver: Makes the driver of a region or map.
        check: Makes the function that checks the results of a host or opaque stage.
        eager: Makes the function of a compiled region that runs its stages one by one.
        observer: Called with a step, its start and its end (seconds), or None.
        progress_hook: Called after each iteration of a loop, or None.
    """

    def __init__(
        self,
        executable: Executable,
        *,
        exact: bool,
        caller_owned: frozenset[int],
        sharing: Sharing,
        driver: Callable[[RegionStep | MapStep], Callable[..., Any]],
        check: Callable[[PlannedCall], Callable[..., Any]],
        eager: Callable[[LoadedRegion], Callable[..., Any]],
        observer: Callable[[Step, float, float], None] | None = None,
        progress_hook: Callable[..., None] | None = None,
    ) -> None:
        # What all functions of a plan look up, once each; what only one of them knows is its writer's.
        self.executable = executable
        self.plan = executable.plan
        self.exact = exact
        self.sharing = sharing
        self.driver = driver
        self.check = check
        self.eager = eager
        self.observer = observer
        self.progress_hook = progress_hook
        self.data_dependent = {dim.name for dim in self.plan.dims if dim.decided_by}
        self.fused_adapters = FusedAdapters.of_plan(self.plan)
        self.programs = {program.name: program for program in self.plan.programs}
        self.calls = {call.name: call for call in self.plan.calls}
        self.never_freed = caller_owned | self._absent_values()

    def _absent_values(self) -> frozenset[int]:
        """Values that no program gives, since only adapters fused with it would read them."""
        devices = {group.device for group in self.plan.groups if group.runs_programs}
        names = [name for name in self.fused_adapters.ports if self.calls[name].device in devices]
        values = {index for name in names for index in self.fused_adapters.ports[name].values()}
        return frozenset(
            values - {index for name in names for index in self.fused_adapters.outputs_of(name).values()}
        )

    def function(
        self,
        name: str,
        arguments: Sequence[int],
        steps: Iterable[Step],
        result: str,
        early_outputs: Mapping[int, tuple[tuple[str, int], ...]] = MappingProxyType({}),
    ) -> Code:
        """Generates a function.

        Args:
            name: Its name, seen in tracebacks.
            arguments: Values that are its parameters.
            steps: What it does.
            result: The expression it returns.
            early_outputs: Outputs that whoever watches loops is told before a step, by the step's position.
        """
        # The lines are written first: only then is it known whether the function takes sizes, and which globals it has.
        writer = _StepWriter(self)
        writer.write_steps(tuple(steps), early_outputs)
        takes_sizes = writer.takes_sizes
        head = ", ".join([*(["R", "B"] if takes_sizes else []), *(f"v{index}" for index in arguments)])
        lines = [f"def {name}({head}):", *writer.lines, *writer.final_waits(), f"    return {result}"]
        source = "\n".join(lines) + "\n"
        filename = file_name(self.plan.pipeline, next(_serial))
        scope = writer.scope
        exec(compile(source, filename, "exec"), scope)
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        # Out of its own globals: a function that holds itself waits for the cyclic collector, and its stages with it.
        function = scope.pop(name)
        weakref.finalize(function, linecache.cache.pop, filename, None).atexit = False
        steps_by_line = {number + 2: step for number, step in enumerate(writer.steps)}
        return Code(function, takes_sizes, steps_by_line, frozenset(arguments), self.plan.values, source)


class _StepWriter(CodeWriter, StepVisitor):
    """Lines of the steps of one function."""

    def __init__(self, generator: CodeGenerator) -> None:
        super().__init__(
            generator.executable, generator.sharing, generator.never_freed, generator.progress_hook
        )
        self.generator = generator

    def write_steps(
        self,
        steps: Sequence[Step],
        early_outputs: Mapping[int, tuple[tuple[str, int], ...]] = MappingProxyType({}),
    ) -> None:
        """Writes steps in order; the run of a compiled region as one."""
        position = 0
        while position < len(steps):
            step = steps[position]
            self.hand_out(step, early_outputs.get(position, ()))
            region = self.executable.regions.get(step.label)
            if region is not None and region.run.begins(steps[position:]):
                self._region(region, steps[position : position + len(region.run.steps)])
                position += len(region.run.steps)
            else:
                self.step(step)
                position += 1

    def _region(self, region: LoadedRegion, steps: Sequence[Step]) -> None:
        """Writes a compiled region: its program for the sizes at hand, or its stages where there is none.

        A program takes dense tensors. What it updates in place cannot be made dense on the way: then its stages run.
        """
        run = region.run
        self.sync(run.inputs)
        first = replace(steps[0], frees=run.frees)
        self._locks("lock", [name for step in steps for name in step.locks])
        programs, eager = (
            self.name("programs", region.programs),
            self.name("eager", self.generator.eager(region)),
        )
        observed = self.generator.observer is not None
        if observed:
            self.scope.update(observer=self.generator.observer, clock=time.perf_counter)
            at = self.name("step", first)
            self.line("started = clock()")
        shapes = "".join(f"v{index}.shape, " for index in region.sized_inputs)
        dense = " and ".join(f"v{index}.is_contiguous()" for index in dict(run.updates).values())
        targets = "".join(f"v{index}, " for index in run.outputs).rstrip()
        into = f"{targets} = " if targets else ""
        values = ", ".join(f"v{index}" for index in run.inputs)
        contiguous = ", ".join(f"v{index}.contiguous()" for index in run.inputs)
        self.line(f"program = {programs}.get(({shapes})){f' if {dense} else None' if dense else ''}")
        self.line("if program is None:")
        self.line(f"    {into}{eager}({values})")
        self.line("else:")
        self.line(f"    {into}program([{contiguous}])")
        for target, source in run.updates:
            self.line(f"v{target} = v{source}")
        if observed:
            self.line(f"observer({at}, started, clock())")
        self.free(first)
        self._locks("unlock", [name for step in steps for name in step.unlocks])
        self.mark(steps[0])

    def step(self, step: Step) -> None:
        """Writes one step and the frees after it, between the locks that it takes and those that it gives back."""
        self._locks("lock", step.locks)
        match step:
            case LoopStep() | BranchStep():
                self.visit_step(step)  # its body is observed step by step; it frees what dies with it itself
            case _:
                if self.generator.observer is not None:
                    self._observe(step)
                else:
                    self.visit_step(step)
                self.free(step)
        self._locks("unlock", step.unlocks)
        self.mark(step)

    def _locks(self, method: str, names: Sequence[str]) -> None:
        """Writes the calls that take locks or give them back; whatever ends the request gives back the others."""
        for name in names:
            self.scope[method] = getattr(self.executable.locks, method)
            self.line(f"{method}({name!a})")

    def hand_out(self, step: Step, outputs: Sequence[tuple[str, int]]) -> None:
        """Tells who watches of outputs that are there before a step."""
        if outputs:
            self.sync(index for _, index in outputs)
            self.tell_early(next(iter_steps((step,), LoopStep)).name, outputs)
            self.mark(step)

    def _observe(self, step: Step) -> None:
        at = self.name("step", step)
        self.line("started = clock()")
        self.visit_step(step)
        self.line(f"observer({at}, started, clock())")
        self.scope.update(observer=self.generator.observer, clock=time.perf_counter)

    def visit_loop(self, step: LoopStep) -> None:
        """Writes a loop, around the lines of its body."""
        LoopWriter(self, step).write()

    def visit_branch(self, step: BranchStep) -> None:
        """Writes a branch: a loop that runs once or not at all."""
        LoopWriter(self, step).write()

    def visit_region(self, step: RegionStep) -> None:
        """Writes a region."""
        self._driver_call(step)

    def visit_map(self, step: MapStep) -> None:
        """Writes a map."""
        self._driver_call(step)

    def visit_call(self, step: CallStep) -> None:
        """Writes a call."""
        call = self.generator.calls[step.name]
        stage = self.executable.stages[call.stage]
        self.sync(step.inputs)
        if step.program:
            self._program_call(step)
            return
        function = self.name("stage", self.executable.functions[call.stage])
        targets = [f"v{index}" for index in step.outputs]
        if call.is_declared:
            self._checked_call(step, call, function)
            return
        # Planning saw how this stage returns, so its results are taken apart without a look at them.
        expression = f"{function}({', '.join(_arguments(stage, call, step))})"
        if call.returns == "single":
            self.line(f"{targets[0]} = {expression}")
        elif call.returns == "tuple":
            self.line(f"{', '.join(targets)}{',' if len(targets) == 1 else ''} = {expression}")
        elif call.returns != "dict":
            pick = functools.partial(outputs_of, call.returns, [port for port, _ in call.outputs])
            self.line(
                f"{''.join(f'{target}, ' for target in targets)}= {self.name('pick', pick)}({expression})"
            )
        else:
            self.line(f"result = {expression}")
            for target, (port, _) in zip(targets, call.outputs, strict=True):
                self.line(f"{target} = result[{port!a}]")
            self.line("del result")

    def _checked_call(self, step: CallStep, call: PlannedCall, function: str) -> None:
        """A stage that nobody looked into: its result is checked.

        It may write where versions do not tell, through NumPy say. So it gets a copy of what somebody else sees.
        """
        self.takes_sizes = True
        stage = self.executable.stages[call.stage]
        # Copies have names of their own: later readers get the value itself. What it updates in place is its to write
        # into.
        sharing, updated = self.generator.sharing, set(updates_of(call, step).values())
        shared_values = [
            index
            for index in dict.fromkeys(step.inputs)
            if sharing.is_shared(index, step) and index not in updated
        ]
        names = {index: f"w{index}" if index in shared_values else f"v{index}" for index in step.inputs}
        for index in shared_values:
            self.line(f"w{index} = own_copy(v{index})")
        # Versions are read before the call and after the check: what was written into is told once the result is right.
        expression = f"{function}({', '.join(_arguments(stage, call, step, names))})"
        values = "".join(f"{names[index]}, " for index in step.inputs)
        targets = "".join(f"v{index}, " for index in step.outputs).rstrip()
        check = self.name("check", self.generator.check(call))
        if call.device == HOST:
            self.line(f"versions = {self.name('versions', versions)}({values})")
        self.line(f"{targets} = {check}({expression}, R.sizes, B)")
        if call.device == HOST:
            self.line(f"{self.name('unwritten', make_unwritten(call))}(versions, {values})")
        if shared_values:
            self.line(f"del {', '.join(f'w{index}' for index in shared_values)}")

    def _program_call(self, step: LeafStep) -> None:
        """Starts a compiled program: tensors in by position, all of its outputs as a tuple."""
        program = self.generator.programs[step.program]
        function = self._program_name(step)
        pairs = zip(program.inputs, step.inputs, strict=True)
        arguments = ", ".join(
            f"v{index}" for item, index in pairs if item.spec is not None and not item.state
        )
        # Calls of one stage share its programs, so a program may give what nobody reads after this call.
        indices: list[int | None] = list(step.outputs)
        match step:
            case CallStep(name=name):
                ports = {port: at for at, (port, _) in enumerate(self.generator.calls[name].outputs)}
                outputs = self.generator.fused_adapters.outputs_of(name)
                indices = [outputs.get((ports[item.port], item.adapters)) for item in program.outputs]
        # A state is handed over by nobody: what stands for it in the code is nothing.
        states = [bool(item.state) for item in program.outputs]
        results = [index for index, is_state in zip(indices, states, strict=True) if not is_state]
        targets = "".join("_, " if index is None else f"v{index}, " for index in results).rstrip()
        self.line(f"{targets} = {function}({arguments})" if results else f"{function}({arguments})")
        for index, is_state in zip(indices, states, strict=True):
            if is_state and index is not None:
                self.line(f"v{index} = None")
        if None in results:
            self.line("del _")

    def _program_name(self, step: LeafStep) -> str:
        """The program of a step: one that has an alternate takes turns with it."""
        first = self.executable.functions[step.program]
        match step:
            case CallStep(alternate=str(alternate)) if alternate:
                pair = self.name("programs", (first, self.executable.functions[alternate]))
                return f"{pair}[{self.iteration} & 1]"
        return self.name("program", first)

    def visit_adapter(self, step: AdaptStep) -> None:
        """Writes an adapter."""
        adapter = step.adapter
        source, target = step.inputs[0], step.outputs[0]
        if step.program:
            self._program_call(step)
            return
        # An adapter fused with a program before it was done by that; with one after it, that reads the value as it is.
        if adapter.place == "producer":
            return
        if self._is_idle(step) or adapter.place == "consumer":
            self.alias(source, target)
            return
        if adapter.kind == "upload" or self.values[source].memory == HOST:
            self.sync(step.inputs)
        # A move takes a value as it is; everything else is told its sizes, by name.
        function = self.name(adapter.kind, self.executable.adapt(step))
        if adapter.kind in MOVES:
            self.line(f"v{target} = {function}(v{source})")
            self._defer(step)
            return
        self.takes_sizes = True
        self.line(f"v{target} = {function}(v{source}, {'R.sizes' if self.values[target].unpadded else 'B'})")

    def _is_idle(self, step: AdaptStep) -> bool:
        """Tells whether an adapter has nothing to do because every size is a bucket."""
        source, target = (self.values[index].spec for index in (step.inputs[0], step.outputs[0]))
        if (
            not self.generator.exact
            or not isinstance(source, TensorSpec)
            or not isinstance(target, TensorSpec)
        ):
            return False
        names = {name for dim in target.dims for name in dim_names(dim)}
        is_same = plain_dims(source.dims) == plain_dims(target.dims)
        return step.adapter.kind in ("pad", "cut") and is_same and not names & self.generator.data_dependent

    def _driver_call(self, step: RegionStep | MapStep) -> None:
        """A region or a map: a driver runs the function of its body."""
        self.takes_sizes = True
        self.sync(step.inputs)
        driver = self.name("region", self.generator.driver(step))
        values = "".join(f", v{index}" for index in step.inputs)
        targets = "".join(f"v{index}, " for index in step.outputs).rstrip()
        self.line(f"{targets + ' = ' if targets else ''}{driver}(R, B{values})")

    def _defer(self, step: AdaptStep) -> None:
        """Notes a download that is not there before its device is synchronised."""
        if step.adapter.kind in ("download", "gather"):
            backend = self.executable.backend_of(self.values[step.inputs[0]].memory)
            if backend.capabilities.deferred:
                self.pending[step.outputs[0]] = backend.device


def _arguments(
    stage: Stage, call: PlannedCall, step: CallStep, names: Mapping[int, str] = MappingProxyType({})
) -> list[str]:
    """Argument expressions: by position while no port is left out, then by keyword; ``names`` of other variables."""
    indices = dict(zip((port for port, _ in call.inputs), step.inputs, strict=True))
    # After a port that is left out positions do not fit any more.
    arguments: list[str] = []
    gap = False
    for port in stage.inputs:
        if port.name not in indices:
            gap = True
        else:
            value = names.get(indices[port.name], f"v{indices[port.name]}")
            # A name is a key, never an identifier: Python would normalise that, and refuse ``class`` or ``__debug__``.
            arguments.append(f"**{{{port.name!a}: {value}}}" if gap or port.keyword else value)
    return arguments

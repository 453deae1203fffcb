"""Programs of a plan in the making: which calls can run the same compiled code, and what that code takes and gives.

Calls of one stage run the same program if they read values of one form through the same fused adapters. It gives what
any of them needs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.graph import Graph, NodeKey
from orchestrator.plan.programs import FusedAdapters, Port, place_of, port_order
from orchestrator.plan.records import PlannedProgram
from orchestrator.plan.steps import HOST, AdaptStep, CallStep, LeafStep, Step, iter_steps
from orchestrator.planner.context import PlanContext
from orchestrator.planner.infer.representation import is_gathered
from orchestrator.program import ProgramInput, ProgramOutput
from orchestrator.specs import TensorSpec

__all__ = ["ProgramTable", "equal_constants", "is_program"]

#: A stage (or a weightless program's value) with what it takes.
Signature = tuple[str, tuple[ProgramInput, ...]]

#: Shapes of all inputs of a program.
Shapes = tuple[tuple[int, ...], ...]


_PLAIN = (bool, int, float, str, type(None))


def is_program(context: PlanContext, step: Step) -> bool:
    """Tells whether a step starts a program."""
    match step:
        case CallStep():
            return context.is_compiled(step.device)
    return place_of(step) == "program"


def equal_constants(graph: Graph, one: str, other: str) -> bool:
    """Tells whether two constants are the same to a program: one object, or plain values that read alike."""
    first, second = (graph.constants[name] for name in (one, other))
    plain = isinstance(first, _PLAIN)
    return first is second or (plain and type(first) is type(second) and repr(first) == repr(second))


def _first_equal(graph: Graph) -> dict[str, str]:
    """Constants to the first one that is equal to a program, as :func:`equal_constants` says."""
    firsts: dict[Hashable, str] = {}
    return {
        name: firsts.setdefault(
            (type(value), repr(value)) if isinstance(value, _PLAIN) else id(value),
            name,
        )
        for name, value in graph.constants.items()
    }


class ProgramTable:
    """The programs of a plan in the making with steps.

    Args:
        context: The plan so far.
    """

    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.fused_adapters = FusedAdapters.of(context.steps, (index for _, index in context.outputs))
        self._constants = _first_equal(context.graph)
        #: Origin of a value to the state that it is; such a value is handed over by nobody.
        self.state_of = {origin: state.name for state in context.states for origin in state.origins}
        self.numbers: dict[int, int] = {}
        self.users: dict[Signature, list[LeafStep]] = {}
        for step in iter_steps(context.steps, LeafStep):
            if is_program(context, step):
                signature = self._signature(step)
                self.users.setdefault(signature, []).append(step)
        # A number stands for a signature, which takes long to hash.
        for number, steps in enumerate(self.users.values()):
            self.numbers |= dict.fromkeys((step.outputs[0] for step in steps), number)
        self._names = self._program_names()

    def key(self, step: Step) -> int:
        """Returns what tells a step's program from others, routes left out."""
        return self.numbers[step.outputs[0]]

    def name(self, step: Step, route: int) -> str:
        """Returns the name of a step's program."""
        base = self._names[self.key(step)]
        return f"{base}[route {route}]" if route else base

    def plan_programs(
        self, routes: Mapping[str, int], doubles: Mapping[str, int]
    ) -> tuple[PlannedProgram, ...]:
        """Returns the programs, given the route of each call that does not take the first, and second ones."""
        # A signature is one program for each route that its calls take; a call that takes turns is a user of both of
        # its programs. What a program gives is what any of its users needs, so users are gathered first.
        programs: list[PlannedProgram] = []
        for signature, steps in self.users.items():
            by_route: dict[int, list[LeafStep]] = {}
            for step in steps:
                call = step.label if _is_call(step) else ""
                by_route.setdefault(routes.get(call, 0), []).append(step)
                if call in doubles:
                    by_route.setdefault(doubles[call], []).append(step)
            for route, users in by_route.items():
                outputs = self._outputs(users)
                programs.append(
                    PlannedProgram(
                        name=self.name(users[0], route),
                        device=users[0].device,
                        stage=signature[0] if _is_call(users[0]) else "",
                        inputs=signature[1],
                        outputs=outputs,
                        to_host=len(outputs) == 1 and self._is_read_on_host(users),
                    )
                )
        return self._with_routes(tuple(programs))

    def _with_routes(self, programs: tuple[PlannedProgram, ...]) -> tuple[PlannedProgram, ...]:
        """Gives routes, so that no two programs of an application take the same shapes: a router sees only these."""
        application_of = {stage: item.name for item in self.context.applications for stage in item.stages}
        shapes_of: dict[tuple[str, str], set[Shapes]] = {}
        result = []
        for program in programs:
            name = application_of.get(program.stage, program.stage or program.name)
            other_shapes = shapes_of.setdefault((program.device, name), set())
            route = 0
            while other_shapes & (shapes := self._shapes(program, route)):
                route += 1
            other_shapes |= shapes
            result.append(replace(program, route=route))
        return tuple(result)

    def _shapes(self, program: PlannedProgram, route: int) -> set[Shapes]:
        """The shapes of all inputs, the routing input's last, at every combination of buckets."""
        extra = ((route,),) if route else ()
        specs = [item.spec for item in program.inputs if item.spec is not None and not item.state]
        every = program.combinations(self.context.buckets)
        return {(*(spec.shape(sizes) for spec in specs), *extra) for sizes in every}

    def _program_names(self) -> list[str]:
        """Names programs after their stage, with a number where it has several; weightless ones after their edge.

        No stage can be called like a numbered or weightless program: ``[`` and ``.`` are no part of a name.
        """
        names: list[str] = []
        names_in_use: set[str] = set()
        for signature, (first, *_) in self.users.items():
            base = signature[0] if _is_call(first) else f"adapt {first.label}"
            name, number = base, 1
            while name in names_in_use:
                number += 1
                name = f"{base}[{number}]"
            names_in_use.add(name)
            names.append(name)
        return names

    def _signature(self, step: LeafStep) -> Signature:
        match step:
            case AdaptStep(inputs=(value,), origin=origin, adapter=adapter):
                root, before = self.fused_adapters.read(value)
                spec = self.context.values[root].spec
                assert isinstance(spec, TensorSpec)
                return origin, (ProgramInput("value", spec, (*before, adapter)),)
            case CallStep():
                return self._call_signature(step)
        raise TypeError(f"{step!r} runs no program")

    def _call_signature(self, step: CallStep) -> Signature:
        call = self.context.calls[step.name]
        # A program reads the root of each value and does the fused adapters itself. A Python value is compiled in:
        # calls share a program only if their constants are equal, so it goes by the first of the equal ones.
        dtypes = self._port_dtypes(step.name)
        inputs = []
        for (port, _), value in zip(call.inputs, step.inputs, strict=True):
            root, before = self.fused_adapters.read(value)
            spec = self.context.values[root].spec
            if isinstance(spec, TensorSpec):
                plain = TensorSpec(spec.dims, spec.dtype)
                state = self.state_of.get(self.context.values[root].origin, "")
                inputs.append(ProgramInput(port, plain, before, dtypes[port], state=state))
            else:
                inputs.append(
                    ProgramInput(port, None, constant=self._constant(self.context.values[root].origin))
                )
        return call.stage, tuple(inputs)

    def _constant(self, name: str) -> str:
        """The first constant that is equal: calls with equal constants run the same program."""
        return self._constants[name]

    def _port_dtypes(self, call: str) -> dict[str, Any]:
        """The dtypes that a call's stage was written for, by port."""
        return {port: self.context.port_dtypes[call].get(port) for port, _ in self.context.calls[call].inputs}

    def _outputs(self, steps: list[LeafStep]) -> tuple[ProgramOutput, ...]:
        calls = _calls(steps)
        if not calls:
            spec = self.context.values[steps[0].outputs[0]].spec
            assert isinstance(spec, TensorSpec)
            return (ProgramOutput("value", spec),)
        names = [port for port, _ in self.context.calls[calls[0].name].outputs]
        # Each output once for each chain of adapters that a consumer wants of it, over all calls that share the
        # program.
        values: dict[Port, int] = {}
        for step in calls:
            for port, index in self.fused_adapters.outputs_of(step.name).items():
                values.setdefault(port, index)
        outputs = []
        for at, adapters in sorted(values, key=port_order):
            value = self.context.values[values[at, adapters]]
            assert isinstance(value.spec, TensorSpec)
            spec, state = replace(value.spec, pad=None), self.state_of.get(value.origin, "")
            outputs.append(ProgramOutput(names[at], spec, adapters, state))
        return tuple(outputs)

    def _is_read_on_host(self, steps: list[LeafStep]) -> bool:
        """Tells whether all that a program gives, in each of its calls, goes to the host and nowhere else."""
        readers = [self.context.graph.out_of(NodeKey("call", step.label)) for step in steps]
        edges = [edge for reading in readers for edge in reading]
        locations = [self.context.locations[edge].target.memory == HOST for edge in edges]
        parts = any(is_gathered(self.context, edge) for edge in edges)
        return all(readers) and all(locations) and not parts


def _is_call(step: LeafStep) -> bool:
    return bool(_calls([step]))


def _calls(steps: list[LeafStep]) -> list[CallStep]:
    """The calls of a program; none for one that only adapts."""
    return list(iter_steps(steps, CallStep))

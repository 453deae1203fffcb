"""Verify: proves a finished plan again, whoever made it.

The checker shares no decision with the passes that made the plan: of their code it calls the one that compares needs
with budgets, and what reading a plan takes (:mod:`orchestrator.plan`). It replays the steps against the plan's own
tables: every port fed exactly once with exactly the shape it was proven with, residency legal, every adapter
doing what it says, nothing read before it is made or after it was freed, and nothing forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.plan.iterations import item_dims
from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedCall, PlannedValue
from orchestrator.plan.steps import (
    HOST,
    AdaptStep,
    CallStep,
    LoopLikeStep,
    MapStep,
    RegionStep,
    Step,
    adapter_of,
)
from orchestrator.planner.memory import check_budget
from orchestrator.planner.verify.compilation import check_compiled
from orchestrator.planner.verify.edges import check_edges, demand, same_spec, wrong
from orchestrator.planner.verify.loops import check_left, check_loop
from orchestrator.planner.verify.programs import check_programs
from orchestrator.planner.verify.states import check_states
from orchestrator.planner.verify.tables import check_tables
from orchestrator.planner.verify.updates import check_updates
from orchestrator.specs import Derived, PortSpec, TensorSpec, combinations, plain_dims, show_spec

__all__ = ["verify"]


def verify(plan: Plan) -> Plan:
    """Checks a plan and returns it.

    Raises:
        PlanError: A rule is broken; the message says which, and by what.
    """
    try:
        _Verifier(plan).run()
        check_budget(plan)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"it cannot be followed ({type(error).__name__}: {error})"
        raise wrong(plan, what) from error
    return plan


class _Verifier:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.dims = {dim.name: dim for dim in plan.dims}
        self.calls = {call.name: call for call in plan.calls}
        self.memory = {HOST: HOST, **{group.device: group.memory for group in plan.groups}}
        self.call_steps: dict[str, CallStep] = {}
        self.within: tuple[str, ...] = ()

    def run(self) -> None:
        # The tables first: the rest looks names and indices up in them.
        check_tables(self.plan)
        inputs = set(range(len(self.plan.inputs)))
        constants = {index for index, value in enumerate(self.plan.values) if value.constant}
        alive = self._replay(self.plan.steps, inputs | self._replay_staging(constants))
        # What may be alive at the end: outputs, constants, and inputs that nothing read. Anything else is a leak.
        outputs = {index for _, index in self.plan.outputs}
        for name, index in self.plan.outputs:
            value = self._value(index)
            self._demand(index in alive, f"output {name!r} hands out a value that is not there at the end")
            self._demand(
                value.memory == HOST and value.unpadded, f"output {name!r} is not on the host at its own size"
            )
        self._demand(constants <= alive, f"{self._names(constants - alive)} is a constant, but is freed")
        read = {index for step in self.plan.steps for index in step.inputs}
        leaks = alive - outputs - constants - (inputs - read)
        self._demand(not leaks, f"{self._names(leaks)} is never freed")
        missing = [name for name in self.calls if name not in self.call_steps]
        self._demand(not missing, f"call {missing[:1]} never runs")
        # The replay has shown that the steps are sound; now what the plan says of them.
        check_edges(self.plan, self.call_steps)
        check_programs(self.plan)
        check_updates(self.plan)
        check_states(self.plan)
        check_compiled(self.plan)

    def _replay_staging(self, constants: set[int]) -> set[int]:
        """Replays what is done at load, which is adapters of constants; returns all constants."""
        for step in self.plan.staging:
            own = constants.issuperset(step.inputs + step.outputs)
            self._demand(
                adapter_of(step) is not None and not step.frees and own,
                f"{_step(step)} at load does not bring a constant to its place",
            )
        outputs = {index for step in self.plan.staging for index in step.outputs}
        return self._replay(self.plan.staging, constants - outputs)

    def _demand(self, holds: bool, what: str) -> None:
        demand(self.plan, holds, what)

    def _names(self, indices: Iterable[int]) -> str:
        return ", ".join(f"value {index} ({self._value(index).origin!r})" for index in sorted(indices)[:3])

    def _value(self, index: int) -> PlannedValue:
        self._demand(0 <= index < len(self.plan.values), f"there is no value {index}")
        return self.plan.values[index]

    def _replay(self, steps: tuple[Step, ...], alive: set[int]) -> set[int]:
        """Runs steps on the set of live values; returns what is alive after them."""
        # The one order in which a step acts: it reads, runs, gives, and frees. So it may free what it reads and gives,
        # and may not give what it reads.
        alive = set(alive)
        for step in steps:
            for index in step.inputs:
                self._value(index)
                self._demand(
                    index in alive,
                    f"{_step(step)} reads {self._names([index])}, which is not made yet or freed",
                )
            self._step(step, alive)
            for index in step.outputs:
                self._value(index)
                self._demand(index not in alive, f"{_step(step)} makes {self._names([index])} a second time")
                alive.add(index)
            for index in step.frees:
                self._demand(index in alive, f"{_step(step)} frees {index}, which is not there")
                alive.discard(index)
        return alive

    def _step(self, step: Step, alive: set[int]) -> None:
        match step:
            case CallStep():
                self._call(step)
            case AdaptStep():
                self._adapt(step)
            case LoopLikeStep():
                self._loop(step, alive)
            case RegionStep():
                self._region(step, alive)
            case _:
                self._demand(False, f"there is no step {type(step).__name__!r}")

    def _loop(self, step: LoopLikeStep, alive: set[int]) -> None:
        check_loop(self.plan, step)
        self._demand(alive.isdisjoint(step.arguments), f"loop {step.name!r} makes a value a second time")
        around = self.within
        match step:
            case MapStep():  # items have dims of their own there
                self.within = (*around, *item_dims(self.plan, step))
        check_left(self.plan, step, alive, self._replay(step.body, alive | set(step.arguments)))
        self.within = around

    def _region(self, step: RegionStep, alive: set[int]) -> None:
        data_dependent = all(name in self.dims and self.dims[name].decided_by for name in step.dims)
        self._demand(bool(step.dims) and data_dependent, f"region {step.label!r} has dims that are not born")
        # The region's record against its body: it runs once for each chunk, cut by what the record lists.
        reads = {index for inner in step.body for index in inner.inputs}
        outputs = {index for inner in step.body for index in inner.outputs}
        self._demand(
            sorted(reads - outputs) == sorted(step.inputs),
            f"region {step.label!r} reads other values than it says",
        )
        # What chunks give is joined at its own size; where there is one chunk, its bucket will do.
        whole = not any(self.dims[name].can_chunk for name in step.dims)
        for value in map(self._value, step.outputs):
            cut = value.unpadded or not set(step.dims) & set(getattr(value.spec, "names", ()))
            self._demand(
                cut or whole, f"chunks of {value.origin!r} leave region {step.label!r} at their buckets"
            )
        # In the body its dims are those of one chunk, which device calls may read. Each chunk leaves what it found, and
        # its outputs.
        around, self.within = self.within, (*self.within, *step.dims)
        after = self._replay(step.body, alive)
        self.within = around
        self._demand(
            alive <= after, f"region {step.label!r} frees {self._names(alive - after)}, which is not its own"
        )
        left = after - alive
        self._demand(left == set(step.outputs), f"region {step.label!r} leaves {self._names(left)} behind")

    def _call(self, step: CallStep) -> None:
        # The call is in the table, runs once, on its device.
        call = self.calls.get(step.name)
        self._demand(call is not None, f"a step calls {step.name!r}, which is no call")
        assert call is not None
        self._demand(step.name not in self.call_steps, f"call {step.name!r} runs twice")
        self.call_steps[step.name] = step
        self._demand(
            step.device == call.device, f"call {step.name!r} is to run on {call.device}, not {step.device}"
        )
        self._demand(
            len(step.inputs) == len(call.inputs), f"call {step.name!r} gets another number of values"
        )
        self._demand(
            len(step.outputs) == len(call.outputs), f"call {step.name!r} gives another number of values"
        )
        # Ports and values pair up by place: a value fits its port, and what the call gives bears the port's name.
        for (port, spec), index in zip(call.inputs, step.inputs, strict=True):
            self._reads(call, port, spec, self._value(index))
        for (port, spec), index in zip(call.outputs, step.outputs, strict=True):
            value = self._value(index)
            name = f"{call.name}.{port}"
            self._demand(
                value.origin == name and same_spec(value.spec, spec), f"value {index} is not {name!r}"
            )
            self._demand(
                value.memory == self.memory[call.device], f"{name!r} is not where {call.name!r} runs"
            )
            self._demand(
                value.unpadded == self._gives_unpadded(call, spec), f"{name!r} is made at the wrong sizes"
            )

    def _gives_unpadded(self, call: PlannedCall, spec: PortSpec) -> bool:
        """Whether an output is at the request's own sizes: on the host, without buckets, or where a dim is born."""
        names = [name for name in getattr(spec, "names", ()) if not self.dims[name].any]
        births = any(self.dims[name].decided_by.rpartition(".")[0] == call.name for name in names)
        return call.device == HOST or not names or births

    def _reads(self, call: PlannedCall, port: str, spec: PortSpec, value: PlannedValue) -> None:
        # Form, then place, then sizes. A Python value has a form only.
        name = f"{call.name}.{port}"
        if not isinstance(spec, TensorSpec) or not isinstance(value.spec, TensorSpec):
            self._demand(
                value.spec == spec, f"{name!r} takes {show_spec(spec)}, but reads {show_spec(value.spec)}"
            )
            return
        self._demand(
            self._fits(value.spec, spec),
            f"{name!r} takes {show_spec(spec)}, but reads {show_spec(value.spec)}",
        )
        at_home = value.memory == self.memory[call.device]
        self._demand(at_home, f"{name!r} reads a value in {value.memory!r} on {call.device!r}")
        # A dim that data decides has no bucket on a device but in its region; all other values are at buckets there.
        outside = [dim for dim in spec.names if self._runs_in_region(dim) and dim not in self.within]
        self._demand(call.device == HOST or not outside, f"{name!r} has dims {outside} outside their region")
        has_buckets = any(not self.dims[dim].any for dim in spec.names)
        right_size = value.constant or not has_buckets or value.unpadded == (call.device == HOST)
        self._demand(
            right_size,
            f"{name!r} reads {value.origin!r} at {'its own' if value.unpadded else 'a bucket'} size",
        )

    def _runs_in_region(self, name: str) -> bool:
        return bool(self.dims[name].decided_by) and not self.dims[name].any

    def _fits(self, source: TensorSpec, target: TensorSpec) -> bool:
        if source.dtype != target.dtype or len(source.dims) != len(target.dims):
            return False
        if plain_dims(source.dims) == plain_dims(target.dims):
            return True
        return all(source.shape(sizes) == target.shape(sizes) for sizes in self._combinations(source, target))

    def _combinations(self, *specs: TensorSpec) -> Iterable[dict[str, int]]:
        names = dict.fromkeys(name for spec in specs for name in spec.names)
        return combinations(names, {name: self.dims[name].buckets for name in names})

    def _adapt(self, step: AdaptStep) -> None:
        self._demand(len(step.inputs) == len(step.outputs) == 1, f"{_step(step)} takes and gives one value")
        source, target = self._value(step.inputs[0]), self._value(step.outputs[0])
        adapter = step.adapter
        # An adapter changes form, place and sizes only by its kind; each of the three is worked out anew from the
        # source.
        self._demand(target.origin == source.origin, f"{_step(step)} adapts nothing")
        if not isinstance(source.spec, TensorSpec) or not isinstance(target.spec, TensorSpec):
            raise wrong(self.plan, f"{_step(step)} adapts a Python value")
        dtype = adapter.dtype if adapter.kind == "cast" else source.spec.dtype
        dims = adapter.dims if adapter.kind in ("pad", "slice", "cut", "gather") else source.spec.dims
        self._demand(
            target.spec.dtype == dtype and plain_dims(target.spec.dims) == plain_dims(dims),
            f"{_step(step)} turns {source.spec} into {target.spec}",
        )
        is_unpadded = adapter.kind == "cut" or (source.unpadded and not adapter.to_bucket)
        self._demand(
            target.unpadded == is_unpadded, f"{_step(step)} leaves {target.origin!r} at the wrong sizes"
        )
        self._moves(step, adapter.kind, adapter.device, source, target)
        crosses = adapter.kind in ("upload", "copy")
        at = adapter.device if crosses else source.memory
        self._demand(
            (step.origin, step.device) == (source.origin, at),
            f"{_step(step)} is to adapt {source.origin!r} on {at}, not on {step.device}",
        )
        # What one kind alone must keep to.
        whole = adapter.kind != "cut" or plain_dims(dims) == plain_dims(source.spec.dims)
        self._demand(whole, f"{_step(step)} turns {source.spec} into {target.spec}, which is no cut")
        if adapter.kind == "cut":
            self._cuts(step, source.spec)
        if adapter.kind in ("pad", "slice"):
            self._resizes(step, adapter.kind, source.spec, target.spec)
        if adapter.kind == "gather":
            _check_join(self.plan, step, source, target.spec)

    def _moves(self, step: Step, kind: str, device: str, source: PlannedValue, target: PlannedValue) -> None:
        away = {
            "upload": source.memory == HOST and target.memory == self.memory.get(device) != HOST,
            "download": source.memory != HOST and target.memory == HOST,
            "gather": source.memory != HOST and target.memory == HOST,
            "copy": HOST not in (source.memory, target.memory) and target.memory == self.memory.get(device),
        }
        self._demand(
            away.get(kind, source.memory == target.memory),
            f"{_step(step)} does not lead from {source.memory!r} to {target.memory!r}",
        )

    def _cuts(self, step: Step, spec: TensorSpec) -> None:
        """A size that derives from a padded one has its padding anywhere, not at the end."""
        derived_dims = [dim for dim in spec.dims if isinstance(dim, Derived)]
        padded_dims = [dim.text for dim in derived_dims if any(self.dims[name].can_pad for name in dim.names)]
        self._demand(
            not padded_dims, f"{_step(step)} cuts {padded_dims[:1]}, whose padding is not at its end"
        )

    def _resizes(self, step: Step, kind: str, source: TensorSpec, target: TensorSpec) -> None:
        for sizes in self._combinations(source, target):
            for before, after in zip(source.shape(sizes), target.shape(sizes), strict=True):
                sound = before <= after if kind == "pad" else before >= after
                self._demand(sound, f"{_step(step)} turns {source} into {target}, which is no {kind}")


def _check_join(plan: Plan, step: Step, source: PlannedValue, target: TensorSpec) -> None:
    ranks = next((group.ranks for group in plan.groups if group.memory == source.memory), 1)
    assert isinstance(source.spec, TensorSpec)
    pairs = list(zip(plain_dims(source.spec.dims), plain_dims(target.dims), strict=True))
    changes = [(before, after) for before, after in pairs if before != after]
    sound = all(isinstance(before, int) and after == before * ranks for before, after in changes)
    what = f"{_step(step)} turns {source.spec} into {target}, which is no gather"
    demand(plan, sound and len(changes) == (ranks > 1), what)


def _step(step: Step) -> str:
    adapter = adapter_of(step)
    return f"step {step.op} {step.label!r}" + (f" ({adapter})" if adapter else "")

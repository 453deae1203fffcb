"""A lane: the functions generated for one way of running a plan, and the entry that requests come in by.

The entry looks a request up by the shapes and dtypes of its inputs. One that was seen before is one dict lookup away
from its function; a new one is checked in full, and remembered. Requests at bucket sizes run code without padding;
others run code that pads and cuts; larger ones run it in chunks, over inputs prepared once where they are not cut.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.plan.chunks import Run, bucket_for, run_chunks
from orchestrator.plan.count import Counter, Tally
from orchestrator.plan.model import HOST, PlannedValue, Step
from orchestrator.plan.record import RunRecord
from orchestrator.plan.steps import walk
from orchestrator.runner.admit import admit
from orchestrator.runner.checks import make_check
from orchestrator.runner.chunked import Chunks
from orchestrator.runner.codegen import Code, Generator
from orchestrator.runner.maps import body_ends, make_map
from orchestrator.runner.pieces import Held
from orchestrator.runner.programs import Programs
from orchestrator.runner.regions import make_region
from orchestrator.runner.totals import Totals
from orchestrator.specs import TensorSpec, plain_dims

__all__ = ["Lane"]

#: Requests of so many forms are remembered; after that new forms are checked each time (dims of any size).
REMEMBERED = 4096

Runner = Callable[..., "dict[str, Any]"]


class Lane:
    """Functions for one plan and one observer.

    Args:
        programs: The loaded plan.
        totals: Where requests are counted.
        observer: Called with every step and its times, or None.
        watch: Called after each iteration of a loop, or None.
    """

    def __init__(
        self,
        programs: Programs,
        totals: Totals,
        observer: Callable[[Step, float, float], None] | None = None,
        watch: Callable[..., None] | None = None,
    ) -> None:
        self.programs = programs
        self.plan = programs.plan
        self.totals = totals
        self.counter = Counter(self.plan)
        self.outer = self.counter.outer
        branches = any(step.loop is not None and step.loop.kind == "when" for step in walk(self.plan.steps))
        self.decides = branches or any(dim.born for dim in self.plan.dims)
        self.codes: list[Code] = []
        self._observer = observer
        self._watch = watch
        self._watched = tuple(step.loop.watched for step in walk(self.plan.steps) if step.loop is not None)
        self._exact = self._whole(exact=True)
        self._padded: Code | None = None
        self._shared: dict[frozenset[str], tuple[dict[str, Prepare], Code]] = {}

    def code(
        self,
        name: str,
        exact: bool,
        arguments: tuple[int, ...],
        steps: tuple[Step, ...],
        result: str,
        spared: frozenset[int] = frozenset(),
    ) -> Code:
        """Generates one function and keeps it for finding steps in tracebacks."""
        generator = Generator(
            self.programs,
            exact=exact,
            spared=spared,
            region=lambda step: self._region(step, exact),
            check=lambda call: make_check(self.plan, call),
            observer=self._observer,
            watch=self._watch,
        )
        made = generator.function(name, arguments, steps, result)
        self.codes.append(made)
        return made

    def _region(self, step: Step, exact: bool) -> Callable[..., Any]:
        is_map = step.loop is not None
        arguments, given = body_ends(step) if is_map else (step.inputs, step.outputs)
        result = f"({''.join(f'v{index}, ' for index in given)})"
        body = self.code("items" if is_map else "region", exact, arguments, step.body, result)
        make, function = make_map if is_map else make_region, body.function
        if body.sized:
            return make(self.programs, step, function)
        return make(self.programs, step, lambda _real, _bucket, *values: function(*values))

    def _result(self) -> str:
        return f"{{{', '.join(f'{name!a}: v{index}' for name, index in self.plan.outputs)}}}"

    def _whole(self, exact: bool) -> Code:
        inputs = tuple(range(len(self.plan.inputs)))
        return self.code("run", exact, inputs, self.plan.steps, self._result())

    def runner(
        self, inputs: Mapping[str, Any], *, remembered: bool = True
    ) -> tuple[Runner, Callable[[], object]]:
        """Finds how to run a request: its function, and the tick that counts it when it is done.

        Args:
            inputs: The request.
            remembered: The caller keeps what is returned for the next request of this form.

        Raises:
            InputError: The request does not fit the plan.
        """
        record = admit(self.plan, inputs)
        real = record.sizes
        bucket = {
            dim.name: real[dim.name] if dim.unbounded else bucket_for(real[dim.name], dim.buckets) or 0
            for dim in self.outer
            if dim.name in real
        }
        if not all(bucket.values()):
            return self._chunked(record)
        if all(real[name] == size for name, size in bucket.items()):
            code = self._exact
        else:
            code = self._padded = self._padded or self._whole(exact=False)
        return self._single(code, record, bucket, remembered)

    def _single(
        self, code: Code, record: RunRecord, bucket: dict[str, int], remembered: bool
    ) -> tuple[Runner, Callable[[], object]]:
        function = code.function
        if self.decides:
            return self._counted(function, record, bucket), _nothing
        tick: Callable[[], object] = lambda: self._count(record)  # noqa: E731
        if remembered:
            kind = self._kind(record.key())
            tick = self.totals.ticks(kind, lambda: self.counter.request(record)).up
        if not code.sized:
            return function, tick
        return (lambda *values: function(record, bucket, *values)), tick

    def _counted(self, function: Runner, record: RunRecord, bucket: dict[str, int]) -> Runner:
        """Runs and counts requests that decide sizes on their way."""

        def run(*values: Any) -> dict[str, Any]:
            own = record.inner(record.sizes)
            result = function(own, dict(bucket), *values)
            self._count(own)
            return result

        return run

    def _count(self, record: RunRecord) -> None:
        self.count(record.key(), lambda: self.counter.request(record))

    def _kind(self, key: Hashable) -> Hashable:
        """Plans that hand other values out count apart."""
        return self.plan.outputs, self._watched, key

    def count(self, key: Hashable, tally: Callable[[], Tally]) -> None:
        """Counts one request, of a kind that is told by a key."""
        self.totals.count(self._kind(key), tally)

    def _chunked(self, record: RunRecord) -> tuple[Runner, Callable[[], object]]:
        real = record.sizes
        dims = [dim for dim in self.outer if dim.name in real]
        cut = frozenset(dim.name for dim in dims if not dim.unbounded and real[dim.name] > dim.buckets[-1])

        def run(*values: Any) -> dict[str, Any]:
            held = Held(self._free)
            with Chunks(self, cut, record, values) as chunks, held:

                def once(run: Run) -> dict[str, Any]:
                    given = chunks.once(run)
                    held.keep(
                        (self.plan.values[index] for _, index in self.plan.outputs), tuple(given.values())
                    )
                    return given

                result = run_chunks(
                    dims, real, Run(), once, lambda pieces, name: self._join(pieces, name, held)
                )
            chunks.count()
            return result

        return run, _nothing

    def shared(self, dims: frozenset[str]) -> tuple[dict[str, Prepare], Code]:
        """Functions for a request in chunks of these dims.

        Returns:
            For each input that is not cut in all of them the function that prepares it, and the function of
            everything else, which leaves these inputs' values alone.
        """
        if dims not in self._shared:
            prepare: dict[str, Prepare] = {}
            skipped: set[int] = set()
            given: list[int] = []
            for position, (name, spec) in enumerate(self.plan.inputs):
                if isinstance(spec, TensorSpec) and dims <= set(spec.names):
                    given.append(position)
                    continue
                steps = self.counter.entry[name]
                forms = (position, *(index for step in steps for index in step.outputs))
                skipped |= {id(step) for step in steps}
                result = f"({''.join(f'v{index}, ' for index in forms)})"
                prepared = self.code("prepare", False, (position,), steps, result, frozenset(forms))
                prepare[name] = Prepare(prepared, forms)
                given += forms
            rest = tuple(step for step in self.plan.steps if id(step) not in skipped)
            spared = frozenset(index for each in prepare.values() for index in each.forms)
            self._shared[dims] = prepare, self.code("run", False, tuple(given), rest, self._result(), spared)
        return self._shared[dims]

    def _free(self, value: PlannedValue, handle: Any) -> None:
        backend = self.programs.backend_of(value.memory)
        if not backend.capabilities.refcounted:
            backend.free(handle)

    def _join(self, pieces: list[dict[str, Any]], name: str, held: Held) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        spent: list[tuple[PlannedValue, Any]] = []
        for output, index in self.plan.outputs:
            made = self.plan.values[index]
            spec = made.spec
            assert isinstance(spec, TensorSpec)
            axis = plain_dims(spec.dims).index(name)
            values = [piece[output] for piece in pieces]
            if made.memory == HOST:
                joined[output] = torch.cat(values, axis)
                continue
            joined[output] = self.programs.backend_of(made.memory).join(values, axis)
            held.keep((made,), (joined[output],))
            spent += [(made, value) for value in values]
        for made, value in spent:
            held.spend(made, value)
        return joined


@dataclass(frozen=True)
class Prepare:
    """Makes the forms of one input that several chunks share.

    Attributes:
        code: The function; it returns all forms.
        forms: Their value indices.
    """

    code: Code
    forms: tuple[int, ...]


def _nothing() -> None:
    """The tick of a request that counts itself."""

"""A lane: the functions generated for one way of running a plan, and the entry that requests come in by.

The entry looks a request up by the shapes and dtypes of its inputs. One that was seen before is one dict lookup away
from its function; a new one is checked in full, and remembered. Requests at bucket sizes run code without padding;
others run code that pads and cuts; larger ones run it in chunks, over inputs prepared once where they are not cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.plan.chunks import Run, bucket_for, run_chunks
from orchestrator.plan.count import Counter
from orchestrator.plan.model import HOST, Step
from orchestrator.runner.admit import admit
from orchestrator.runner.checks import make_check
from orchestrator.runner.codegen import Code, Generator
from orchestrator.runner.programs import Programs
from orchestrator.runner.regions import make_region
from orchestrator.runner.totals import Ticks, Totals
from orchestrator.specs import TensorSpec, plain_dims

__all__ = ["Lane"]

#: Requests of so many forms are remembered; after that new forms are checked each time (dims of any size).
REMEMBERED = 4096

Runner = Callable[..., "dict[str, Any]"]


class Lane:
    """Functions for one plan, one set of kept outputs, and one observer.

    Args:
        programs: The loaded plan.
        totals: Where requests are counted.
        keep: Names of outputs that stay on their device.
        observer: Called with every step and its times, or None.
    """

    def __init__(
        self,
        programs: Programs,
        totals: Totals,
        keep: frozenset[str] = frozenset(),
        observer: Callable[[Step, float, float], None] | None = None,
    ) -> None:
        self.programs = programs
        self.plan = programs.plan
        self.totals = totals
        self.counter = Counter(self.plan)
        self.keep = keep
        self.outer = self.counter.outer
        self.born = [dim.name for dim in self.plan.dims if dim.born]
        self.kept = frozenset(index for name, index in self.plan.outputs if name in keep)
        self.codes: list[Code] = []
        self._observer = observer
        self._exact = self._whole(exact=True)
        self._padded: Code | None = None
        self._parts: tuple[dict[str, tuple[Code, tuple[int, ...]]], Code, tuple[int, ...]] | None = None

    def code(
        self, name: str, exact: bool, arguments: tuple[int, ...], steps: tuple[Step, ...], result: str
    ) -> Code:
        """Generates one function and keeps it for finding steps in tracebacks."""
        generator = Generator(
            self.programs,
            exact=exact,
            kept=self.kept,
            region=lambda step: self._region(step, exact),
            check=lambda call: make_check(self.plan, call),
            observer=self._observer,
        )
        made = generator.function(name, arguments, steps, result)
        self.codes.append(made)
        return made

    def _region(self, step: Step, exact: bool) -> Callable[..., Any]:
        result = f"({''.join(f'v{index}, ' for index in step.outputs)})"
        body = self.code("region", exact, step.inputs, step.body, result)
        function = body.function
        if body.sized:
            return make_region(self.programs, step, function)
        return make_region(self.programs, step, lambda _real, _bucket, *values: function(*values))

    def _result(self) -> str:
        return f"{{{', '.join(f'{name!r}: v{index}' for name, index in self.plan.outputs)}}}"

    def _whole(self, exact: bool) -> Code:
        inputs = tuple(range(len(self.plan.inputs)))
        return self.code("run", exact, inputs, self.plan.steps, self._result())

    def runner(self, inputs: Mapping[str, Any]) -> tuple[Runner, Callable[[], object]]:
        """Finds how to run a request: its function, and the tick that counts it when it is done.

        Raises:
            InputError: The request does not fit the plan.
        """
        real = admit(self.plan, inputs)
        bucket = {
            dim.name: real[dim.name] if dim.any else bucket_for(real[dim.name], dim.buckets) or 0
            for dim in self.outer
            if dim.name in real
        }
        if not all(bucket.values()):
            return self._chunked(real)
        if real == bucket:
            code = self._exact
        else:
            code = self._padded = self._padded or self._whole(exact=False)
        return self._single(code, real, bucket)

    def _single(
        self, code: Code, real: dict[str, int], bucket: dict[str, int]
    ) -> tuple[Runner, Callable[[], object]]:
        function = code.function
        if self.born:
            return self._counted(function, real, bucket), _nothing
        ticks = self._ticks(real)
        if not code.sized:
            return function, ticks.up
        return (lambda *values: function(real, bucket, *values)), ticks.up

    def _counted(self, function: Runner, real: dict[str, int], bucket: dict[str, int]) -> Runner:
        """Runs and counts requests that decide sizes on their way."""

        def run(*values: Any) -> dict[str, Any]:
            sizes = dict(real)
            result = function(sizes, dict(bucket), *values)
            self._ticks(sizes).up()
            return result

        return run

    def _ticks(self, real: Mapping[str, int]) -> Ticks:
        return self.totals.ticks(tuple(sorted(real.items())), lambda: self.counter.request(real))

    def _chunked(self, real: dict[str, int]) -> tuple[Runner, Callable[[], object]]:
        dims = [dim for dim in self.outer if dim.name in real]

        def run(*values: Any) -> dict[str, Any]:
            chunks = _Chunks(self, values)
            result = run_chunks(dims, real, Run(), chunks.once, self._join)
            chunks.count()
            return result

        return run, _nothing

    def parts(self) -> tuple[dict[str, tuple[Code, tuple[int, ...]]], Code, tuple[int, ...]]:
        """Functions for a request in chunks: one that prepares each input, and one for all other steps."""
        if self._parts is None:
            prepare: dict[str, tuple[Code, tuple[int, ...]]] = {}
            given: list[int] = []
            read = {index for step in self.counter.rest for index in (*step.inputs, *step.frees)}
            read |= {index for _, index in self.plan.outputs}
            for position, (name, _) in enumerate(self.plan.inputs):
                steps = self.counter.entry[name]
                made = [position, *(index for step in steps for index in step.outputs)]
                forms = tuple(index for index in made if index in read)
                result = f"({''.join(f'v{index}, ' for index in forms)})"
                prepare[name] = (self.code("prepare", False, (position,), steps, result), forms)
                given += forms
            main = self.code("run", False, tuple(given), self.counter.rest, self._result())
            self._parts = prepare, main, tuple(given)
        return self._parts

    def _join(self, pieces: list[dict[str, Any]], name: str) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for output, index in self.plan.outputs:
            spec = self.plan.values[index].spec
            assert isinstance(spec, TensorSpec)
            axis = plain_dims(spec.dims).index(name)
            values = [piece[output] for piece in pieces]
            memory = self.plan.values[index].memory
            if output in self.keep and self._device_of(index) != HOST:
                memory = self._device_of(index)
            joined[output] = (
                torch.cat(values, axis)
                if memory == HOST
                else self.programs.backend_of(memory).join(values, axis)
            )
        return joined

    def _device_of(self, index: int) -> str:
        """Memory of the value that a kept output really is: the one before its download."""
        for step in self.plan.steps:
            if index in step.outputs and step.adapter is not None and step.adapter.kind == "download":
                return self.plan.values[step.inputs[0]].memory
        return self.plan.values[index].memory


class _Chunks:
    """One request in chunks: inputs are prepared once for each chunk of theirs."""

    def __init__(self, lane: Lane, values: tuple[Any, ...]) -> None:
        self.lane = lane
        self.values = values
        self.prepared: dict[tuple[str, tuple[int, ...]], tuple[Any, ...]] = {}
        self.runs: list[Run] = []

    def once(self, run: Run) -> dict[str, Any]:
        """Runs one combination of chunks."""
        prepare, main, _ = self.lane.parts()
        given: list[Any] = []
        for (name, spec), value in zip(self.lane.plan.inputs, self.values, strict=True):
            code, _ = prepare[name]
            names = spec.names if isinstance(spec, TensorSpec) else ()
            key = (name, run.key(names))
            if key not in self.prepared:
                part = _part(value, spec, run) if isinstance(spec, TensorSpec) else value
                self.prepared[key] = (
                    code.function(run.real, run.bucket, part) if code.sized else code.function(part)
                )
            given += self.prepared[key]
        real = dict(run.real)
        result: dict[str, Any] = (
            main.function(real, dict(run.bucket), *given) if main.sized else main.function(*given)
        )
        self.runs.append(Run(real, run.bucket, run.start))
        return result

    def count(self) -> None:
        """Counts the request, with the sizes its stages decided."""
        key = tuple((tuple(run.real.items()), tuple(run.start.items())) for run in self.runs)
        self.lane.totals.ticks(key, lambda: self.lane.counter.runs(self.runs)).up()


def _part(value: torch.Tensor, spec: TensorSpec, run: Run) -> torch.Tensor:
    for axis, name in enumerate(plain_dims(spec.dims)):
        if isinstance(name, str) and value.shape[axis] != run.real[name]:
            value = value.narrow(axis, run.start[name], run.real[name])
    return value


def _nothing() -> None:
    """The tick of a request that counts itself."""

"""A variant of a plan: the functions generated for one way of running it, and which of them a request takes.

The entry of a session looks a request up by the shapes and dtypes of its inputs. One that was seen before is one dict
lookup away from its function; a new one is checked in full, and remembered. Requests at bucket sizes run code without
padding; others run code that pads and cuts; larger ones run it in chunks, over inputs prepared once where they are not
cut.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from orchestrator.plan.chunks import bucket_for
from orchestrator.plan.count import Counter, Tally, cut_dims
from orchestrator.plan.locks import with_part_locks, with_same_locks
from orchestrator.plan.model import Plan
from orchestrator.plan.parts import split
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import BranchStep, LoopStep, MapStep, RegionStep, Step, iter_steps
from orchestrator.runner.admit import admit
from orchestrator.runner.chunks import Chunks, PartCodes
from orchestrator.runner.codegen.checks import make_check
from orchestrator.runner.codegen.codegen import Code, CodeGenerator
from orchestrator.runner.compiled.region import LoadedRegion
from orchestrator.runner.compiled.source import eager_region, without_sizes
from orchestrator.runner.copies import own_copy
from orchestrator.runner.counters import RequestStats
from orchestrator.runner.device_inputs import check_buckets, with_device_inputs
from orchestrator.runner.load.load import Executable
from orchestrator.runner.regions.maps import body_ends, make_map
from orchestrator.runner.regions.regions import make_region
from orchestrator.runner.sharing import Sharing
from orchestrator.runner.stream.progress import outputs_before_loops

__all__ = ["PlanVariant"]

#: Requests of so many forms are remembered; after that new forms are checked each time (dims of any size).
MAX_FORMS = 4096

Runner = Callable[..., "dict[str, Any]"]


class PlanVariant:
    """Functions for one plan and one observer.

    Args:
        executable: The loaded plan.
        stats: Where requests are counted.
        observer: Called with every step and its times, or None.
        progress_hook: Called after each iteration of a loop, or None.
        places: Inputs that are on a device already, each with the device; the plan is the one for that.
    """

    def __init__(
        self,
        executable: Executable,
        stats: RequestStats,
        observer: Callable[[Step, float, float], None] | None = None,
        progress_hook: Callable[..., None] | None = None,
        places: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.executable = executable
        self.plan = executable.plan
        self.stats = stats
        self.sharing = Sharing(self.plan)
        self.counter = Counter(self.plan)
        self.outer = self.counter.outer
        self.decides_sizes = any(iter_steps(self.plan.steps, BranchStep)) or any(
            dim.decided_by for dim in self.plan.dims
        )
        self.codes: list[Code] = []
        self._eager_regions: dict[str, Callable[..., Any]] = {}
        self._observer = observer
        self._progress_hook = progress_hook
        self._progress_outputs = tuple(
            loop.progress_outputs for loop in iter_steps(self.plan.steps, LoopStep)
        )
        # Who takes values of iterations gets what is there before a loop before them.
        self._early_outputs = outputs_before_loops(self.plan) if any(self._progress_outputs) else {}
        # Most requests are at bucket sizes; the code of others is made when the first one comes.
        self._exact_code = self._whole(exact=True)
        self._padding_code: Code | None = None
        self._part_codes: dict[frozenset[str], PartCodes] = {}
        self._places = places
        self._on_devices: dict[frozenset[tuple[str, str]], PlanVariant] = {}
        self._at_buckets: tuple[PlanVariant, frozenset[str]] | None = None

    def code(
        self,
        name: str,
        exact: bool,
        arguments: tuple[int, ...],
        steps: tuple[Step, ...],
        result: str,
        caller_owned: frozenset[int] = frozenset(),
        plan: Plan | None = None,
        early_outputs: Mapping[int, tuple[tuple[str, int], ...]] = MappingProxyType({}),
    ) -> Code:
        """Generates one function and keeps it for finding steps in tracebacks."""
        # Chunks have values of their own, copies of what another run would overwrite; what is checked, and what a map
        # or region is, stays as planned.
        generator = CodeGenerator(
            self.executable if plan is None else replace(self.executable, plan=plan),
            exact=exact,
            caller_owned=caller_owned,
            sharing=self.sharing if plan is None else Sharing(plan),
            driver=lambda step: self._driver(step, exact),
            check=lambda call: make_check(self.plan, call),
            eager=self._eager,
            observer=self._observer,
            progress_hook=self._progress_hook,
        )
        code = generator.function(name, arguments, steps, result, early_outputs)
        self.codes.append(code)
        return code

    def with_device_inputs(self, places: Mapping[str, str]) -> PlanVariant:
        """Returns the variant for requests with inputs on devices; its code is looked through for failures here."""
        key = frozenset(places.items())
        if key not in self._on_devices:
            plan = with_same_locks(with_device_inputs(self.plan, places))
            executable = replace(self.executable, plan=plan)
            variant = PlanVariant(executable, self.stats, self._observer, self._progress_hook, places)
            self._find_failures_of(variant)
            if self._at_buckets is not None:
                at_buckets, dims = self._at_buckets
                variant.divert(at_buckets.with_device_inputs(places), dims)
            self._on_devices[key] = variant
        return self._on_devices[key]

    def divert(self, at_buckets: PlanVariant, dims: frozenset[str]) -> None:
        """Has another variant run the requests in which these dims are at buckets; this one looks for its failures."""
        self._find_failures_of(at_buckets)
        self._at_buckets = at_buckets, dims

    def _find_failures_of(self, variant: PlanVariant) -> None:
        if variant.codes is not self.codes:
            self.codes += variant.codes
            variant.codes = self.codes

    def _driver(self, step: RegionStep | MapStep, exact: bool) -> Callable[..., Any]:
        """The function that runs the body of a region for its chunks, or of a map for its batches."""
        match step:
            case MapStep():
                arguments, results = body_ends(step)
                return make_map(self.executable, step, self._body("items", step, arguments, results, exact))
            case RegionStep():
                body = self._body("region", step, step.inputs, step.outputs, exact)
                return make_region(self.executable, step, body)

    def _eager(self, region: LoadedRegion) -> Callable[..., Any]:
        """The function of a compiled region that runs its stages, for sizes that no program is for."""
        if region.record.name not in self._eager_regions:
            code = eager_region(replace(self.executable, regions={}), region.run, self.sharing)
            self.codes.append(code)
            self._eager_regions[region.record.name] = without_sizes(code)
        return self._eager_regions[region.record.name]

    def _body(
        self,
        name: str,
        step: RegionStep | MapStep,
        arguments: tuple[int, ...],
        results: tuple[int, ...],
        exact: bool,
    ) -> Callable[..., Any]:
        """The generated function of a body, in the form that drivers call: with a record and buckets."""
        result = f"({''.join(f'v{index}, ' for index in results)})"
        body = self.code(name, exact, arguments, step.body, result)
        function = body.function
        return function if body.takes_sizes else lambda _record, _bucket, *values: function(*values)

    def _result(self) -> str:
        """The expression of what is handed out; what is not its own memory is copied."""
        names = self.sharing.outputs_to_copy()
        parts = (
            f"{name!a}: {f'own_copy(v{at})' if name in names else f'v{at}'}" for name, at in self.plan.outputs
        )
        return f"{{{', '.join(parts)}}}"

    def _whole(self, exact: bool) -> Code:
        inputs = tuple(range(len(self.plan.inputs)))
        return self.code(
            "run", exact, inputs, self.plan.steps, self._result(), early_outputs=self._early_outputs
        )

    def runner(
        self, inputs: Mapping[str, Any], *, is_reusable: bool = True
    ) -> tuple[Runner, Callable[[], object]]:
        """Finds how to run a request: its function, and what counts it when it is done.

        Args:
            inputs: The request.
            is_reusable: The caller keeps the result for the next request of this form.

        Raises:
            InputError: The request does not fit the plan.
        """
        record = admit(self.plan, inputs, self._places)
        real = record.sizes
        # No bucket holds what is above the largest one, and 0 stands for that.
        bucket = {
            dim.name: real[dim.name] if dim.unbounded else bucket_for(real[dim.name], dim.buckets) or 0
            for dim in self.outer
            if dim.name in real
        }
        if self._places:
            check_buckets(self.plan, self._places, real, bucket)
        if not all(bucket.values()):
            return self._chunk_runner(record)
        if self._at_buckets is not None:
            at_buckets, dims = self._at_buckets
            if all(real[name] == bucket[name] for name in dims if name in bucket):
                return at_buckets.runner(inputs, is_reusable=is_reusable)
        # At bucket sizes nothing is padded or cut. The other code is made for the first request that needs it.
        if all(real[name] == size for name, size in bucket.items()):
            code = self._exact_code
        else:
            code = self._padding_code = self._padding_code or self._whole(exact=False)
        return self._single(code, record, bucket, is_reusable)

    def _single(
        self, code: Code, record: RunRecord, bucket: dict[str, int], is_reusable: bool
    ) -> tuple[Runner, Callable[[], object]]:
        function = code.function
        if self.decides_sizes:
            return self._counting_runner(function, record, bucket), _nothing
        count: Callable[[], object] = lambda: self._count(record)  # noqa: E731
        if is_reusable:
            kind = self._kind(record.key())
            count = self.stats.counter(kind, lambda: self.counter.request(record)).increment
        if not code.takes_sizes:
            return function, count
        return (lambda *values: function(record, bucket, *values)), count

    def _counting_runner(self, function: Runner, record: RunRecord, bucket: dict[str, int]) -> Runner:
        """Runs and counts requests that decide sizes on their way."""

        def run(*values: Any) -> dict[str, Any]:
            inner = record.inner(record.sizes)
            result = function(inner, dict(bucket), *values)
            self._count(inner)
            return result

        return run

    def _count(self, record: RunRecord) -> None:
        self.count(record.key(), lambda: self.counter.request(record))

    def _kind(self, key: Hashable) -> Hashable:
        """Plans that hand other values out count apart."""
        return self.plan.outputs, self._progress_outputs, tuple(self._places.items()), key

    def count(self, key: Hashable, tally: Callable[[], Tally]) -> None:
        """Counts one request, of a kind that is told by a key."""
        self.stats.count(self._kind(key), tally)

    def _chunk_runner(self, record: RunRecord) -> tuple[Runner, Callable[[], object]]:
        cut = cut_dims(self.outer, record.sizes)
        names, locks = self.sharing.outputs_to_copy(), self.executable.locks

        def run(*values: Any) -> dict[str, Any]:
            parts = self.parts(cut)
            if locks is not None:
                for name in parts.locks:
                    locks.lock(name)
            # Copies are made while chunks are still there: a result may be a view of one.
            with Chunks(self.executable, parts, self.outer, record, values) as chunks:
                result = {
                    name: own_copy(value) if name in names else value for name, value in chunks.run().items()
                }
            # Counted once it is done: what stages decided on the way makes requests of equal sizes different kinds.
            key = tuple(
                (number, run.key(run.offset), run.record and run.record.key()) for number, run in chunks.runs
            )
            self.count(key, lambda: self.counter.chunks(parts.split, record, chunks.runs))
            return result

        return run, _nothing

    def parts(self, cut: frozenset[str]) -> PartCodes:
        """Functions for a request in chunks of these dims."""
        if cut not in self._part_codes:
            # A function of a part frees neither what it reads, since other chunks do too, nor its results.
            whole = split(self.plan, cut)
            plan = replace(self.plan, values=whole.plan.values)
            # Parts run in another order than the plan's steps, and keep values from one run to the next: more of them
            # than a plan counts, so where memory is short a request has the device for itself.
            locks = self.executable.locks
            names, part_steps = with_part_locks(
                plan, whole.items, is_alone=locks is not None and locks.is_short
            )
            codes = tuple(
                self.code(
                    "run",
                    False,
                    part.reads,
                    steps,
                    f"({''.join(f'v{index}, ' for index in part.results)})",
                    frozenset((*part.reads, *part.results)),
                    plan,
                )
                for part, steps in zip(whole.items, part_steps, strict=True)
            )
            self._part_codes[cut] = PartCodes(whole, codes, names)
        return self._part_codes[cut]


def _nothing() -> None:
    """Counts a request that counts itself: it did."""

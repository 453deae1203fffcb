"""Sizes at which a stage is tried, so that the dims of a plan hold for every size that a request may have.

A dim that smaller requests fill up runs at its buckets, but is cut back to the request's own size, so what a stage
makes of it has to be known at *every* size up to the largest bucket. All buckets of one parity hide a rounding, and
buckets above a limit hide the limit. So a stage is tried at sizes that are no buckets as well: at all of them up to
:data:`EXHAUSTIVE`, above that at those that tell the laws apart that models have (constants, limits from below and
above, rounding to a multiple or to a power of two, windows, strides, squeezed dims).

Several dims change at once where that is enough: every size of every dim is tried, but not with every size of the
others, as long as each size that the stage gives is constant or that of one name. Where one is not, or where the stage
refuses a size, dims change one after another, and then together. Combinations of buckets are all tried, up to
:data:`COMBINATIONS` of them; above that they are joined in the same way.

A batch runs in chunks above its largest bucket, so it is tried above it too. A dim that only runs at its buckets is
tried there, and at a second size where it has one bucket alone: that tells a size that follows the dim from one that is
always the same.

Symbolic shapes of torch would prove more, but take about seven times as long for a small layer, and libraries'
own operations bind symbols to numbers (an interpolation does): see decision 0011.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from orchestrator.errors import PlanError
from orchestrator.graph import Graph
from orchestrator.plan.records import DimPlan
from orchestrator.planner.infer.outputs import show_sizes
from orchestrator.planner.infer.probe import DataDependentError, ProbeResult, RefusedError
from orchestrator.specs import AnyDim, Derived, TensorSpec, combinations, dim_names, size_of
from orchestrator.stage import Stage

__all__ = ["EXHAUSTIVE", "Sampler", "padded_names", "trial_sizes", "unlike"]

#: Up to this largest bucket a padded dim is tried at every size.
EXHAUSTIVE = 8

#: Up to so many combinations of buckets each is tried.
COMBINATIONS = 16

Sizes = dict[str, int]
#: Sizes of names, and the result of the stage at these.
Trial = tuple[Sizes, ProbeResult]


def padded_names(graph: Graph, dims: Mapping[str, DimPlan]) -> frozenset[str]:
    """Returns the dims that a pad rule speaks of: requests may have sizes of them that are no buckets."""
    specs: list[object] = [*graph.inputs.values()]
    for stage in graph.stages.values():
        specs += [port.spec for port in (*stage.inputs, *stage.outputs)]
    specs += [spec for loop in graph.loops.values() for _, spec in loop.over]
    specs += [spec for edge in graph.edges for spec in edge.constraints]
    return frozenset(
        name
        for spec in specs
        if isinstance(spec, TensorSpec) and spec.pad is not None
        for name in spec.names
        if not dims[name].any and not dims[name].exact
    )


def trial_sizes(buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Returns sizes below the largest bucket, none of them a bucket, at which a padded dim is tried."""
    largest = buckets[-1]
    if largest <= EXHAUSTIVE:
        sizes = set(range(1, largest))
    else:
        between = ((low + high) // 2 | 1 for low, high in itertools.pairwise(buckets))
        sizes = {1, 2, 3, 5, 7, largest - 1, *between}
    return tuple(sorted(size for size in sizes if size < largest and size not in buckets))


def more_sizes(buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Returns sizes that a stage may take which refused others: even ones, and parts of the largest bucket."""
    largest = buckets[-1]
    sizes = {4, 6, 12, largest // 4, largest // 2, 3 * largest // 4, largest - 2, largest - 4, largest - 8}
    return tuple(sorted(size for size in sizes if 0 < size < largest and size not in buckets))


class Sampler:
    """Tries one call at several sizes.

    Args:
        call: Its name.
        stage: Its stage.
        inputs: Specs of its ports.
        dims: Named dims.
        run: Runs the stage on fake tensors at some sizes of names.
        attempt: The same; None where the stage refuses them.
    """

    def __init__(
        self,
        call: str,
        stage: Stage,
        inputs: Mapping[str, object],
        dims: Mapping[str, DimPlan],
        run: Callable[[Sizes], ProbeResult],
        attempt: Callable[[Sizes], ProbeResult | None],
    ) -> None:
        self.call = call
        self.stage = stage
        self.specs = [spec for spec in inputs.values() if isinstance(spec, TensorSpec)]
        self.names = list(dict.fromkeys(name for spec in self.specs for name in spec.names))
        self.buckets = {name: dims[name].buckets for name in self.names}
        # Only a batch runs in chunks, so only its sizes go beyond the largest bucket.
        self.batches = {name for name in self.names if dims[name].batch and not dims[name].any}
        self.run = run
        self.attempt = attempt

    def samples(
        self, padded_dims: frozenset[str], refuse: Callable[[Sizes, RefusedError], PlanError]
    ) -> list[Trial]:
        """Returns the results of the stage at every combination of buckets, and at the trial sizes it takes.

        Args:
            padded_dims: Dims that requests may have at sizes which are no buckets.
            refuse: Makes the error of a combination of buckets that the stage refuses.

        Raises:
            DataDependentError: It looks at the content of tensors.
            PlanError: It refuses a combination of buckets, or every other size of a dim with one bucket.
        """
        base = {name: sizes[-1] for name, sizes in self.buckets.items()}
        between = {name: trial_sizes(self.buckets[name]) for name in self.names if name in padded_dims}
        # 1. At buckets the stage has to run; what it gives at the largest ones is what the others are compared with.
        samples = self._few_at_buckets(base)
        if samples is None:
            samples = self._at_buckets(refuse)
        largest = next(sample for sample in samples if sample[0] == base)
        # 2. At sizes that are no buckets it may refuse: those give no sample.
        joint = self._rotate(base, between)
        if joint is not None and self._is_simple([*samples, *joint]):
            samples += joint
        else:
            for name in between:
                samples += self._sweep(base, name)
            samples += self._joint(base, list(between))
        # 3. A batch runs in chunks, so it is tried above its largest bucket too.
        for name in self.names:
            samples += self._above(largest, name) if name in self.batches else []
        variables = {name for name in self.names if len({at[name] for at, _ in samples}) > 1}
        # A dim seen at one size alone is tried at a second one, to tell what follows it from what is always the same.
        if not self.stage.outputs or any(port.spec is None for port in self.stage.outputs):
            samples += [self._second(base, name) for name in self.names if name not in variables]
        return samples

    def _at_buckets(self, refuse: Callable[[Sizes, RefusedError], PlanError]) -> list[Trial]:
        samples: list[Trial] = []
        for at in combinations(self.names, self.buckets):
            try:
                samples.append((at, self.run(at)))
            except DataDependentError:
                raise
            except RefusedError as error:
                raise refuse(at, error) from error.__cause__
        return samples

    def _few_at_buckets(self, base: Sizes) -> list[Trial] | None:
        """Tries every bucket of every dim, but several dims at once, where all combinations would be too many.

        Returns:
            The results; None where these do not say enough: combinations are few, the stage refuses one, or gives
            a size that is neither constant nor that of one name.
        """
        if math.prod(len(sizes) for sizes in self.buckets.values()) <= COMBINATIONS:
            return None
        largest = self._try(base)
        others = self._rotate(base, {name: sizes[:-1] for name, sizes in self.buckets.items()})
        if largest is None or others is None:
            return None
        return [largest, *others] if self._is_simple([largest, *others]) else None

    def _rotate(self, base: Sizes, columns: Mapping[str, tuple[int, ...]]) -> list[Trial] | None:
        """Tries every size of some dims, all of these dims at once; None where the stage refuses one."""
        # Small sizes of one dim meet large ones of the next, so that no two of them grow alike.
        rotations = {
            name: sizes[::-1] if place % 2 else (*sizes[place:], *sizes[:place])
            for place, (name, sizes) in enumerate(columns.items())
            if sizes
        }
        samples: list[Trial] = []
        for turn in range(max(map(len, rotations.values()), default=0)):
            sample = self._try(
                {**base, **{name: sizes[turn % len(sizes)] for name, sizes in rotations.items()}}
            )
            if sample is None:
                return None
            samples.append(sample)
        return samples

    def _is_simple(self, samples: list[Trial]) -> bool:
        """Tells whether each size that a stage gives is always the same, or always that of one name."""
        forms = {
            (result.returns, tuple((key, len(shape), dtype) for key, shape, dtype in result.outputs))
            for _, result in samples
        }
        courses = [tuple(at[name] for at, _ in samples) for name in self.names]
        varied = [course for course in courses if len(set(course)) > 1]
        # Of two names that grew alike nobody could tell which one a size follows.
        if len(forms) > 1 or len(set(varied)) < len(varied):
            return False
        # One column for each axis of each output, over all samples; a size of two names would need all combinations to
        # show its law.
        columns = zip(
            *([size for _, shape, _ in result.outputs for size in shape] for _, result in samples),
            strict=True,
        )
        return all(
            len(set(column)) == 1
            or any(
                all(at[name] == size for (at, _), size in zip(samples, column, strict=True))
                for name in self.names
            )
            for column in columns
        )

    def _sweep(self, base: Sizes, name: str) -> Iterator[Trial]:
        """Tries the trial sizes of one dim, the others at their largest bucket."""
        buckets = self.buckets[name]
        sizes = trial_sizes(buckets)
        trials = [sample for size in sizes if (sample := self._try({**base, name: size})) is not None]
        yield from trials
        if len(trials) < len(sizes):
            rest = (size for size in more_sizes(buckets) if size not in sizes)
            yield from filter(None, (self._try({**base, name: size}) for size in rest))

    def _above(self, largest: Trial, name: str) -> Iterator[Trial]:
        """Tries sizes of a batch above its largest bucket; a far one only where the work is not done item by item."""
        base, outcome = largest
        for times in (1, 256):
            sample = self._try({**base, name: times * base[name] + 1})
            if sample is None:
                continue
            yield sample
            if sample[1].operations != outcome.operations:
                return

    def _joint(self, base: Sizes, names: list[str]) -> Iterator[Trial]:
        """Tries several dims at trial sizes at once, so that a size that hangs on two of them shows it."""
        if len(names) < 2:
            return
        sizes = {name: trial_sizes(self.buckets[name]) or self.buckets[name][-1:] for name in names}
        for turn in range(4):
            at = {
                name: trial_options[turn * (1 + place) % len(trial_options)]
                for place, (name, trial_options) in enumerate(sizes.items())
            }
            sample = self._try({**base, **at})
            if sample is not None:
                yield sample

    def _try(self, at: Sizes) -> Trial | None:
        """The result of the stage at these sizes; None where it, or a stage before it, refuses them."""
        outcome = self.attempt(at) if self._is_sized(at) else None
        return None if outcome is None else (at, outcome)

    def _is_sized(self, at: Sizes) -> bool:
        """Tells whether sizes that derive from names are known at these."""
        return all(
            not isinstance(dim, Derived) or dim.is_proven(at) for spec in self.specs for dim in spec.dims
        )

    def _second(self, base: Sizes, name: str) -> Trial:
        """An outcome at another size of one dim: the first that the stage takes."""
        size = base[name]
        first_error: RefusedError | None = None
        # Doubling comes first, as most layouts allow it; then neighbours, halves and multiples for stages that ask for
        # a divisor or a limit.
        for other in dict.fromkeys((2 * size, size + 1, size // 2, size - 1, size + 2, 3 * size)):
            at = {**base, name: other}
            if other < 1 or other == size or not self._is_sized(at):
                continue
            try:
                return at, self.run(at)
            except RefusedError as error:
                first_error = first_error or error
        raise PlanError(
            f"How dim {name!r} passes through stage {self.stage.name!r} (call {self.call!r}) is found by trying a "
            f"second size, but it takes only {size}: {first_error}. Declare what it gives: "
            f"outputs={{'output': TensorSpec(...)}}.",
            stage=self.stage.name,
            call=self.call,
            dim=name,
        ) from first_error


def unlike(one: AnyDim, other: AnyDim, largest: Mapping[str, int]) -> str:
    """Tells at which size two dims differ that are equal at all buckets, e.g. `` at n=3``; empty: at none known.

    Args:
        one: A dim.
        other: Another.
        largest: The largest bucket of each name.
    """
    for rows in (dim for dim in (one, other) if isinstance(dim, Derived)):
        for row, _ in rows.table:
            at = {**largest, **dict(zip(rows.names, row, strict=True))}
            try:
                if size_of(one, at) != size_of(other, at):
                    names = dict.fromkeys((*dim_names(one), *dim_names(other)))
                    return show_sizes({name: at[name] for name in names})
            except KeyError:
                continue
    return ""

"""What a plan costs at given sizes: copies, bytes, dispatches, padding and peak memory.

The counts of ``Plan.summary`` and ``Session.stats`` both come from here, so that they agree by construction. A
*tally* is a running total; it walks steps as the runner does, chunks and skipped regions included.

Counted: an upload for each tensor and rank, a download for each tensor (rank 0; a gather is one for each rank), a
dispatch for each stage call and for each adapter that is a program of its own. Not counted: weights, warm-up,
constants, and anything in host memory, where no link is crossed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import PlanError, nearest
from orchestrator.plan.chunks import Run, combine, misfit
from orchestrator.plan.model import DimPlan, Plan, PlannedLoop, PlannedValue, Step
from orchestrator.plan.programs import place_of
from orchestrator.plan.steps import spent_starts, split_entry, walk
from orchestrator.specs import TensorSpec, size_of

__all__ = ["Counter", "Tally", "constant_bytes", "request_sizes", "summarise"]


@dataclass
class Tally:
    """A running total of counts; see the module for what is counted."""

    uploads: int = 0
    upload_bytes: int = 0
    downloads: int = 0
    download_bytes: int = 0
    dispatches: int = 0
    padded: int = 0
    entered: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally, times: int = 1) -> None:
        """Adds another tally, so many times; peaks combine by maximum."""
        for name in (
            "uploads",
            "upload_bytes",
            "downloads",
            "download_bytes",
            "dispatches",
            "padded",
            "entered",
        ):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for device, peak in other.peak_bytes.items():
            self.peak_bytes[device] = max(self.peak_bytes.get(device, 0), peak)

    def as_dict(self) -> dict[str, Any]:
        """Returns the public counts."""
        return {
            "uploads": self.uploads,
            "upload_bytes": self.upload_bytes,
            "downloads": self.downloads,
            "download_bytes": self.download_bytes,
            "dispatches": self.dispatches,
            "pad_waste": self.padded / self.entered if self.entered else 0.0,
            "peak_bytes": dict(self.peak_bytes),
        }


def request_sizes(plan: Plan, sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns the real size of every name, a missing one at its largest bucket.

    Raises:
        PlanError: An unknown name, or a size that cannot run.
    """
    known = {dim.name: dim for dim in plan.dims}
    if not isinstance(sizes, Mapping):
        raise PlanError(f"Sizes are a dict of dim to size, not {sizes!r}.")
    for name, size in sizes.items():
        if name not in known:
            raise PlanError(f"The plan has no dim {name!r}.{nearest(name, known)}", dim=name)
        _check_size(known[name], size)
    return {name: sizes.get(name, dim.buckets[-1]) for name, dim in known.items()}


def _check_size(dim: DimPlan, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0 or (size == 0 and not dim.born):
        raise PlanError(
            f"A size of dim {dim.name!r} is a positive int, not {size!r}.", dim=dim.name, size=size
        )
    fault = misfit(dim, size)
    if fault == "large":
        raise PlanError(
            f"Dim {dim.name!r} at {size} is above its largest bucket {dim.buckets[-1]}, and cannot run in chunks.",
            dim=dim.name,
            size=size,
        )
    if fault == "odd":
        raise PlanError(
            f"Dim {dim.name!r} at {size} is no bucket {dim.buckets}, and an input of that dim has no pad rule.",
            dim=dim.name,
            size=size,
        )


def summarise(plan: Plan, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns the counts of one request at these sizes."""
    return Counter(plan).request(request_sizes(plan, sizes)).as_dict()


def constant_bytes(plan: Plan, device: str) -> int:
    """Returns the bytes that staged constants take on a device, one rank."""
    memory = next(group.memory for group in plan.groups if group.device == device)
    specs = [value.spec for value in plan.values if value.constant and value.memory == memory]
    return sum(spec.nbytes({}) for spec in specs if isinstance(spec, TensorSpec))


def iterations(plan: Plan, loop: PlannedLoop, run: Run) -> int:
    """Returns how often a loop's body runs: what the run counted, where the loop decides it, else what sizes say."""
    if loop.dim:
        return run.real.get(total_key(loop.dim), run.real[loop.dim])
    bounds = [] if loop.max_steps is None else [loop.max_steps]
    for whole, _ in loop.slices[:1]:
        spec = plan.values[whole].spec
        assert isinstance(spec, TensorSpec)
        bounds.append(size_of(spec.dims[0], run.real))
    return min(bounds)


def total_key(dim: str) -> str:
    """Returns the name under which a run adds up the iterations of a loop that decides them."""
    return f"{dim}, in all"


class Counter:
    """Counts runs of one plan.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.entry, self.rest = split_entry(plan)
        self.outer = tuple(dim for dim in plan.dims if not dim.born)
        self._ranks = {group.device: group.ranks for group in plan.groups if not group.host_memory}
        self._dims = {dim.name: dim for dim in plan.dims}

    def request(self, real: Mapping[str, int]) -> Tally:
        """Counts one request.

        Args:
            real: The size of every name; every chunk of the request gives birth to the same sizes.
        """
        born = {dim.name: real[dim.name] for dim in self.plan.dims if dim.born}
        outer = [dim for dim in self.outer if dim.name in real]
        return self.runs(combine(outer, real, Run(real=born)))

    def runs(self, runs: Iterable[Run]) -> Tally:
        """Counts one request, given the sizes of each of its runs."""
        total = Tally()
        prepared: set[tuple[str, tuple[int, ...]]] = set()
        for run in runs:
            total.add(self.run(run, prepared))
        return total

    def run(self, run: Run, prepared: set[tuple[str, tuple[int, ...]]]) -> Tally:
        """Counts one run of the steps.

        Args:
            run: Sizes of the run, real sizes of born dims included.
            prepared: Inputs (and which chunk of them) that earlier runs prepared; added to.
        """
        tally = Tally()
        for name, spec in self.plan.inputs:
            key = (name, run.key(spec.names if isinstance(spec, TensorSpec) else ()))
            if key not in prepared:
                prepared.add(key)
                self._steps(self.entry[name], run, tally)
        self._steps(self.rest, run, tally)
        tally.peak_bytes = Peaks(self.plan).run(run)
        return tally

    def _steps(self, steps: Iterable[Step], run: Run, tally: Tally) -> None:
        for step in steps:
            if step.op == "call":
                tally.dispatches += 1
            elif step.op == "adapt":
                self._adapt(step, run, tally)
            elif step.loop is not None:
                inner = Tally()
                self._steps(step.body, run, inner)
                tally.add(inner, iterations(self.plan, step.loop, run))
            else:
                for part in combine([self._dims[name] for name in step.dims], run.real, run):
                    self._steps(step.body, part, tally)

    def _adapt(self, step: Step, run: Run, tally: Tally) -> None:
        source, target = (self.plan.values[index] for index in (step.inputs[0], step.outputs[0]))
        kind = step.adapter.kind if step.adapter else ""
        if not isinstance(source.spec, TensorSpec) or not isinstance(target.spec, TensorSpec):
            return
        if kind == "upload" and step.device in self._ranks:
            ranks = self._ranks[step.device]
            tally.uploads += ranks
            tally.upload_bytes += ranks * source.spec.nbytes(run.sizes(source))
        elif kind in ("download", "gather") and step.device in self._ranks:
            copies = 1 if kind == "download" else self._ranks[step.device]
            tally.downloads += copies
            tally.download_bytes += copies * source.spec.nbytes(run.sizes(source))
        tally.dispatches += place_of(step) == "program"
        if kind == "pad":
            size = target.spec.numel(run.sizes(target))
            tally.entered += size
            tally.padded += size - source.spec.numel(run.sizes(source))


class Peaks:
    """Replays the life of every value and finds the most bytes alive at once in each memory, one rank.

    A slice or cut is a view and shares its source's storage; so does a pad that has nothing to add. Constants
    and weights are not values of a request. What a program gives lives in a buffer that is there since load; it is
    counted in :attr:`Plan.buffers`.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._dims = {dim.name: dim for dim in plan.dims}
        buffered = {group.device for group in plan.groups if group.compiled and group.output_buffers}
        self._owned = {
            index
            for step in walk(plan.steps)
            if (step.program and step.device in buffered) or place_of(step) in ("producer", "consumer")
            for index in step.outputs
        }

    def run(self, run: Run) -> dict[str, int]:
        """Returns the peak of each device group at these sizes."""
        self._alive: dict[str, int] = {}
        self._peak: dict[str, int] = {}
        self._root: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        for index in range(len(self.plan.inputs)):
            self._make(index, index, run)
        self._steps(self.plan.steps, run)
        return {group.device: self._peak.get(group.memory, 0) for group in self.plan.groups}

    def _bytes(self, value: PlannedValue, run: Run) -> int:
        if value.constant or not isinstance(value.spec, TensorSpec):
            return 0
        return value.spec.nbytes(run.sizes(value))

    def _own_bytes(self, index: int, run: Run) -> int:
        """Bytes that come and go with a value."""
        return 0 if index in self._owned else self._bytes(self.plan.values[index], run)

    def _make(self, index: int, root: int, run: Run) -> None:
        self._root[index] = root
        self._holders[root] = self._holders.get(root, 0) + 1
        if root == index:
            value = self.plan.values[index]
            self._alive[value.memory] = self._alive.get(value.memory, 0) + self._own_bytes(index, run)
            self._peak[value.memory] = max(self._peak.get(value.memory, 0), self._alive[value.memory])

    def _drop(self, index: int, run: Run) -> None:
        root = self._root.pop(index, None)
        if root is None:
            return
        self._holders[root] -= 1
        if not self._holders[root]:
            value = self.plan.values[root]
            self._alive[value.memory] -= self._own_bytes(root, run)

    def _steps(self, steps: Iterable[Step], run: Run) -> None:
        for step in steps:
            if step.op == "region":
                self._region(step, run)
            elif step.loop is not None:
                self._loop(step, step.loop, run)
            else:
                for index in step.outputs:
                    self._make(index, self._source(step, index, run), run)
            for index in step.frees:
                self._drop(index, run)

    def _source(self, step: Step, index: int, run: Run) -> int:
        """The value whose storage an output shares: itself, or an adapter's input."""
        if step.op != "adapt" or step.adapter is None:
            return index
        source, target = self.plan.values[step.inputs[0]], self.plan.values[index]
        view = step.adapter.kind in ("slice", "cut") or step.adapter.place == "consumer"
        view = view or (step.adapter.kind == "pad" and self._bytes(source, run) == self._bytes(target, run))
        return self._root.get(step.inputs[0], index) if view else index

    def _loop(self, step: Step, loop: PlannedLoop, run: Run) -> None:
        """Replays the first iteration, and the last one with all that was collected by then."""
        count = iterations(self.plan, loop, run)
        starts = [start for start, _, _ in loop.carries]
        for start, head, _ in loop.carries:
            self._make(head, self._root.get(start, head), run)
        for index in spent_starts(step):
            self._drop(index, run)
        passes = list(dict.fromkeys((0, count - 1))) if count else []
        for at in passes:
            if at:
                self._hand_over(loop, run)
            for whole, part in loop.slices:
                self._make(part, self._root.get(whole, part), run)
            self._hold(loop, max(0, at - 1), run)
            self._steps(step.body, run)
            self._hold(loop, -max(0, at - 1), run)
        last = [following for _, _, following in loop.carries] if count else starts
        for final, index in zip(step.outputs, last, strict=False):
            self._make(final, self._root.get(index, final), run)
        for index in {*loop.heads, *loop.ends} - set(starts):
            for _ in passes:
                self._drop_again(index, run)
        for index in step.outputs[len(loop.carries) :]:
            self._make(index, index, run)

    def _hand_over(self, loop: PlannedLoop, run: Run) -> None:
        """What an iteration gave becomes the next one's carry."""
        for _, head, following in loop.carries:
            if following not in loop.heads:
                self._drop(head, run)
                self._drop(following, run)
                self._make(head, head, run)

    def _hold(self, loop: PlannedLoop, times: int, run: Run) -> None:
        """Adds what earlier iterations collected."""
        for index in loop.collects:
            memory = self.plan.values[index].memory
            self._alive[memory] = self._alive.get(memory, 0) + times * self._own_bytes(index, run)

    def _drop_again(self, index: int, run: Run) -> None:
        """Drops a value that may have been made once in each pass."""
        if index in self._root or self._holders.get(index):
            self._root.setdefault(index, index)
            self._drop(index, run)

    def _region(self, step: Step, run: Run) -> None:
        largest = max(
            combine([self._dims[name] for name in step.dims], run.real, run),
            default=None,
            key=lambda part: sum(part.bucket.values()),
        )
        if largest is not None:
            self._steps(step.body, largest)
        for index in step.outputs:
            self._drop(index, largest or run)
            self._make(index, index, run)

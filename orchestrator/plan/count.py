"""What a plan costs at given sizes: copies, bytes, dispatches, padding and peak memory.

The counts of ``Plan.summary`` and ``Session.stats`` both come from here, so that they agree by construction. A
*tally* is a running total; it walks steps as the runner does, chunks and skipped regions included.

Counted: an upload for each tensor and rank, a download for each tensor (rank 0; a gather is one for each rank), both
also for operations of a stage that its device hands to the host, and a dispatch for each stage call and for each
adapter that is a program of its own. Not counted: weights, warm-up, constants, and anything in host memory, where no
link is crossed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import PlanError, nearest
from orchestrator.plan.chunks import SizeAssignment, bucket_for, size_error, ways_out
from orchestrator.plan.iterations import region_parts, repeats
from orchestrator.plan.parts import Parts, split
from orchestrator.plan.peak_memory import ChunkPeaks, Peaks
from orchestrator.plan.programs import place_of
from orchestrator.plan.records import DimPlan, PlanData
from orchestrator.plan.run_record import RunRecord
from orchestrator.plan.steps import AdaptStep, CallStep, LoopLikeStep, RegionStep, Step
from orchestrator.specs import StepsDim, TensorSpec

__all__ = ["Counter", "Tally", "constant_bytes", "cut_dims", "request_sizes", "summarise"]


@dataclass
class Tally:
    """A running total of counts; see the module for what is counted."""

    uploads: int = 0
    upload_bytes: int = 0
    downloads: int = 0
    download_bytes: int = 0
    dispatches: int = 0
    pad_elements: int = 0
    all_elements: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally, times: int = 1) -> None:
        """Adds another tally, so many times; peaks combine by maximum."""
        for name in (
            "uploads",
            "upload_bytes",
            "downloads",
            "download_bytes",
            "dispatches",
            "pad_elements",
            "all_elements",
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
            "pad_waste": self.pad_elements / self.all_elements if self.all_elements else 0.0,
            "peak_bytes": dict(self.peak_bytes),
        }


def request_sizes(plan: PlanData, sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns the size of every name, a missing one at its largest bucket.

    Raises:
        PlanError: An unknown name, or a size that cannot run.
    """
    dims = {dim.name: dim for dim in plan.dims}
    if not isinstance(sizes, Mapping):
        raise PlanError(f"Sizes are a dict of dim to size, not {sizes!r}.")
    steps_dims = {str(dim.name): dim.name for dim in plan.dims if isinstance(dim.name, StepsDim)}
    by_dim = {}
    for text, size in sizes.items():
        name = text if text in dims else steps_dims.get(text, text)
        if name not in dims:
            raise PlanError(f"The plan has no dim {text!r}.{nearest(text, dims)}", dim=text)
        _check_size(dims[name], size)
        by_dim[name] = size
    return {name: by_dim.get(name, dim.buckets[-1]) for name, dim in dims.items()}


def _check_size(dim: DimPlan, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0 or (size == 0 and not dim.decided_by):
        raise PlanError(
            f"A size of dim {dim.name!r} is a positive int, not {size!r}.", dim=dim.name, size=size
        )
    # The size is one by itself; now whether this plan can run it.
    fault = size_error(dim, size)
    if fault == "large":
        raise PlanError(
            f"Dim {dim.name!r} at {size} is above its largest bucket {dim.buckets[-1]}. {ways_out(dim, size)}",
            dim=dim.name,
            size=size,
        )
    if fault == "odd":
        raise PlanError(
            f"Dim {dim.name!r} at {size} is no bucket {dim.buckets}, and an input of that dim has no pad rule.",
            dim=dim.name,
            size=size,
        )


def summarise(plan: PlanData, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns the counts of one request at these sizes."""
    return Counter(plan).request(RunRecord(request_sizes(plan, sizes))).as_dict()


def constant_bytes(plan: PlanData, device: str) -> int:
    """Returns the bytes that staged constants take on a device, one rank."""
    memory = next(group.memory for group in plan.groups if group.device == device)
    specs = [value.spec for value in plan.values if value.constant and value.memory == memory]
    sizes = {dim.name: dim.buckets[-1] for dim in plan.dims}
    return sum(spec.nbytes(sizes) for spec in specs if isinstance(spec, TensorSpec))


class Counter:
    """Counts runs of one plan.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: PlanData) -> None:
        self.plan = plan
        self.outer = tuple(dim for dim in plan.dims if not dim.decided_by)
        self._ranks = {group.device: group.ranks for group in plan.groups if not group.host_memory}
        self._dims = {dim.name: dim for dim in plan.dims}
        self._calls = {call.name: call for call in plan.calls}

    def request(self, record: RunRecord) -> Tally:
        """Counts one request.

        Args:
            record: The size of every name, and what was decided on the way if it has run; every chunk of the request
                gives birth to the same sizes.
        """
        sizes = record.sizes
        cut = cut_dims(self.outer, sizes)
        dims = [dim for dim in self.outer if dim.name in sizes]
        if not cut:
            bucket = {
                dim.name: sizes[dim.name] if dim.unbounded else bucket_for(sizes[dim.name], dim.buckets) or 0
                for dim in dims
            }
            run = SizeAssignment(sizes, bucket, record=record)
            tally = self.steps(self.plan.steps, run)
            tally.peak_bytes = Peaks(self.plan).run(run)
            return tally
        # Above the largest bucket: parts of the plan for each chunk; what stages decide is the same in all of them.
        parts = split(self.plan, cut)
        inner_sizes = {
            name: size for name, size in sizes.items() if name not in {dim.name for dim in self.outer}
        }
        return self.chunks(parts, record, parts.runs(dims, sizes, SizeAssignment(inner_sizes)))

    def chunks(self, parts: Parts, record: RunRecord, runs: Iterable[tuple[int, SizeAssignment]]) -> Tally:
        """Counts one request in chunks.

        Args:
            parts: What runs.
            record: Of the whole request.
            runs: Which part ran, by number, and at which sizes.
        """
        counter = Counter(parts.plan)
        peaks = ChunkPeaks(parts, record)
        total = Tally()
        for number, run in runs:
            total.add(counter.steps(parts.items[number].steps, run))
            peaks.part(parts.items[number], run)
        total.peak_bytes = peaks.join()
        return total

    def steps(self, steps: Iterable[Step], run: SizeAssignment) -> Tally:
        """Counts some steps, once."""
        tally = Tally()
        self._steps(steps, run, tally)
        return tally

    def _steps(self, steps: Iterable[Step], run: SizeAssignment, tally: Tally, times: int = 1) -> None:
        for step in steps:
            match step:
                case CallStep():
                    tally.dispatches += times
                    self._call(step, run, tally, times)
                case AdaptStep():
                    one = Tally()
                    self._adapt(step, run, one)
                    tally.add(one, times)
                case LoopLikeStep():
                    # ``times`` goes in, not on top: what a record says of a loop counts all times it was come to.
                    for part, count in repeats(self.plan, step, run, times):
                        if count:
                            self._steps(step.body, part, tally, count)
                case RegionStep():
                    for part in region_parts([self._dims[name] for name in step.dims], step, run):
                        self._steps(step.body, part, tally, times)

    def _call(self, step: CallStep, run: SizeAssignment, tally: Tally, times: int) -> None:
        """Counts what a call does on the host: its operations that the device lacks."""
        item = self._calls[step.name].host_operations_at(run.bucket)
        if item is not None:
            tally.uploads += times * item.uploads
            tally.upload_bytes += times * item.upload_bytes
            tally.downloads += times * item.downloads
            tally.download_bytes += times * item.download_bytes

    def _adapt(self, step: AdaptStep, run: SizeAssignment, tally: Tally) -> None:
        source, target = (self.plan.values[index] for index in (step.inputs[0], step.outputs[0]))
        kind = step.adapter.kind
        if not isinstance(source.spec, TensorSpec) or not isinstance(target.spec, TensorSpec):
            return
        # A link is crossed once for each rank on the way up; rank 0 alone comes down, but where parts are joined.
        if kind == "upload" and step.device in self._ranks:
            ranks = self._ranks[step.device]
            tally.uploads += ranks
            tally.upload_bytes += ranks * source.spec.nbytes(run.sizes(source))
        elif kind in ("download", "gather") and step.device in self._ranks:
            copies = 1 if kind == "download" else self._ranks[step.device]
            tally.downloads += copies
            tally.download_bytes += copies * source.spec.nbytes(run.sizes(source))
        tally.dispatches += place_of(step) == "program"
        # Padding is counted where it is added: over all elements that come out of a pad.
        if kind == "pad":
            size = target.spec.numel(run.sizes(target))
            tally.all_elements += size
            tally.pad_elements += size - source.spec.numel(run.sizes(source))


def cut_dims(dims: Iterable[DimPlan], sizes: Mapping[str, int]) -> frozenset[str]:
    """Returns the dims that need more than one chunk."""
    return frozenset(
        dim.name
        for dim in dims
        if dim.name in sizes and not dim.unbounded and sizes[dim.name] > dim.buckets[-1]
    )

"""Trying one call: its stage at the bucket of each padded dim, with the padding that comes its way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from orchestrator.graph import Graph, NodeKey, until_port
from orchestrator.plan.model import DimPlan, Plan, PlannedCall
from orchestrator.promises.batches import Axes
from orchestrator.promises.measure import difference, span
from orchestrator.promises.padding import has, in_parts, kept_of, next_bucket, others, overlaid, scrambled
from orchestrator.promises.report import CheckRow
from orchestrator.promises.targets import Targets
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

__all__ = ["UNSTEADY", "CallTrial", "Trials", "first_line"]

#: By dim: tensors by port, padded along that dim alone.
Padded = Mapping[str, Mapping[str, torch.Tensor]]

UNSTEADY = "it gives something else each time: it draws random numbers or keeps state"
_READS = "it reads the padding, which the stages before fill so that it does not matter"


class Trials:
    """What is tried in one check, and what was found.

    Args:
        graph: The graph.
        plan: Its plan.
        targets: What runs the stages.
        tolerance: The largest relative difference that counts as equal; None: by dtype.

    Attributes:
        rows: What was found, in the order of running.
    """

    def __init__(self, graph: Graph, plan: Plan, targets: Targets, tolerance: float | None) -> None:
        self.targets = targets
        self.tolerance = tolerance
        self.rows: list[CheckRow] = []
        self._filled = {
            edge.target
            for edge in plan.edges
            if any(adapter.kind == "pad" and adapter.to_bucket for adapter in edge.adapters)
        }
        pads = [adapter for edge in plan.edges for adapter in edge.adapters if adapter.rule == "repeat_first"]
        self._repeated = {name for adapter in pads for name in TensorSpec(adapter.dims).names}
        ends = {
            (NodeKey("exit", loop.name), until_port(loop.until))
            for loop in graph.loops.values()
            if loop.until
        }
        self._enders: dict[tuple[str, str], bool] = {}
        for edge in graph.edges:
            if edge.source.kind == "call":
                key = (edge.source.name, edge.source_port)
                only = (edge.target, edge.target_port) in ends
                self._enders[key] = only and self._enders.get(key, True)

    def is_filled(self, call: str, port: str) -> bool:
        """Tells whether the padding of what a port reads is filled right there, by a rule."""
        return f"{call}.{port}" in self._filled

    def repeats(self, name: str) -> bool:
        """Tells whether something is padded along a dim with what is there already."""
        return name in self._repeated

    def only_ends(self, call: str, port: str) -> bool:
        """Tells whether an output is read by nothing but ``until``: each chunk ends when its own items have."""
        return self._enders.get((call, port), False)


@dataclass(frozen=True)
class CallTrial:
    """One call with its exact values.

    Attributes:
        trials: The check it belongs to.
        stage: The stage.
        planned: The call in the plan.
        fed: Exact values by input port.
        given: What the call gives for them, by output port.
        sizes: Exact sizes of named dims.
        unsteady: It gives something else each time.
    """

    trials: Trials
    stage: Stage
    planned: PlannedCall
    fed: Mapping[str, Any]
    given: Mapping[str, Any]
    sizes: Mapping[str, int]
    unsteady: bool

    def pads(
        self, dims: list[DimPlan], padded: Padded, *, watched: bool
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Tries the bucket of each padded dim; returns what the outputs look like there: by port, by dim."""
        made: dict[str, dict[str, torch.Tensor]] = {}
        for dim in dims:
            if not any(has(spec, dim.name) for _, spec in self.planned.inputs):
                continue
            for port, value in self._pad(dim, padded.get(dim.name, {}), watched=watched).items():
                exact = self.given.get(port)
                tensors = isinstance(value, torch.Tensor) and isinstance(exact, torch.Tensor)
                if tensors and value.shape != exact.shape:  # type: ignore[union-attr]
                    made.setdefault(port, {})[dim.name] = value
        return made

    def _pad(self, dim: DimPlan, padded: Mapping[str, torch.Tensor], *, watched: bool) -> Mapping[str, Any]:
        """Tries the bucket of one dim; returns what comes out, by port."""
        promise, size = f"pad of {dim.name!r}", self.sizes.get(dim.name)
        bucket = next_bucket(dim, size) if size else None
        versions, unknown = self._versions(dim, padded)
        if bucket is None or not versions or unknown:
            why = f"{size} is the largest bucket" if size else "there is no item"
            why = why if bucket is None else "nothing that it reads is padded"
            self.note(promise, None, why=f"what is kept of {unknown!r} is not known" if unknown else why)
            return {}
        at = f"{dim.name} {size} in {bucket}"
        try:
            found = self.run({**self.fed, **versions})
        except Exception as error:
            self.note(promise, False, sizes=at, why=f"it raises {first_line(error)}")
            return {}
        if self.unsteady:
            self.note(promise, None, sizes=at, why=UNSTEADY)
            return found
        holds, error_, port = self.worst(self._kept(found, self.given))
        why = "" if holds else f"in {port!r}"
        derived = Axes.of(self.planned.inputs, dim.name).derived
        if holds and watched and not derived and self._reads(versions, list(versions)):
            why = (
                _READS
                if self._reads(versions, [port for port in versions if not self._is_filled(port)])
                else ""
            )
            holds, error_, why = self._other_values(dim, versions) or (holds, error_, why)
        self.note(promise, holds, error=error_, sizes=at, why=why)
        return found

    def _versions(
        self, dim: DimPlan, padded: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], str]:
        """What a call reads at a bucket, what is kept put back to the exact values; and a port where that fails.

        Of a size that only follows from the dim it is known where the kept elements are only if they are equal there.
        """
        derived = Axes.of(self.planned.inputs, dim.name).derived
        versions: dict[str, torch.Tensor] = {}
        for port, value in padded.items():
            exact = self.fed[port]
            if port in derived and not self._is_kept(value, exact):
                return {}, port
            whole = value if port in derived else overlaid(value, exact)
            versions |= {} if whole is None else {port: whole}
        return versions, ""

    def _is_kept(self, version: torch.Tensor, exact: torch.Tensor) -> bool:
        return self._where_kept(version, exact, 0.0)[0]

    def _where_kept(self, version: torch.Tensor, exact: torch.Tensor, floor: float) -> tuple[bool, float]:
        """Compares what is kept: the first elements, or the first ones of each part of a size that follows."""
        first = self.difference(kept_of(version, exact), exact, floor)
        parts = () if first[0] else (self.difference(part, exact, floor) for part in in_parts(version, exact))
        return next((other for other in parts if other[0]), first)

    def _kept(self, found: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[bool, float, str]]:
        """Compares what is kept of each output at a bucket."""
        floor = span(self.fed)
        for port, exact in given.items():
            version = found.get(port)
            if not isinstance(exact, torch.Tensor) or not isinstance(version, torch.Tensor):
                yield (*self.difference(version, exact, floor), port)
                continue
            yield (*self._where_kept(version, exact, floor), port)

    def _reads(self, versions: Mapping[str, torch.Tensor], ports: list[str]) -> bool:
        """Tells whether what is kept depends on what is in the padding of some ports."""
        other = {port: scrambled(versions[port], self.fed[port], seed) for seed, port in enumerate(ports)}
        if not other:
            return False
        try:
            found = self.run({**self.fed, **versions, **other})
        except Exception:
            return True
        return not self.worst(self._kept(found, self.given))[0]

    def _is_filled(self, port: str) -> bool:
        return self.trials.is_filled(self.planned.name, port)

    def _other_values(
        self, dim: DimPlan, versions: Mapping[str, torch.Tensor]
    ) -> tuple[bool, float, str] | None:
        """Tries a stage that reads its padding on other values of the same range, beside the same padding.

        A maximum is right beside zeros while there is something above zero. Where a rule repeats what is there, the
        padding would be another one, and nothing is tried.
        """
        if self.trials.repeats(dim.name):
            return None
        for values in others(self.fed):
            padded = {port: overlaid(version, values[port]) for port, version in versions.items()}
            try:
                exact = self.run(values)
                found = self.run(
                    {**values, **{port: value for port, value in padded.items() if value is not None}}
                )
            except Exception:
                continue
            holds, error, port = self.worst(self._kept(found, exact))
            if not holds:
                return False, error, f"in {port!r}, for other values of the same range"
        return None

    def run(self, fed: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the stage gives for other values by port."""
        return self.trials.targets.run(self.stage, self.planned.device, fed)

    def difference(self, given: Any, expected: Any, floor: float) -> tuple[bool, float]:
        """Compares within the check's tolerance."""
        return difference(given, expected, self.trials.tolerance, floor)

    def worst(self, parts: Iterable[tuple[bool, float, str]]) -> tuple[bool, float, str]:
        """Returns the worst of several comparisons: whether it is equal, the error, and the port."""
        worst: tuple[bool, float, str] = (True, 0.0, "")
        for holds, error, port in parts:
            if (not holds, error) > (not worst[0], worst[1]):
                worst = (holds, error, port)
        return worst

    def note(self, promise: str, holds: bool | None, **more: Any) -> None:
        """Adds a row."""
        self.trials.rows.append(replace(CheckRow(self.stage.name, promise, holds), **more))


def first_line(error: Exception) -> str:
    """Returns the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"

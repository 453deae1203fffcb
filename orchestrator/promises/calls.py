"""Trying the promises at one call: its stage on padded values, on parts of a batch, on a batch in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from orchestrator.graph import Graph, NodeKey, ending
from orchestrator.plan.model import DimPlan, Plan, PlannedCall
from orchestrator.promises.batches import Axes, Pick, chunk_of, enlarged, is_uniform, picks
from orchestrator.promises.measure import difference, span
from orchestrator.promises.padding import has, in_parts, kept_of, next_bucket, others, overlaid, scrambled
from orchestrator.promises.report import CheckRow
from orchestrator.promises.targets import Targets
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

__all__ = ["CallTrial", "Trials"]

#: By dim: tensors by port, padded along that dim alone.
Padded = Mapping[str, Mapping[str, torch.Tensor]]

_UNSTEADY = "it gives something else each time: it draws random numbers or keeps state"
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
            (NodeKey("leave", loop.name), ending(loop.until)) for loop in graph.loops.values() if loop.until
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
        whole = {port: overlaid(value, self.fed[port]) for port, value in padded.items()}
        versions = {port: value for port, value in whole.items() if value is not None}
        if bucket is None or not versions:
            largest = f"{size} is the largest bucket" if size else "there is no item"
            self._note(promise, None, why=largest if bucket is None else "nothing that it reads is padded")
            return {}
        at = f"{dim.name} {size} in {bucket}"
        try:
            found = self._run({**self.fed, **versions})
        except Exception as error:
            self._note(promise, False, sizes=at, why=f"it raises {_line(error)}")
            return {}
        if self.unsteady:
            self._note(promise, None, sizes=at, why=_UNSTEADY)
            return found
        holds, error_, port = self._worst(self._kept(found, self.given))
        why = "" if holds else f"in {port!r}"
        if holds and watched and self._reads(versions, list(versions)):
            why = (
                _READS
                if self._reads(versions, [port for port in versions if not self._is_filled(port)])
                else ""
            )
            holds, error_, why = self._other_values(dim, versions) or (holds, error_, why)
        self._note(promise, holds, error=error_, sizes=at, why=why)
        return found

    def _kept(self, found: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[bool, float, str]]:
        """Compares what is kept of each output at a bucket."""
        floor = span(self.fed)
        for port, exact in given.items():
            version = found.get(port)
            if not isinstance(exact, torch.Tensor) or not isinstance(version, torch.Tensor):
                yield (*self._difference(version, exact, floor), port)
                continue
            holds, error = self._difference(kept_of(version, exact), exact, floor)
            others = (
                () if holds else (self._difference(part, exact, floor) for part in in_parts(version, exact))
            )
            yield (*next((other for other in others if other[0]), (holds, error)), port)

    def _reads(self, versions: Mapping[str, torch.Tensor], ports: list[str]) -> bool:
        """Tells whether what is kept depends on what is in the padding of some ports."""
        other = {port: scrambled(versions[port], self.fed[port], seed) for seed, port in enumerate(ports)}
        if not other:
            return False
        try:
            found = self._run({**self.fed, **versions, **other})
        except Exception:
            return True
        return not self._worst(self._kept(found, self.given))[0]

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
                exact = self._run(values)
                found = self._run(
                    {**values, **{port: value for port, value in padded.items() if value is not None}}
                )
            except Exception:
                continue
            holds, error, port = self._worst(self._kept(found, exact))
            if not holds:
                return False, error, f"in {port!r}, for other values of the same range"
        return None

    def batch(self, dim: DimPlan) -> None:
        """Tries parts of the batch along a dim, and the batch in another order."""
        reads, gives = Axes.of(self.planned.inputs, dim.name), Axes.of(self.planned.outputs, dim.name)
        axes = {
            port: axis for port, axis in reads.plain.items() if isinstance(self.fed.get(port), torch.Tensor)
        }
        if not axes and not reads.derived:
            return
        fed, whole, why = self.fed, self.given, self._untried(dim, reads, gives, axes)
        count = 0 if why else fed[next(iter(axes))].shape[next(iter(axes.values()))]
        if count and all(is_uniform(fed[port], axis) for port, axis in axes.items()):
            count = 3
            made = {
                port: enlarged(fed[port], axis, count, at) for at, (port, axis) in enumerate(axes.items())
            }
            fed = {**fed, **made}
            try:
                whole = self._run(fed)
            except Exception as error:
                why = f"all items of the request are equal, and a batch made of one raises {_line(error)}"
        for permuted in (False, True):
            promise = f"batch {dim.name!r} {'permuted' if permuted else 'in chunks'}"
            if why:
                self._note(promise, None, why=why)
                continue
            for pick in (pick for pick in picks(count) if pick.permuted == permuted):
                self._pick(promise, pick, count, (axes, gives.plain), fed, whole)

    def _untried(self, dim: DimPlan, reads: Axes, gives: Axes, axes: Mapping[str, int]) -> str:
        """Why a batch is not tried; empty: it can be."""
        derived = sorted({*reads.derived, *gives.derived})
        if self.unsteady:
            return _UNSTEADY
        if derived:
            return f"the size of {', '.join(map(repr, derived))} only follows from {dim.name!r}"
        if not axes:
            return "nothing that it reads is a tensor"
        port, axis = next(iter(axes.items()))
        return "" if self.fed[port].shape[axis] else "there is no item"

    def _pick(
        self,
        promise: str,
        pick: Pick,
        count: int,
        axes: tuple[Mapping[str, int], Mapping[str, int]],
        fed: Mapping[str, Any],
        whole: Mapping[str, Any],
    ) -> None:
        """Notes whether some items of a batch give what they give in the whole batch."""
        reads, gives = axes
        at = f"{count} in another order" if pick.permuted else f"{len(pick.items)} of {count}"
        part = {
            port: pick.of(value, reads[port]) if port in reads else chunk_of(value, pick, count)
            for port, value in fed.items()
        }
        try:
            found = self._run(part)
        except Exception as error:
            self._note(promise, False, sizes=at, why=f"it raises {_line(error)}")
            return
        expected = {
            port: pick.of(value, gives[port]) if port in gives else chunk_of(value, pick, count)
            for port, value in whole.items()
            if pick.permuted or not self.trials.only_ends(self.planned.name, port)
        }
        floor = span(fed)
        holds, error_, port = self._worst(
            (*self._difference(found.get(port), value, floor), port) for port, value in expected.items()
        )
        self._note(promise, holds, error=error_, sizes=at, why="" if holds else f"in {port!r}")

    def _run(self, fed: Mapping[str, Any]) -> dict[str, Any]:
        return self.trials.targets.run(self.stage, self.planned.device, fed)

    def _difference(self, given: Any, expected: Any, floor: float) -> tuple[bool, float]:
        return difference(given, expected, self.trials.tolerance, floor)

    def _worst(self, parts: Any) -> tuple[bool, float, str]:
        worst: tuple[bool, float, str] = (True, 0.0, "")
        for holds, error, port in parts:
            if (not holds, error) > (not worst[0], worst[1]):
                worst = (holds, error, port)
        return worst

    def _note(self, promise: str, holds: bool | None, **more: Any) -> None:
        self.trials.rows.append(replace(CheckRow(self.stage.name, promise, holds), **more))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"

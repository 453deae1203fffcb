"""Trying one call: its stage at the bucket of each padded dim, with the padding that comes its way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from orchestrator.difference import difference, span
from orchestrator.graph import CONDITION, Graph, NodeKey, until_port
from orchestrator.plan.model import Plan
from orchestrator.plan.records import DimPlan, PlannedCall
from orchestrator.promises.batches import Axes
from orchestrator.promises.padding import (
    has,
    in_parts,
    kept_of,
    next_bucket,
    other_values,
    overlay,
    scramble_padding,
)
from orchestrator.promises.report import CheckRow
from orchestrator.promises.stage_runner import StageRunner
from orchestrator.specs import TensorSpec
from orchestrator.stage import Stage

__all__ = ["UNSTEADY", "CallTrial", "CheckContext", "first_line"]

#: By dim: tensors by port, padded along that dim alone.
InputsByDim = Mapping[str, Mapping[str, torch.Tensor]]

UNSTEADY = "it gives something else each time: it draws random numbers or keeps state"
_READS = "it reads the padding, which the stages before fill so that it does not matter"


class CheckContext:
    """The facts of a plan that decide whether a trial counts, and the rows of one check.

    Args:
        graph: The graph.
        plan: Its plan.
        stage_runner: Runs the stages.
        tolerance: The largest relative difference that counts as equal; None: by dtype.

    Attributes:
        rows: Verdicts, in the order of running.
    """

    def __init__(self, graph: Graph, plan: Plan, stage_runner: StageRunner, tolerance: float | None) -> None:
        self.stage_runner = stage_runner
        self.tolerance = tolerance
        self.rows: list[CheckRow] = []
        self._padded_ports = {
            edge.target
            for edge in plan.edges
            if any(adapter.kind == "pad" and adapter.to_bucket for adapter in edge.adapters)
        }
        pads = [adapter for edge in plan.edges for adapter in edge.adapters if adapter.rule == "repeat_first"]
        self._repeat_dims = {name for adapter in pads for name in TensorSpec(adapter.dims).names}
        # An output is an ender if every edge out of it goes to an `until`, or says whether such a loop runs at all;
        # with one other reader it counts as a result.
        loops = [loop for loop in graph.loops.values() if loop.until]
        ends = {(NodeKey("exit", loop.name), until_port(loop.until)) for loop in loops}
        ends |= {(NodeKey("enter", loop.name), CONDITION) for loop in loops}
        self._enders: dict[tuple[str, str], bool] = {}
        for edge in graph.edges:
            if edge.source.kind == "call":
                key = (edge.source.name, edge.source_port)
                only = (edge.target, edge.target_port) in ends
                self._enders[key] = only and self._enders.get(key, True)

    def is_filled(self, call: str, port: str) -> bool:
        """Tells whether a port's padding is filled right there, by a rule."""
        return f"{call}.{port}" in self._padded_ports

    def repeats(self, name: str) -> bool:
        """Tells whether padding along a dim repeats elements that are there."""
        return name in self._repeat_dims

    def only_ends(self, call: str, port: str) -> bool:
        """Tells whether an output is read by nothing but ``until``: each chunk ends when its own items have."""
        return self._enders.get((call, port), False)


@dataclass(frozen=True)
class CallTrial:
    """One call with its exact values.

    Attributes:
        context: The check it belongs to.
        stage: The stage.
        plan_call: The call in the plan.
        inputs: Exact values by input port.
        outputs: Its outputs for them, by port.
        sizes: Exact sizes of named dims.
        unsteady: It gives something else each time.
    """

    context: CheckContext
    stage: Stage
    plan_call: PlannedCall
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    sizes: Mapping[str, int]
    unsteady: bool

    def pads(
        self, dims: list[DimPlan], padded_inputs: InputsByDim, *, is_tried: bool
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Tries the bucket of each padded dim; returns the outputs there: by port, by dim."""
        versions: dict[str, dict[str, torch.Tensor]] = {}
        for dim in dims:
            if not any(has(spec, dim.name) for _, spec in self.plan_call.inputs):
                continue
            for port, value in self._pad(dim, padded_inputs.get(dim.name, {}), is_tried=is_tried).items():
                exact = self.outputs.get(port)
                tensors = isinstance(value, torch.Tensor) and isinstance(exact, torch.Tensor)
                if tensors and value.shape != exact.shape:  # type: ignore[union-attr]
                    versions.setdefault(port, {})[dim.name] = value
        return versions

    def _pad(
        self, dim: DimPlan, padded_inputs: Mapping[str, torch.Tensor], *, is_tried: bool
    ) -> Mapping[str, Any]:
        """Tries the bucket of one dim; returns the outputs there, by port."""
        # 1. Is there a larger bucket, and is it known where the exact elements are in what is read there?
        promise, size = f"pad of {dim.name!r}", self.sizes.get(dim.name)
        bucket = next_bucket(dim, size) if size else None
        versions, unknown = self._versions(dim, padded_inputs)
        if bucket is None or not versions or unknown:
            why = f"{size} is the largest bucket" if size else "there is no item"
            why = why if bucket is None else "nothing that it reads is padded"
            self.note(promise, None, why=f"what is kept of {unknown!r} is not known" if unknown else why)
            return {}
        # 2. The stage runs on exact elements beside real padding; its exact outputs must come out among what it gives.
        at = f"{dim.name} {size} in {bucket}"
        try:
            outputs = self.run({**self.inputs, **versions})
        except Exception as error:
            self.note(promise, False, sizes=at, why=f"it raises {first_line(error)}")
            return {}
        if self.unsteady:
            self.note(promise, None, sizes=at, why=UNSTEADY)
            return outputs
        holds, largest_error, port = self.worst(self._compare_kept(outputs, self.outputs))
        why = "" if holds else f"in {port!r}"
        # 3. What holds may hold by luck: a stage that reads its padding is tried on other values beside it.
        derived_ports = Axes.of(self.plan_call.inputs, dim.name).derived_axes
        if holds and is_tried and not derived_ports and self._reads(versions, list(versions)):
            why = (
                _READS
                if self._reads(versions, [port for port in versions if not self._is_filled(port)])
                else ""
            )
            holds, largest_error, why = self._other_values(dim, versions) or (holds, largest_error, why)
        self.note(promise, holds, error=largest_error, sizes=at, why=why)
        return outputs

    def _versions(
        self, dim: DimPlan, padded_inputs: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], str]:
        """Returns the inputs of a call at a bucket, with the exact elements put back; and a port where that fails.

        Of a size that only follows from the dim it is known where the kept elements are only if they are equal there.
        """
        derived_ports = Axes.of(self.plan_call.inputs, dim.name).derived_axes
        versions: dict[str, torch.Tensor] = {}
        for port, value in padded_inputs.items():
            exact = self.inputs[port]
            if port in derived_ports and not self._is_kept(value, exact):
                return {}, port
            whole = value if port in derived_ports else overlay(value, exact)
            versions |= {} if whole is None else {port: whole}
        return versions, ""

    def _is_kept(self, version: torch.Tensor, exact: torch.Tensor) -> bool:
        return self._where_kept(version, exact, 0.0)[0]

    def _where_kept(self, version: torch.Tensor, exact: torch.Tensor, floor: float) -> tuple[bool, float]:
        """Compares the kept elements: the first, or the first of each part of a size that follows."""
        first = self.difference(kept_of(version, exact), exact, floor)
        parts = () if first[0] else (self.difference(part, exact, floor) for part in in_parts(version, exact))
        return next((other for other in parts if other[0]), first)

    def _compare_kept(
        self, padded_outputs: Mapping[str, Any], exact_outputs: Mapping[str, Any]
    ) -> Iterator[tuple[bool, float, str]]:
        """Compares the kept elements of each output at a bucket."""
        floor = span(self.inputs)
        for port, exact in exact_outputs.items():
            version = padded_outputs.get(port)
            if not isinstance(exact, torch.Tensor) or not isinstance(version, torch.Tensor):
                yield (*self.difference(version, exact, floor), port)
                continue
            yield (*self._where_kept(version, exact, floor), port)

    def _reads(self, versions: Mapping[str, torch.Tensor], ports: list[str]) -> bool:
        """Tells whether the kept elements depend on the padding of some ports."""
        other = {
            port: scramble_padding(versions[port], self.inputs[port], seed) for seed, port in enumerate(ports)
        }
        if not other:
            return False
        try:
            outputs = self.run({**self.inputs, **versions, **other})
        except Exception:
            return True
        return not self.worst(self._compare_kept(outputs, self.outputs))[0]

    def _is_filled(self, port: str) -> bool:
        return self.context.is_filled(self.plan_call.name, port)

    def _other_values(
        self, dim: DimPlan, versions: Mapping[str, torch.Tensor]
    ) -> tuple[bool, float, str] | None:
        """Tries a stage that reads its padding on other values of the same range, beside the same padding.

        A maximum is right beside zeros while there is something above zero. Where a rule repeats elements, the
        padding would be another one, and nothing is tried.
        """
        if self.context.repeats(dim.name):
            return None
        # A stage may refuse made-up values; that says nothing of its promise.
        for values in other_values(self.inputs):
            padded_inputs = {port: overlay(version, values[port]) for port, version in versions.items()}
            try:
                exact = self.run(values)
                outputs = self.run(
                    {**values, **{port: value for port, value in padded_inputs.items() if value is not None}}
                )
            except Exception:
                continue
            holds, error, port = self.worst(self._compare_kept(outputs, exact))
            if not holds:
                return False, error, f"in {port!r}, for other values of the same range"
        return None

    def run(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the outputs of the stage for other inputs."""
        return self.context.stage_runner.run(self.stage, self.plan_call.device, arguments)

    def difference(self, actual: Any, reference: Any, floor: float) -> tuple[bool, float]:
        """Compares within the check's tolerance."""
        return difference(actual, reference, self.context.tolerance, floor)

    def worst(self, parts: Iterable[tuple[bool, float, str]]) -> tuple[bool, float, str]:
        """Returns the worst of several comparisons: whether it is equal, the error, and the port."""
        worst: tuple[bool, float, str] = (True, 0.0, "")
        for holds, error, port in parts:
            if (not holds, error) > (not worst[0], worst[1]):
                worst = (holds, error, port)
        return worst

    def note(self, promise: str, holds: bool | None, **more: Any) -> None:
        """Adds a row."""
        self.context.rows.append(replace(CheckRow(self.stage.name, promise, holds), **more))


def first_line(error: Exception) -> str:
    """Returns the kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"

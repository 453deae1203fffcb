"""The contract of a stage; see :mod:`orchestrator.testing.contracts` for its use."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from orchestrator.difference import TOLERANCES
from orchestrator.graph import Graph
from orchestrator.pipeline import Pipeline
from orchestrator.plan import Plan
from orchestrator.plugin import PluginManager
from orchestrator.promises.check import check_promises
from orchestrator.promises.reference import run_reference
from orchestrator.specs import Dim, PortSpec, TensorSpec
from orchestrator.stage import Stage
from orchestrator.testing.compare import assert_same
from orchestrator.testing.pytest_plugin import make_plugins
from orchestrator.testing.record import recording

__all__ = ["StageCase", "StageContract"]

#: Sizes at which a dim of any size is tried.
ANY = (5, 8)


@dataclass(frozen=True)
class StageCase:
    """A stage and what it is tried with.

    Attributes:
        make: Makes the stage anew: a module, function, wrapper, or a registered name.
        feeds: What each port takes, in the order of the call; a pad rule lets smaller sizes be tried.
        sizes: Buckets of bare names.
        host: It is a host stage.
        inputs: As for ``Pipeline.add``.
        outputs: As for ``Pipeline.add``.
        ports: Names of its outputs, where it gives a dict and does not declare them.
        config: As for ``Pipeline.add``.
        values: Makes the values of one request from the sizes of its names; by default random ones.
        plugins: Where a registered name is looked up; by default the core's backends and the testing kit.
        rtol: Relative tolerance where padding may change how a result is computed.
        atol: Absolute tolerance there.
    """

    make: Callable[[], Any]
    feeds: Mapping[str, PortSpec]
    sizes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    host: bool = False
    inputs: Any = None
    outputs: Any = None
    ports: Sequence[str] = ()
    config: Mapping[str, Any] | None = None
    values: Callable[[Mapping[str, int]], Mapping[str, Any]] | None = None
    plugins: PluginManager | None = None
    rtol: float = 1e-4
    atol: float = 1e-5

    def pipeline(self, stage: Any = None) -> Pipeline:
        """Makes a pipeline of one call, every output handed out."""
        pipeline = Pipeline("contract", plugins=self.plugins or make_plugins())
        inputs = {port: pipeline.input(port, spec) for port, spec in self.feeds.items()}
        handle = pipeline.add(
            "stage",
            self.make() if stage is None else stage,
            config=self.config,
            device="host" if self.host else None,
            inputs=self.inputs,
            outputs=self.outputs,
        )
        outputs = handle(**inputs)
        # Ports are known before planning where they are declared; one that is not is the single output.
        names = self.ports or [port.name for port in handle.stage.outputs]
        for name in names:
            pipeline.output(name, outputs[name])
        if not names:
            pipeline.output("output", outputs)
        return pipeline

    def plan(self, pipeline: Pipeline, device: str = "cpu", **more: Any) -> Plan:
        """Plans a pipeline at the case's sizes."""
        return pipeline.plan(device=device, sizes=self.sizes, **more)

    def request(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """Makes the values of a request; the same ones for the same sizes."""
        if self.values is not None:
            return dict(self.values(sizes))
        generator = torch.Generator().manual_seed(sum(sizes.values()))
        return {port: _example(port, spec, sizes, generator) for port, spec in self.feeds.items()}

    def buckets(self) -> list[dict[str, int]]:
        """Returns every combination of sizes that need no padding."""
        names: dict[str, tuple[int, ...]] = {}
        for spec in self.feeds.values():
            for dim in spec.dims if isinstance(spec, TensorSpec) else ():
                if isinstance(dim, (str, Dim)):
                    names.setdefault(str(dim), self._sizes_of(dim))
        return [dict(zip(names, row, strict=True)) for row in itertools.product(*names.values())]

    def _sizes_of(self, dim: str | Dim) -> tuple[int, ...]:
        sizes = self.sizes.get(str(dim), ())
        if isinstance(dim, Dim) and not sizes:
            return ANY if dim.any else dim.buckets
        return (sizes,) if isinstance(sizes, int) else tuple(sizes)

    def smaller(self, plan: Plan) -> list[dict[str, int]]:
        """Returns sizes that need padding, where the plan allows it."""
        padded = {dim.name for dim in plan.dims if dim.can_pad and not dim.decided_by}
        largest = self.buckets()[-1]
        return [{**largest, name: size} for name in padded for size in {1, largest[name] - 1} if size > 0]


def _example(port: str, spec: PortSpec, sizes: Mapping[str, int], generator: torch.Generator) -> Any:
    if not isinstance(spec, TensorSpec):
        raise TypeError(
            f"Port {port!r} takes a {spec.__name__}: give the case values=, which makes requests."
        )
    shape = spec.shape(sizes)
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(spec.dtype)


def _reference(graph: Graph, values: Mapping[str, Any]) -> dict[str, Any]:
    """Results by hand, and the check that no value was written into."""
    before = copy.deepcopy(dict(values))
    result = run_reference(graph, values)
    assert_same(dict(values), before, at="inputs")
    return result


def _trace(stage: Stage) -> list[Any]:
    """All that planning might change in an object: attributes, tensors, their versions and modes."""
    target = stage.target
    parts = list(target.modules()) if isinstance(target, torch.nn.Module) else [target]
    state: list[Any] = []
    for part in parts:
        for name, value in sorted(getattr(part, "__dict__", {}).items()):
            items = dict(value) if isinstance(value, dict) else value
            state.append(
                (name, id(value), {key: id(item) for key, item in items.items()} if items is not value else 0)
            )
        if isinstance(part, torch.nn.Module):
            tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
            state += [(id(tensor), tensor._version, tensor.device, tensor.grad is None) for tensor in tensors]
    return state


class StageContract:
    """What every stage keeps; subclass it and give it a fixture ``case`` that returns a :class:`StageCase`."""

    @pytest.fixture
    def case(self) -> StageCase:
        """The stage to try; override it."""
        raise NotImplementedError("Override the fixture `case`.")

    def test_it_can_be_planned(self, case: StageCase) -> None:
        """Every port with a value and every output has an edge, and the plan explains each."""
        plan = case.plan(case.pipeline())
        assert {edge.target for edge in plan.edges} >= {f"stage.{port}" for port in case.feeds}
        assert all(edge.reason for edge in plan.edges)

    def test_planning_leaves_no_trace(self, case: StageCase) -> None:
        """Its attributes, tensors and modes are the same objects as before."""
        pipeline = case.pipeline()
        stage = pipeline.freeze().stages["stage"]
        before, random_state = _trace(stage), torch.get_rng_state()
        case.plan(pipeline)
        assert _trace(stage) == before
        assert torch.equal(torch.get_rng_state(), random_state)

    def test_its_outputs_have_the_planned_form(self, case: StageCase) -> None:
        """Called by hand at every bucket it gives the shapes and dtypes, or types, that the plan says."""
        pipeline = case.pipeline()
        plan = case.plan(pipeline)
        for sizes in case.buckets():
            result = _reference(pipeline.freeze(), case.request(sizes))
            all_sizes = dict(sizes)
            for port, spec in plan.call("stage").outputs:
                if port in result:
                    _check_form(port, spec, result[port], all_sizes)

    def test_a_pipeline_gives_what_a_call_by_hand_gives(self, case: StageCase) -> None:
        """Bit for bit, at every bucket."""
        pipeline = case.pipeline()
        with case.plan(pipeline).load() as session:
            for sizes in case.buckets():
                values = case.request(sizes)
                assert_same(session(**values), _reference(pipeline.freeze(), values), at=f"at {sizes} ")

    def test_padding_does_not_change_what_is_kept(self, case: StageCase) -> None:
        """A pad rule is a promise: a smaller request gives what a call by hand gives."""
        pipeline = case.pipeline()
        plan = case.plan(pipeline)
        with plan.load() as session:
            for sizes in case.smaller(plan):
                values = case.request(sizes)
                reference = _reference(pipeline.freeze(), values)
                result = session(**values)
                assert_same(result, reference, exact=False, rtol=case.rtol, atol=case.atol, at=f"at {sizes} ")

    def test_its_promises_hold(self, case: StageCase) -> None:
        """What its ports promise, pad rules and ``batch=True``, is true of it on real values."""
        pipeline = case.pipeline()
        plan = case.plan(pipeline)
        values = case.request(case.buckets()[-1])
        tolerance = case.rtol if case.rtol > TOLERANCES[torch.float32] else None
        report = check_promises(pipeline.freeze(), plan, case.plugins or make_plugins(), values, tolerance)
        assert report.ok, str(report)

    def test_inputs_are_left_alone(self, case: StageCase) -> None:
        """A session's stage never writes into what the caller gave."""
        with case.plan(case.pipeline()).load() as session:
            for sizes in case.buckets():
                values = case.request(sizes)
                before = copy.deepcopy(values)
                session(**values)
                assert_same(values, before, at="inputs")

    def test_it_can_be_repeated(self, case: StageCase) -> None:
        """The same request gives the same result, in this thread and in two at the same time."""
        values = case.request(case.buckets()[-1])
        with case.plan(case.pipeline()).load() as session, ThreadPoolExecutor(2) as threads:
            first = session(**values)
            for again in threads.map(lambda _: session(**values), range(4)):
                assert_same(again, first)

    def test_results_are_ordinary_tensors(self, case: StageCase) -> None:
        """They are on the CPU and record no gradient."""
        with case.plan(case.pipeline()).load() as session:
            for value in session(**case.request(case.buckets()[-1])).values():
                if isinstance(value, torch.Tensor):
                    assert value.device.type == "cpu"
                    assert not value.requires_grad

    def test_a_copy_does_the_same(self, case: StageCase) -> None:
        """A deep copy of the stage gives the same results: backends move copies, never the user's own object."""
        pipeline = case.pipeline()
        stage = pipeline.freeze().stages["stage"]
        values = case.request(case.buckets()[-1])
        with case.plan(pipeline).load() as session:
            reference = session(**values)
        copied_target = copy.deepcopy(stage.target)
        copy_case = replace(case, config=None if isinstance(case.make(), str) else case.config)
        with case.plan(copy_case.pipeline(copied_target)).load() as session:
            assert_same(session(**values), reference)

    def test_it_runs_on_a_device_of_its_own(self, case: StageCase) -> None:
        """On the null device, which computes and counts: same results, nothing leaked, counts as planned."""
        pipeline = case.pipeline()
        plan = case.plan(pipeline, "null", options=None if case.host else {"compute": True})
        sizes = case.buckets()[-1]
        values = case.request(sizes)
        with plan.load() as session, recording() as record:
            assert_same(session(**values), _reference(pipeline.freeze(), values))
            record.assert_no_leaks()
            counts, stats = record.counts(), session.stats
            names: Sequence[str] = ("uploads", "upload_bytes", "downloads", "download_bytes")
            assert [counts[name] for name in names] == [stats[name] for name in names]


def _check_form(port: str, spec: PortSpec, value: Any, sizes: dict[str, int]) -> None:
    if not isinstance(spec, TensorSpec):
        assert isinstance(value, spec), f"{port} is {type(value).__name__}, planned as {spec.__name__}"
        return
    assert len(value.shape) == len(spec.dims), f"{port} is {list(value.shape)}, planned as {spec}"
    for dim, size in zip(spec.dims, value.shape, strict=True):
        if isinstance(dim, (str, Dim)):
            sizes.setdefault(str(dim), size)
    assert tuple(value.shape) == spec.shape(sizes), f"{port} is {list(value.shape)}, planned as {spec}"
    assert value.dtype == spec.dtype

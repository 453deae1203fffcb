"""Infer: shape and dtype of every port, proven on fake tensors at every combination of buckets.

Host stages never run while planning, and opaque stages cannot run on fake tensors: their outputs are declared. A
name that only such a declaration brings in is a *data-dependent* dim: the stage decides its size during a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from orchestrator.errors import PlanError, nearest
from orchestrator.graph import BranchLoop, Edge, Graph, Loop, NodeKey, next_port
from orchestrator.plan.records import PlannedCall
from orchestrator.planner.context import EdgeSpec, PlanContext
from orchestrator.planner.infer.aliases import check_aliases, check_provable, updates_in_place
from orchestrator.planner.infer.bodies import enter_specs, exit_specs, find_item_dims, named_constant
from orchestrator.planner.infer.checks import check_data_dependent, check_mode
from orchestrator.planner.infer.derived import symbol_for
from orchestrator.planner.infer.fit import fit_edge
from orchestrator.planner.infer.outputs import check_declared, handed_over, port_names, show_sizes
from orchestrator.planner.infer.probe import (
    Argument,
    DataDependentError,
    Prober,
    ProbeResult,
    RefusedError,
    UnfitError,
)
from orchestrator.planner.infer.representation import (
    device_edge_spec,
    device_ports,
    device_spec,
    gather_parts,
    keep_parts,
)
from orchestrator.planner.infer.trials import Sampler, padded_names
from orchestrator.specs import (
    AnyDim,
    PortSpec,
    TensorSpec,
    show_spec,
)
from orchestrator.stage import Stage

__all__ = ["infer"]


def infer(context: PlanContext) -> PlanContext:
    """Infers the spec of every edge and of every call's outputs.

    Raises:
        PlanError: Two ports contradict, a stage refuses its inputs, writes into one, is in training mode with
            Dropout or BatchNorm, or gives other outputs than it declares.
    """
    return _Inference(context).run()


class _Inference:
    def __init__(self, context: PlanContext) -> None:
        self.context = context
        self.graph = context.graph
        self.dims = dict(context.dims)
        self.prober = Prober(context.descriptions)
        self.padded_dims = padded_names(self.graph, self.dims)
        self.capture_calls: set[str] = set()
        self.shared_memory_calls: set[str] = set()
        self.has_aliases = any(stage.aliases for stage in self.graph.stages.values())
        self.values: dict[tuple[NodeKey, str], PortSpec] = {}
        self.consumer_specs: dict[Edge, EdgeSpec] = {}
        self.calls: dict[str, PlannedCall] = {}
        self.examples: dict[str, dict[str, TensorSpec]] = {}
        self.port_dtypes: dict[str, dict[str, torch.dtype]] = {}
        self.notes: list[str] = []
        self.counts: dict[str, AnyDim | None] = {}
        # Inputs that a request may leave out size their dims only in some requests: those are not request_dims.
        names = [
            (name, dim) for name, spec in self.graph.inputs.items() for dim in getattr(spec, "names", ())
        ]
        self.input_dims = {dim for _, dim in names}
        self.request_dims = {dim for name, dim in names if name not in self.graph.optional}

    def run(self) -> PlanContext:
        self.values |= {(NodeKey("input", name), ""): spec for name, spec in self.graph.inputs.items()}
        for name, value in self.graph.constants.items():
            self.values[NodeKey("constant", name), ""] = _constant_spec(value)
        for stage in self.graph.stages.values():
            check_mode(stage)
        # Every producer comes before its readers in the order of nodes, so each value is there when it is read; a
        # carry's next value is compared with its first one at the exit of its loop.
        for node in self.graph.nodes:
            if node.kind == "call":
                self._call(node.name)
            elif node.kind in ("enter", "exit"):
                self._loop_end(node)
        for edge in (edge for edge in self.graph.edges if edge.target.kind == "output"):
            self.consumer_specs[edge] = self._fit(edge, None)
        # What devices hold is known once all is inferred: a carry is held as the producer of its next value holds it.
        producer_specs = {
            edge: device_spec(self.context, edge.source, edge.source_port, self._source(edge))
            for edge in self.graph.edges
        }
        return replace(
            self.context,
            dims=self.dims,
            calls=self.calls,
            counts=self.counts,
            port_dtypes=self.port_dtypes,
            consumer_specs={
                edge: device_edge_spec(self.context, edge, producer_specs[edge], edge_spec)
                for edge, edge_spec in self.consumer_specs.items()
            },
            producer_specs=producer_specs,
        ).with_notes(*self.notes, *self.prober.notes)

    def _loop_end(self, node: NodeKey) -> None:
        """Infers the ports of a loop's entry or exit."""
        loop, ports = self.graph.loops[node.name], {edge.target_port: edge for edge in self.graph.into(node)}
        self.consumer_specs |= {edge: self._fit(edge, None) for edge in ports.values()}
        specs = {
            port: _with_rule(self.consumer_specs[edge], edge, port in loop.carry)
            for port, edge in ports.items()
        }
        # Dims that the loop decides are entered before its body is inferred: the body's stages are tried at them.
        if node.kind == "enter":
            results, self.counts[loop.name], dim = enter_specs(loop, specs, ports, self.dims)
            self.dims |= {} if dim is None else {dim.name: dim}
            self.dims |= find_item_dims(self.graph, loop, self.dims, self.input_dims)
        else:
            match loop:
                case BranchLoop():
                    self._name_constants(loop, specs)
            arguments = {port: self.values[NodeKey("enter", loop.name), port] for port in loop.carry}
            results = exit_specs(loop, specs, ports, arguments, self.counts[loop.name], self.dims)
        self.values |= {(node, port): spec for port, spec in results.items()}

    def _name_constants(self, loop: Loop, specs: Mapping[str, PortSpec]) -> None:
        """Gives the constants that a branch yields otherwise the named dims of its body's results."""
        for edge in self.graph.into(node := NodeKey("enter", loop.name)):
            spec = specs.get(next_port(edge.target_port))
            if edge.source.kind == "constant" and spec is not None:
                request_dims = {
                    dim
                    for dim in self.request_dims
                    if dim not in self.padded_dims and not self.dims[dim].batch
                }
                self.consumer_specs[edge] = named_constant(
                    self.consumer_specs[edge], spec, self.dims, request_dims
                )
                self.values[node, edge.target_port] = self.consumer_specs[edge].spec

    def _fit(self, edge: Edge, port: PortSpec | None) -> EdgeSpec:
        """The form in which a consumer reads an edge; parts that ranks hold are joined first, unless it takes parts."""
        part = self._source(edge)
        whole, gather = gather_parts(self.context, edge, part)
        edge_spec = fit_edge(edge, whole, port, self.dims, self.input_dims, self.padded_dims)
        return keep_parts(self.context, edge, part, edge_spec, gather)

    def _source(self, edge: Edge) -> PortSpec:
        key = (edge.source, edge.source_port)
        if key in self.values:
            return self.values[key]
        ports = [port for node, port in self.values if node == edge.source]
        call = self.graph.calls.get(edge.source.name)
        stage = call.stage.name if call is not None else edge.source.name
        raise PlanError(
            f"{edge.destination!r} reads {edge.origin!r}, but stage {stage!r} gives the ports "
            f"{ports}.{nearest(edge.source_port, ports)}",
            port=edge.origin,
            stage=stage,
        )

    def _call(self, name: str) -> None:
        stage = self.graph.calls[name].stage
        specs: dict[str, PortSpec] = {}
        for edge in self.graph.into(NodeKey("call", name)):
            edge_spec = self._fit(edge, self._declared_spec(stage, edge.target_port))
            _check_type(self.context.devices[stage.name], edge, stage, edge_spec.spec)
            self.consumer_specs[edge] = edge_spec
            specs[edge.target_port] = edge_spec.spec
        # Edges come in the order of the graph, trials and programs in that of the stage's ports.
        inputs = {port.name: specs[port.name] for port in stage.inputs if port.name in specs}
        # Shapes are those that one rank gives, since it is a rank that runs a program.
        backend = self.context.groups.get(self.context.devices[stage.name])
        form = stage if backend is None else backend.rank_form(stage)
        outputs, returns, is_declared = self._outputs(name, form, inputs)
        for port, spec in outputs.items():
            self.values[NodeKey("call", name), port] = spec
        device = self.context.devices[stage.name]
        if backend is not None:
            self.notes += backend.review(stage, inputs, outputs)
        self.port_dtypes[name] = {
            port: spec.dtype for port, spec in inputs.items() if isinstance(spec, TensorSpec)
        }
        input_ports, output_ports = (device_ports(self.context, name, ports) for ports in (inputs, outputs))
        shares_memory = name in self.shared_memory_calls
        aliases = stage.aliases if updates_in_place(self.context, stage) else ()
        self.calls[name] = PlannedCall(
            name, stage.name, device, input_ports, output_ports, returns, is_declared, shares_memory, aliases
        )

    def _declared_spec(self, stage: Stage, port: str) -> PortSpec | None:
        """The spec that a port declares, or the shape of its wrapper's own example input."""
        spec = stage.input(port).spec
        wrapper = stage.wrapper
        if spec is not None or wrapper is None or wrapper.inputs or not wrapper.overrides("input_generator"):
            return spec
        if stage.name not in self.examples:
            self.examples[stage.name] = _example_specs(stage, self.prober.examples(stage, wrapper))
        return self.examples[stage.name].get(port)

    def _outputs(
        self, name: str, stage: Stage, specs: dict[str, PortSpec]
    ) -> tuple[dict[str, PortSpec], str, bool]:
        """Ports to specs, how the stage hands them over, and whether they rest on its author's word."""
        if stage.host or stage.opaque:
            check_provable(name, stage)
            return self._declared_outputs(name, stage)
        try:
            # Trials say more than a declaration, so a declaration stands alone only where the stage looks at contents;
            # capture is the last resort, since eager runs may then differ from it.
            return _infer_outputs(name, stage, self._samples(name, stage, specs))
        except DataDependentError as error:
            is_complete = stage.outputs and all(isinstance(port.spec, TensorSpec) for port in stage.outputs)
            if is_complete and not stage.aliases:
                return self._declared_outputs(name, stage)
            outputs = self._capture_outputs(name, stage, specs)
            if outputs is not None:
                return outputs
            check_provable(name, stage)
            raise _cannot_tell(name, stage, error) from error

    def _capture_outputs(
        self, name: str, stage: Stage, specs: dict[str, PortSpec]
    ) -> tuple[dict[str, PortSpec], str, bool] | None:
        """Outputs of a stage that runs as if ``torch.export`` captured it; None: it looks at contents even so.

        Eagerly it runs without that mode, so its outputs are checked at each call.
        """
        self.capture_calls.add(name)
        try:
            outputs, returns, _ = _infer_outputs(name, stage, self._samples(name, stage, specs))
        except DataDependentError:
            self.capture_calls.discard(name)
            return None
        return outputs, returns, True

    def _declared_outputs(self, name: str, stage: Stage) -> tuple[dict[str, PortSpec], str, bool]:
        outputs: dict[str, PortSpec] = {}
        for port in stage.outputs:
            if port.spec is None or (not stage.host and not isinstance(port.spec, TensorSpec)):
                raise PlanError(
                    f"Stage {stage.name!r} cannot be inferred, so its output {port.name!r} needs a TensorSpec.",
                    stage=stage.name,
                )
            outputs[port.name] = port.spec
            # A name that no input and no stage before has is decided by this output, at each request.
            for dim in port.spec.names if isinstance(port.spec, TensorSpec) else ():
                if dim not in self.input_dims and not self.dims[dim].decided_by:
                    check_data_dependent(self.context, name, stage, dim)
                    self.dims[dim] = replace(self.dims[dim], decided_by=f"{name}.{port.name}")
        if not outputs:
            raise PlanError(
                f"Stage {stage.name!r} cannot be inferred; declare its outputs.", stage=stage.name
            )
        return outputs, "single" if len(outputs) == 1 else "tuple", True

    def _samples(
        self, name: str, stage: Stage, specs: dict[str, PortSpec]
    ) -> list[tuple[dict[str, int], ProbeResult]]:
        """Outcomes at every combination of buckets, and at sizes between (:mod:`orchestrator.planner.infer.trials`)."""
        capture = name in self.capture_calls

        # Both check for writes at every size: a stage may write into an input at some sizes only.
        def run(sizes: dict[str, int]) -> ProbeResult:
            arguments = self._arguments(name, specs, sizes)
            return self._check_memory_use(name, stage, arguments, self.prober.run(stage, arguments, capture))

        def attempt(sizes: dict[str, int]) -> ProbeResult | None:
            arguments = self._arguments(name, specs, sizes)
            result = self.prober.attempt(stage, arguments, capture)
            return None if result is None else self._check_memory_use(name, stage, arguments, result)

        sampler = Sampler(name, stage, specs, self.dims, run, attempt)
        return sampler.samples(
            self.padded_dims, lambda at, error: _refusal(self.graph, name, stage, specs, at, error)
        )

    def _arguments(
        self, name: str, specs: dict[str, PortSpec], sizes: dict[str, int]
    ) -> tuple[Argument, ...]:
        """Arguments of a trial: for a tensor its shape at these sizes and its dtype, else the constant."""
        constants = {
            edge.target_port: self.graph.constants[edge.source.name]
            for edge in self.graph.into(NodeKey("call", name))
            if edge.source.kind == "constant"
        }
        return tuple(
            (port, (spec.shape(sizes), spec.dtype) if isinstance(spec, TensorSpec) else constants[port])
            for port, spec in specs.items()
        )

    def _check_memory_use(
        self, name: str, stage: Stage, arguments: tuple[Argument, ...], outcome: ProbeResult
    ) -> ProbeResult:
        """Notes that a call gives memory that is not its own; refuses one that writes into an input it may not."""
        own_keys = check_aliases(name, stage, dict(arguments), outcome) if stage.aliases else set()
        # Nobody can write into what is expanded: where something is updated in place, it counts as not its own.
        if set(outcome.shared_outputs) - own_keys or (self.has_aliases and outcome.expanded_outputs):
            self.shared_memory_calls.add(name)
        inputs = {port for _, port in stage.aliases}
        strange = [port for port in outcome.written_ports if port not in inputs]
        if strange:
            port = strange[0]
            raise PlanError(
                f"Stage {stage.name!r} (call {name!r}) writes into its input {port!r}; another reader of that value, "
                f"or the caller, would see it. Work on a copy: {port}.clone(); or, if an output is this input, "
                f"updated, say which: add(..., aliases={{'OUTPUT': {port!r}}}).",
                stage=stage.name,
                call=name,
                port=port,
            )
        return outcome


def _infer_outputs(
    name: str, stage: Stage, samples: list[tuple[dict[str, int], ProbeResult]]
) -> tuple[dict[str, PortSpec], str, bool]:
    first = samples[0][1]
    ports = port_names(name, stage, first)
    shapes = {
        (out.returns, tuple((key, len(shape), dtype) for key, shape, dtype in out.outputs))
        for _, out in samples
    }
    # Columns below need equal ranks in all samples.
    if len(shapes) > 1:
        raise PlanError(
            f"Stage {stage.name!r} (call {name!r}) gives outputs of another number, rank or dtype at other sizes "
            f"of {list(samples[0][0])}; give it one form.",
            stage=stage.name,
            call=name,
        )
    names = list(samples[0][0])
    outputs: dict[str, PortSpec] = {}
    for position, (port, (_, shape, dtype)) in enumerate(zip(ports, first.outputs, strict=True)):
        # Each axis is explained by itself, from its sizes over all samples.
        columns = [
            [(at, out.outputs[position][1][axis]) for at, out in samples] for axis in range(len(shape))
        ]
        inferred_spec = TensorSpec(tuple(symbol_for(column, names) for column in columns), dtype)
        outputs[port] = check_declared(name, stage, port, inferred_spec, samples, position)
    # Undeclared entries of a dict are dropped only now: samples are compared with all of them.
    output_names = {port.name for port in stage.outputs}
    results = {port: spec for port, spec in outputs.items() if not output_names or port in output_names}
    return results, handed_over(first), False


def _with_rule(edge_spec: EdgeSpec, edge: Edge, is_carry: bool) -> PortSpec:
    """The spec of an edge to a loop's end, with the rule by which it may be padded beyond it.

    A carry is another value after each iteration. So the rule of its initial value says nothing of it; that of the
    body's own input does.
    """
    if not isinstance(edge_spec.spec, TensorSpec):
        return edge_spec.spec
    rules = [spec.pad for spec in edge.constraints if isinstance(spec, TensorSpec) and spec.pad is not None]
    rule = edge_spec.rule if not is_carry else rules[-1] if rules else None
    return replace(edge_spec.spec, pad=rule)


def _example_specs(stage: Stage, rows: list[tuple[torch.Tensor, ...]]) -> dict[str, TensorSpec]:
    """Port to the spec that a wrapper's example inputs state; its ports must have one shape each."""
    names = [port.name for port in stage.inputs]
    if len({tuple(tuple(value.shape) for value in row) for row in rows}) != 1 or len(rows[0]) > len(names):
        raise PlanError(
            f"The input_generator of stage {stage.name!r} gives {len(rows)} rows of example inputs for the ports "
            f"{names}. One row states the shapes; for several sizes declare inputs with a Dim and its buckets.",
            stage=stage.name,
        )
    return {
        name: TensorSpec(tuple(value.shape), value.dtype) for name, value in zip(names, rows[0], strict=False)
    }


def _constant_spec(value: Any) -> PortSpec:
    return TensorSpec(tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else type(value)


def _check_type(device: str, edge: Edge, stage: Stage, spec: PortSpec) -> None:
    if stage.host or isinstance(spec, TensorSpec) or edge.source.kind == "constant":
        return
    raise PlanError(
        f"{edge.origin!r} gives the Python type {show_spec(spec)}, but {edge.destination!r} runs on {device!r}; such a "
        f"value never meets a device. Turn it into a tensor in a host stage (device='host').",
        edge=str(edge),
    )


def _cannot_tell(name: str, stage: Stage, error: DataDependentError) -> PlanError:
    # An unfit stage would fail at any shapes, so advice on dims and buckets is left out for it.
    if isinstance(error, UnfitError):
        return PlanError(
            f"Stage {stage.name!r} (call {name!r}) cannot be run on tensors without content, as planning does: "
            f"{error}. Declare what it gives, outputs={{'name': TensorSpec(...)}}, which is then checked at each call; "
            f"or make it a host stage (device='host').",
            stage=stage.name,
            call=name,
        )
    return PlanError(
        f"Stage {stage.name!r} (call {name!r}) decides a shape, or what it does, by the content of a tensor: "
        f"{error}. Declare what it gives, with a Dim whose buckets bound the size "
        f"(outputs={{'name': TensorSpec((Dim('n', buckets=(8, 64)), ...))}}), or make it a host stage "
        f"(device='host').",
        stage=stage.name,
        call=name,
    )


def _refusal(
    graph: Graph,
    name: str,
    stage: Stage,
    specs: dict[str, PortSpec],
    at: dict[str, int],
    error: RefusedError,
) -> PlanError:
    return PlanError(
        f"Stage {stage.name!r} (call {name!r}) refuses what it is fed: {_feeds(graph, name, specs)}{show_sizes(at)}. "
        f"It says: {error}",
        stage=stage.name,
        call=name,
        inputs=dict(specs),
    )


def _feeds(graph: Graph, name: str, specs: dict[str, PortSpec]) -> str:
    origins = {edge.target_port: edge.origin for edge in graph.into(NodeKey("call", name))}
    return ", ".join(
        f"'{name}.{port}' gets {show_spec(spec)} from {origins[port]!r}" for port, spec in specs.items()
    )

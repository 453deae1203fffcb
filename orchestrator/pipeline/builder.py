"""The builder: inputs, stages and outputs, and from there to a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, overload

import torch

from orchestrator.errors import GraphError, PlanError
from orchestrator.graph import Graph
from orchestrator.loader import PipelineLoader, families_with, resolve_backend, resolve_stage
from orchestrator.pipeline.graph_builder import GraphBuilder, Value
from orchestrator.pipeline.handles import StageHandle, SubPipelineHandle
from orchestrator.pipeline.loops import LoopPorts
from orchestrator.pipeline.maps import BranchPorts, MapPorts
from orchestrator.pipeline.overrides import with_overrides
from orchestrator.plan import Plan, Residency
from orchestrator.planner import PlanOptions, bind_plan, make_plan
from orchestrator.plugin import PluginManager, default_manager
from orchestrator.promises.check import check_promises, example_request
from orchestrator.promises.report import CheckReport
from orchestrator.runner.session import Session
from orchestrator.specs import PortSpec
from orchestrator.stage import ModelWrapper, make_stage
from orchestrator.surroundings import own_modes, same_random_state

__all__ = ["Pipeline"]

#: Names of ports, or names to specs; one name alone is a tuple of one.
Ports: TypeAlias = str | Iterable[str] | Mapping[str, PortSpec | None] | None


class Pipeline:
    """A pipeline under construction.

    Args:
        name: Its name.
        plugins: Where registered names are looked up; by default all installed plugins.

    Attributes:
        example_inputs: What is run when nobody gives inputs, as by ``orchestrator run NAME``; its author sets it, or
            leaves it None. It is called with the largest compiled size of each named dim and returns inputs by name
            that fit them, the same ones each time.

    Raises:
        GraphError: The name is none.
    """

    def __init__(self, name: str, *, plugins: PluginManager | None = None) -> None:
        if not isinstance(name, str) or not name.strip():
            raise GraphError(f"A pipeline is named by a non-empty string, not {name!r}.", name=name)
        self.example_inputs: Callable[[Mapping[str, int]], Mapping[str, Any]] | None = None
        self._plugins = plugins
        self._builder = GraphBuilder(name)

    @property
    def name(self) -> str:
        """Its name."""
        return self._builder.name

    def input(self, name: str, spec: PortSpec, *, optional: bool = False) -> Value:
        """Adds an input.

        Args:
            name: Unique among the inputs.
            spec: What a request gives for it: a ``TensorSpec`` or a Python type.
            optional: A request may leave it out; only branches (:meth:`when`) read it.

        Raises:
            GraphError: The name is taken, or the spec is none.
        """
        return self._builder.add_input(name, spec, optional)

    @overload
    def add(
        self, name: str, stage: Pipeline, *, device: str | torch.device | None = None
    ) -> SubPipelineHandle: ...
    @overload
    def add(
        self,
        name: str,
        stage: str,
        *,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        inputs: Ports = None,
        outputs: Ports = None,
        aliases: Mapping[str, str] | None = None,
    ) -> StageHandle | SubPipelineHandle: ...
    @overload
    def add(
        self,
        name: str,
        stage: Callable[..., Any],
        *,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        inputs: Ports = None,
        outputs: Ports = None,
        aliases: Mapping[str, str] | None = None,
    ) -> StageHandle: ...
    def add(
        self,
        name: str,
        stage: Any,
        *,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        inputs: Ports = None,
        outputs: Ports = None,
        aliases: Mapping[str, str] | None = None,
    ) -> StageHandle | SubPipelineHandle:
        """Adds a stage; nothing runs it until its handle is called.

        Args:
            name: Unique among the stages.
            stage: A module, a function, a ``ModelWrapper``, a registered name, or a pipeline, which is inlined.
            config: Options: of a registered stage's factory, and of the stage's backend.
            device: Where it runs; ``"host"``: plain Python on the host, which declares ``outputs``.
            inputs: Names of its input ports, or names to specs.
            outputs: Names of its output ports, or names to specs.
            aliases: Output ports that *are* an input port, updated: ``{"past_next": "past"}``. The stage may write into
                that input, and only there; what it gives under the name is that very tensor. Where somebody else still
                needs the old value, the plan copies it before and says for whom.

        Returns:
            A handle. Calling it with values (or tensors and Python values, as constants), by position or port
            name, adds a call and returns one :class:`Value`, or one for each declared output. A registered name may
            be that of a pipeline, too.

        Raises:
            GraphError: The name is taken, or the stage, a port or an alias is none.
            PluginError: A registered name is unknown, or its plugin is broken.
        """
        self._builder.check_free("stage", name)
        if config is not None and not isinstance(config, Mapping):
            raise GraphError(f"config of stage {name!r} is a dict of options, not {config!r}.", stage=name)
        options = with_overrides(name, config)
        # A registered name gives a stage or a pipeline; a pipeline is inlined, and anything else becomes a stage.
        factory_options: frozenset[str] = frozenset()
        accepts: tuple[str, ...] = ()
        if isinstance(stage, str):
            stage, factory_options, accepts = resolve_stage(self._manager(), stage, options)
        if isinstance(stage, Pipeline):
            return self._inline(name, stage, options, device, inputs, outputs, aliases)
        if not isinstance(stage, ModelWrapper):
            stage = self._manager().adopt(stage)
        # What the factory of a registered stage did not take is for the backend.
        rest = {option: value for option, value in options.items() if option not in factory_options}
        own = make_stage(
            name, stage, config=rest, device=device, inputs=inputs, outputs=outputs, aliases=aliases
        )
        own = replace(own, accepts=accepts)
        self._builder.add_stage(own)
        return StageHandle(self._builder, own)

    def _manager(self) -> PluginManager:
        return self._plugins or default_manager()

    def _inline(
        self,
        name: str,
        inner: Pipeline,
        options: Any,
        device: str | torch.device | None,
        inputs: Ports,
        outputs: Ports,
        aliases: Mapping[str, str] | None,
    ) -> SubPipelineHandle:
        # A pipeline brings ports and options of its own along; only where its stages run is left to say.
        for word, argument in (
            ("config", options),
            ("inputs", inputs),
            ("outputs", outputs),
            ("aliases", aliases),
        ):
            if argument:
                raise GraphError(
                    f"{word}= is for a stage, but {name!r} is a pipeline with its own.", stage=name
                )
        # A pipeline of calls alone is laid out when the graph is asked for; one with loops and branches is copied now.
        part = self._builder.import_sub_pipeline(name, inner._builder, device)
        if part is not None:
            return SubPipelineHandle(self._builder, name, part)
        return SubPipelineHandle(
            self._builder, name, self._builder.import_stages(name, inner._builder, device)
        )

    def loop(
        self,
        name: str,
        body: Pipeline,
        *,
        carry: Mapping[str, Any] | None = None,
        each: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        until: str | None = None,
        condition: Value | None = None,
        max_steps: int | None = None,
        check_every: int = 1,
        collect: Sequence[str] = (),
        outputs: Sequence[str] | None = None,
    ) -> Value:
        """Adds a loop that runs a body ``min(len(each), max_steps)`` times, or until it says so.

        Carries stay where the body gives them, and what is the same in all iterations is put in place once.

        Args:
            name: Unique among stages and loops; the stages of the body are called ``name/stage``.
            body: A pipeline; it is frozen now.
            carry: Names that are both an input and an output of the body, each with the value it starts with. The
                output of one iteration is the input of the next; it keeps its shape and dtype.
            each: Inputs of the body that get one slice for each iteration, along dim 0; all of one length.
            inputs: Inputs of the body that are the same in all iterations.
            until: An output of the body, one boolean; once it is true no further iteration runs.
            condition: One boolean, read before the first iteration: unless it is true, none runs. For a loop with
                ``until`` that another one may have made needless.
            max_steps: Most iterations; zero gives the start of each carry.
            check_every: Iterations from one look at ``until`` to the next; the body may run up to so many less one
                times too often, what is collected is cut.
            collect: Outputs of the body that are stacked along a new dim 0, one part for each iteration.
            outputs: Carries and collected outputs to return; by default the collected ones, if any, else the carries.

        Returns:
            One :class:`Value`, or one for each of ``outputs``.

        Raises:
            GraphError: A name is taken or unknown, an input of the body is fed twice or never, or a number is none.
        """
        inner = self._body("loop", name, body)
        ports = LoopPorts(
            name, carry, each, inputs, until, condition, max_steps, check_every, collect, outputs
        )
        with self._builder.all_or_nothing():
            return ports.add_to(self._builder, self._builder.import_stages(name, inner))

    def map(
        self,
        name: str,
        body: Pipeline,
        *,
        over: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Value:
        """Runs a body for each of a number of items that only a request knows, in batches, in order; none is legal.

        The inputs of the body that take items begin with a named dim, whose buckets are the sizes of a batch. Items
        of a list may differ in size along the body's other named dims: each is padded to its own bucket and batched
        with others of that bucket, and what comes out of it is a list of host tensors, cut to the item's size where
        that is a named dim. Items that are slices of a tensor along dim 0 give tensors.

        Args:
            name: Unique among stages and loops; the stages of the body are called ``name/stage``.
            body: A pipeline; it is frozen now.
            over: Inputs of the body that get items, each with a list of tensors or a tensor; all of one length.
            inputs: Inputs of the body that are the same for all items.
            outputs: Outputs of the body to return; by default all.

        Returns:
            One :class:`Value`, or one for each output.

        Raises:
            GraphError: A name is taken or unknown, an input of the body is fed twice or never, or does not begin with a
                named dim.
        """
        inner = self._body("map", name, body)
        map_ports = MapPorts(name, over, inputs, outputs)
        with self._builder.all_or_nothing():
            return map_ports.add_to(self._builder, self._builder.import_stages(name, inner))

    def when(
        self,
        name: str,
        body: Pipeline,
        *,
        inputs: Mapping[str, Any],
        otherwise: Mapping[str, Any],
        condition: Value | None = None,
    ) -> Value:
        """Runs a body only for some requests.

        Args:
            name: Unique among stages and loops; the stages of the body are called ``name/stage``.
            body: A pipeline; it is frozen now.
            inputs: Its inputs. It runs if a request gives all of the optional ones among them.
            otherwise: For each of its outputs what it is if the body does not run, of the same shape and dtype.
            condition: One boolean; the body runs only if it is true.

        Returns:
            One :class:`Value`, or one for each output, in the order of ``otherwise``.

        Raises:
            GraphError: A name is taken or unknown, an input of the body is fed twice or never, or nothing decides
                whether it runs.
        """
        inner = self._body("branch", name, body)
        branch_ports = BranchPorts(name, inputs, otherwise, condition)
        with self._builder.all_or_nothing():
            return branch_ports.add_to(self._builder, self._builder.import_stages(name, inner))

    def _body(self, kind: str, name: str, body: Pipeline) -> GraphBuilder:
        """Returns the graph of a body, once its name is seen to be free."""
        self._builder.check_free(kind, name)
        if not isinstance(body, Pipeline):
            raise GraphError(
                f"The body of {kind} {name!r} is a Pipeline with inputs and outputs of its own, not {body!r}.",
                **{kind: name},
            )
        return body._builder

    def output(self, name: str, value: Value) -> None:
        """Adds an output.

        Raises:
            GraphError: The name is taken, or the value is not one of this pipeline, or several.
        """
        self._builder.add_output(name, value)

    def freeze(self) -> Graph:
        """Checks the graph as it is so far, without planning it, and returns it frozen.

        Nothing is checked again until something is added: the graph is the same object until then.

        Raises:
            GraphError: It breaks a rule.
        """
        return self._builder.freeze()

    @property
    def graph(self) -> Graph:
        """The graph that :meth:`freeze` returns."""
        return self.freeze()

    def validate(self) -> Graph:
        """Checks the graph and returns it, as :meth:`freeze` does."""
        return self.freeze()

    def plan(
        self,
        device: str | torch.device = "cpu",
        *,
        placement: Mapping[str, str | torch.device] | None = None,
        sizes: Mapping[str, int | tuple[int, ...]] | None = None,
        residency: Mapping[str, Residency | str] | None = None,
        memory: int | str | Mapping[str, int | str] | None = None,
        options: Mapping[str, Any] | None = None,
        compile: str | Mapping[str, str] | None = None,
        tolerance: float | None = None,
    ) -> Plan[Session]:
        """Plans the pipeline; no device is touched and nothing is compiled.

        Args:
            device: Where stages run that nothing else places.
            placement: Stage, or inlined pipeline, to device.
            sizes: Buckets of named dims: an int or a tuple for a bare name, a subset of its buckets for a ``Dim``.
            residency: ``"vision.output -> fusion.vision"`` to a forced residency.
            memory: Budget of each device, one rank: bytes or ``"16GB"``, or by device.
            options: Options of backends.
            compile: ``"aot"`` makes one program of each run of stages on a torch device, and of the bodies of loops,
                at load or by ``plan.compile``; what cannot be compiled runs eagerly, with a note. ``"require"``
                refuses it instead. By name of a stage or loop: ``{"denoise": "aot"}``.
            tolerance: How far what is compiled may be from eager results, relative to the largest magnitude of a
                result; by default a difference that suits its dtype.

        Raises:
            GraphError: The graph breaks a rule.
            PlanError: It cannot be planned as asked.
        """
        # Plugins that watch see the plan before its loader is attached: they get data, without the models.
        graph = self.freeze()
        manager = self._manager()
        plan_options = PlanOptions(
            lambda name: resolve_backend(manager, name),
            device,
            placement or {},
            sizes or {},
            residency or {},
            memory,
            options or {},
            compile,
            tolerance,
            lambda name: families_with(manager, name),
        )
        with own_modes(), same_random_state():
            plan = make_plan(graph, plan_options)
        manager.notify("orchestrator_plan_made", plan=plan)
        return replace(plan, loader=PipelineLoader(graph, manager, self._example))

    def _example(self, plan: Plan[Any]) -> dict[str, Any]:
        return example_request(self.name, self.example_inputs, plan)

    def check(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        device: str | torch.device = "cpu",
        tolerance: float | None = None,
    ) -> CheckReport:
        """Tries what its authors promise (pad rules, ``Dim(batch=True)``) at each stage, on real values.

        Args:
            inputs: A request; by default the example inputs.
            device: Where stages run. On one that compiles they run on the processor, and its results are compared.
            tolerance: The largest difference that counts as equal, relative to the largest magnitude of a result; by
                default one that suits its dtype.

        Raises:
            GraphError: The graph breaks a rule.
            PlanError: It cannot be planned for the device.
            InputError: The request does not fit, there is none, or the tolerance is none.
            StageError: A stage raises on the request itself.
        """
        graph, plan = self.freeze(), self.plan(device)
        request = example_request(self.name, self.example_inputs, plan) if inputs is None else inputs
        return check_promises(graph, plan, self._manager(), request, tolerance)

    def bind(
        self,
        plan: Plan[Any],
        *,
        options: Mapping[str, Any] | None = None,
        memory: int | str | Mapping[str, int | str] | None = None,
    ) -> Plan[Session]:
        """Verifies a plan, e.g. one read from JSON, against this pipeline; the result can be loaded.

        Args:
            plan: The plan; it brings placement, sizes and options along.
            options: Options of the plan that its text alone is not enough for, since they switch off a proof
                (``hazards``) or go to a compiler (``compiler_args``).
            memory: Budget of each device that is larger than what it is known to have, as in :meth:`plan`.

        Raises:
            PlanError: The plan is wrong, of another pipeline, or asks for what only code may ask for.
        """
        # A plan from a file is trusted in nothing: what it says is proven again on this graph, before it gets a loader.
        if not isinstance(plan, Plan):
            raise PlanError(f"bind takes a Plan, not {plan!r}; Plan.from_json(text) reads one.", plan=plan)
        graph, manager = self.freeze(), self._manager()
        plan_options = PlanOptions(
            lambda name: resolve_backend(manager, name), memory=memory, backend_options=options or {}
        )
        with own_modes(), same_random_state():
            bound = bind_plan(plan, graph, plan_options)
        return replace(bound, loader=PipelineLoader(graph, manager, self._example))

    def __repr__(self) -> str:
        return (
            f"<Pipeline {self.name!r}: {self._builder.stage_count} stages, {self._builder.call_count} calls>"
        )

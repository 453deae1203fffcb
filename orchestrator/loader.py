"""Between names and things: registered stages and backends for the builder, sessions for plans."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from orchestrator.backend import Backend
from orchestrator.errors import CompileError, PlanError, PluginError, nearest
from orchestrator.graph import Graph
from orchestrator.plan import Plan
from orchestrator.planner.infer.checks import check_mode
from orchestrator.plugin import PluginManager
from orchestrator.registry import RegistryEntry
from orchestrator.runner.compiled.load import load_regions
from orchestrator.runner.interrupts import DeferredSignals
from orchestrator.runner.load.load import compile_stages, load_executable
from orchestrator.runner.load.warm import warm_up
from orchestrator.runner.session import Session
from orchestrator.stage import accepts_whole, build, parameter_names
from orchestrator.store import ArtifactStore
from orchestrator.surroundings import own_modes

__all__ = ["PipelineLoader", "families_with", "resolve_backend", "resolve_stage"]

#: Environment variable that names the store of plans that were compiled into no folder.
STORE_VARIABLE = "ORCHESTRATOR_STORE"


def resolve_backend(manager: PluginManager, device: str) -> tuple[str, type[Backend]]:
    """Finds the backend of a device string: the one registered for its family, else torch's.

    Raises:
        PlanError: No backend takes the string; the nearest family is offered.
    """
    # A family that nobody registered may still be a device of torch, which knows all of its own.
    backends = manager.registry.backends
    try:
        entry = backends.for_device(device)
    except PluginError as error:
        torch_backend: Any = backends.get("torch").load() if "torch" in backends else None
        if torch_backend is None or not isinstance(device, str) or not torch_backend.accepts(device):
            raise PlanError(
                f"There is no device {device!r}.{nearest(str(device).partition(':')[0], backends.devices)}",
                device=device,
            ) from error
        # A device of torch may have a second spelling there, as a renamed ``privateuseone`` has.
        spelling = torch_backend.canonical(device)
        if spelling.partition(":")[0] in backends.devices:
            return resolve_backend(manager, spelling)
        return "torch", torch_backend
    kind: Any = entry.load()
    other = kind.substitute(device)
    if other is not None:
        return _backend_of(backends.for_device(other), device)
    return _backend_of(entry, device)


def families_with(manager: PluginManager, option: str) -> tuple[str, ...]:
    """Returns the device families that have an option; one whose plugin is broken has none."""
    families: list[str] = []
    for entry in manager.registry.backends.entries():
        with contextlib.suppress(PluginError):
            kind: Any = entry.load()
            families += entry.devices if option in kind.option_types else ()
    return tuple(sorted(families))


def _backend_of(entry: RegistryEntry, device: str) -> tuple[str, type[Backend]]:
    """The name and class of an entry, which has to take the device string.

    Raises:
        PlanError: It does not.
    """
    kind: Any = entry.load()
    if not kind.accepts(device):
        raise PlanError(
            f"The backend {entry.name!r} does not take the device string {device!r}; write "
            f"{device.partition(':')[0]!r} or '{device.partition(':')[0]}:0'.",
            device=device,
        )
    return entry.name, kind


def resolve_stage(
    manager: PluginManager, name: str, config: Mapping[str, Any]
) -> tuple[Any, frozenset[str], tuple[str, ...]]:
    """Makes the stage or pipeline registered under a name.

    Returns:
        The object, the names in ``config`` that its factory took, and those it knows.

    Raises:
        PluginError: The name is unknown, its plugin broken, or its factory raised.
    """
    # A stage wins over a pipeline of its name. Of a stage's config its factory takes what it knows; the rest is for its
    # backend, which says while planning what it does not know. A pipeline is no device's, so it takes all.
    registry = manager.registry
    if name not in registry.stages and name in registry.pipelines:
        pipeline = registry.pipelines.get(name).load()
        return _make("pipeline", name, lambda: pipeline(**config), config), frozenset(config), ()
    factory = registry.stages.get(name).load()
    parameters = parameter_names(factory)
    whole = accepts_whole(factory)
    arguments = (
        dict(config)
        if whole or parameters is None
        else {key: value for key, value in config.items() if key in parameters}
    )
    return (
        _make("stage", name, lambda: build(factory, arguments or None), arguments),
        frozenset(arguments),
        parameters or (),
    )


def _make(kind: str, name: str, make: Callable[[], Any], config: Mapping[str, Any]) -> Any:
    try:
        return make()
    except Exception as error:
        raise PluginError(
            f"The registered {kind} {name!r} could not be made from config {dict(config)}: "
            f"{type(error).__name__}: {error}",
            stage=name,
            config=dict(config),
        ) from error


class PipelineLoader:
    """Loads plans of one graph, in surroundings of its own: see :mod:`orchestrator.surroundings`.

    Args:
        graph: The frozen graph.
        manager: Its plugins.
        example: Returns the example request of a plan: what is compiled is compared on it.
        path: Where artifacts are; None: nobody said.
    """

    def __init__(
        self,
        graph: Graph,
        manager: PluginManager,
        example: Callable[[Plan[Session]], Mapping[str, Any]],
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._graph = graph
        self._manager = manager
        self._example = example
        self._path = path
        self._dtype = torch.get_default_dtype()

    def compile(self, plan: Plan[Session], path: str | os.PathLike[str]) -> Plan[Session]:
        """Compiles every stage into a store and writes the plan beside the artifacts.

        Raises:
            CompileError: A stage cannot be compiled, or the folder cannot be written.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise CompileError(f"Artifacts go into a folder, not {path!r}.", path=path)
        # The plan is written last: where it is, its artifacts are.
        self._check_dtype(plan)
        store = ArtifactStore(path)
        if plan.compiled:
            # Regions are of loaded stages; what is learnt of them is in the plan of the session.
            with self._load(plan, store, is_warm=False) as session:
                plan = session.plan
        else:
            with own_modes():
                compile_stages(plan, self._graph, self._backends(plan), store)
        try:
            store.write_plan(plan.to_json())
        except OSError as error:
            raise CompileError(
                f"The artifacts of {plan.pipeline!r} cannot be written to {str(path)!r}: {error}. Give a folder that "
                f"can be made and written to.",
                path=path,
            ) from error
        loader = PipelineLoader(self._graph, self._manager, self._example, Path(path).absolute())
        return replace(plan, loader=loader)

    def load(self, plan: Plan[Session], *, warm: bool = True) -> Session:
        """Compiles what the store lacks, loads every stage, and opens a session.

        The store is the folder that the plan was compiled into, else the one that the environment names, else a
        temporary one.

        Args:
            plan: The plan.
            warm: As for :meth:`Plan.load <orchestrator.Plan.load>`.

        Raises:
            CompileError: A stage cannot be compiled or loaded; nothing stays open.
            PlanError: A stage was set to training mode, with Dropout or BatchNorm, since it was planned.
        """
        self._check_dtype(plan)
        for stage in self._graph.stages.values():
            check_mode(stage)
        path = self._path or os.environ.get(STORE_VARIABLE)
        if path:
            return self._load(plan, ArtifactStore(path), is_warm=warm)
        return self._load_aside(plan, is_warm=warm)

    def _load_aside(self, plan: Plan, *, is_warm: bool) -> Session:
        """Compiles into a folder that is gone once the stages are loaded; an interrupt leaves neither it nor them."""
        # Whatever is made stands in a list before an interrupt can come, so that it is undone by whoever sees it there.
        folders: list[str] = []
        sessions: list[Session] = []

        def tidy() -> None:
            with DeferredSignals():
                while folders:
                    shutil.rmtree(folders[-1], ignore_errors=True)
                    folders.pop()

        try:
            with DeferredSignals():
                folders.append(tempfile.mkdtemp(prefix="stage-orchestrator-"))
            sessions.append(self._load(plan, ArtifactStore(folders[0]), is_warm=is_warm))
            tidy()
            return sessions.pop()
        except BaseException:
            tidy()
            for session in sessions:
                session.close()
            raise

    def _load(self, plan: Plan, store: ArtifactStore, *, is_warm: bool) -> Session:
        backends = self._backends(plan)
        has_gradients = torch.is_grad_enabled()
        try:
            with own_modes():
                builds = compile_stages(plan, self._graph, backends, store)
                executable = load_executable(plan, self._graph, backends, builds)
                if is_warm:
                    warm_up(executable)
                executable = load_regions(executable, store, lambda: self._example(plan))
                for backend in backends.values():
                    backend.begin_counting()
                return Session(executable, self._stage_observers(plan), self._request_observers(plan))
        except BaseException:
            # An interrupt may come anywhere: also where a block of ``no_grad`` has ended and is not left yet.
            torch.set_grad_enabled(has_gradients)
            for backend in backends.values():
                backend.close()
            raise

    def _check_dtype(self, plan: Plan) -> None:
        """Makes sure that models are built, and stages traced, with the default dtype that the plan was made under.

        Raises:
            CompileError: It is another one now.
        """
        now = torch.get_default_dtype()
        if now is not self._dtype:
            raise CompileError(
                f"The plan of {plan.pipeline!r} was made while torch's default dtype was {self._dtype}, and now it is "
                f"{now}: stages would compute with other dtypes than the plan says. Set it back, with "
                f"torch.set_default_dtype({self._dtype}), or plan again.",
                device=None,
            )

    def _backends(self, plan: Plan) -> dict[str, Backend]:
        backends = {}
        for group in plan.groups:
            name, kind = resolve_backend(self._manager, group.device)
            if name != group.backend:
                raise CompileError(
                    f"The plan of {plan.pipeline!r} was made for {group.device!r} of the backend {group.backend!r}, "
                    f"and here that name means the backend {name!r}. Plan again, for a device that is here; or install "
                    f"what the plan was made with.",
                    device=group.device,
                )
            backends[group.device] = kind(group.device, dict(group.options))
        return backends

    def _stage_observers(self, plan: Plan) -> tuple[Any, ...]:
        def adapt(observer: Any) -> Any:
            return lambda call, device, seconds: observer(
                pipeline=plan.pipeline, call=call, device=device, seconds=seconds
            )

        return tuple(
            adapt(observer) for observer in self._manager.observers_of("orchestrator_stage_finished")
        )

    def _request_observers(self, plan: Plan) -> tuple[Any, ...]:
        def adapt(observer: Any) -> Any:
            return lambda seconds, error: observer(pipeline=plan.pipeline, seconds=seconds, error=error)

        return tuple(
            adapt(observer) for observer in self._manager.observers_of("orchestrator_request_finished")
        )

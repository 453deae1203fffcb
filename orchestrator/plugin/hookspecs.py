"""The hooks: what a plugin may implement, and when each is called.

Three kinds. A *registering* hook is called once, when the plugin is loaded, and fills a typed registry. The *adopting*
hook turns an object of another library into a stage. An *observer* is told of something that happened; it changes
nothing, returns nothing and may be called from several threads at once. Parameters are passed by name, so an
implementation takes those it needs.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from orchestrator.plugin.marker import hookspec

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from orchestrator.registry import BackendRegistry, PipelineRegistry, StageRegistry
    from orchestrator.stage import ModelWrapper


@hookspec
def orchestrator_register_stages(registry: StageRegistry) -> None:
    """Register stages by name: ``registry.add(name, target, summary=...)``.

    Args:
        registry: Takes the plugin's stages. A target is an import path ``"package.module:Attribute"`` or
            an object: a class or factory that is called with the stage's config.
    """


@hookspec
def orchestrator_register_backends(registry: BackendRegistry) -> None:
    """Register backends: ``registry.add(name, target, devices=("cuda",), summary=...)``.

    Args:
        registry: Takes the plugin's backends. A target is a class or factory that is called with a device
            string such as ``"cuda:0"``; ``devices`` are the families, the words before the ``:``.
    """


@hookspec
def orchestrator_register_pipelines(registry: PipelineRegistry) -> None:
    """Register pipelines by name: ``registry.add(name, target, summary=...)``.

    Args:
        registry: Takes the plugin's pipelines. A target is a factory that is called with options and
            returns a ``Pipeline``.
    """


@hookspec
def orchestrator_adopt_stage(target: object) -> ModelWrapper | None:
    """Make a stage of an object that ``Pipeline.add`` was given, if it is of a library that the plugin knows.

    Called for what is no stage of this project's own, plain modules and functions included, so it must be quick and
    import nothing for objects it does not know. The first plugin that returns a wrapper adopts the object.

    Args:
        target: The object that a user passed to ``Pipeline.add``.

    Returns:
        A wrapper, or ``None``: the object is none of the plugin's.
    """


@hookspec
def orchestrator_plan_made(plan: Plan) -> None:
    """Observe a finished plan, after it was verified and before anything is compiled.

    Args:
        plan: The plan; frozen.
    """


@hookspec
def orchestrator_stage_finished(pipeline: str, call: str, device: str, seconds: float) -> None:
    """Observe one stage call of a request. A session asks for listeners when it is loaded.

    Args:
        pipeline: The pipeline's name.
        call: The call's name in the graph, e.g. ``"enc#2"``.
        device: The device it ran on, e.g. ``"cuda:0"``, or ``"host"``.
        seconds: Wall time of the call. On devices that run asynchronously, the time to dispatch it.
    """


@hookspec
def orchestrator_request_finished(pipeline: str, seconds: float, error: BaseException | None) -> None:
    """Observe the end of a request, also of one that failed.

    Args:
        pipeline: The pipeline's name.
        seconds: Wall time from the call to its result or error.
        error: The exception of the request, or ``None``.
    """


HOOKS: dict[str, tuple[str, ...]] = {
    spec.__name__: tuple(inspect.signature(spec).parameters)
    for spec in (
        orchestrator_register_stages,
        orchestrator_register_backends,
        orchestrator_register_pipelines,
        orchestrator_adopt_stage,
        orchestrator_plan_made,
        orchestrator_stage_finished,
        orchestrator_request_finished,
    )
}
"""Every hook's parameters, in order."""

REGISTERING = tuple(name for name in HOOKS if name.startswith("orchestrator_register_"))
"""The hooks that fill a registry."""

ADOPTING = "orchestrator_adopt_stage"
"""The hook that turns an object of another library into a stage."""

OBSERVERS = tuple(name for name in HOOKS if name not in (*REGISTERING, ADOPTING))
"""The hooks that are told what happened."""

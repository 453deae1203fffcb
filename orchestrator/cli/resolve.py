"""Find the pipeline that a target names, and build it with the options of ``--set``.

A *target* is a registered name, whose factory is called with options, or ``MODULE:ATTR``: a pipeline or such
a factory in a module, which may lie in the current folder.

A *setting* ``NAME=VALUE`` finds its place by its name:

1. ``stage.option`` is an option of a stage; it overrides the config that the stage is added with. ``loop/stage.option``
   names a stage in the body of a loop, or in a pipeline that was added, by its path.
2. A parameter of the factory is an option of the pipeline.
3. A text or number input of the pipeline gets the value; it wins over a parameter of that name.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.options import parse_pairs, parse_value
from orchestrator.cli.report import JobError, UsageError
from orchestrator.errors import GraphError, OrchestratorError, PluginError, nearest

if TYPE_CHECKING:
    from orchestrator.graph import Graph
    from orchestrator.pipeline import Pipeline

__all__ = ["Built", "build"]

#: Types of inputs that a setting can give.
SIMPLE = (str, int, float, bool)


@dataclass(frozen=True)
class Built:
    """A pipeline, and what the settings say of its inputs.

    Attributes:
        pipeline: The pipeline.
        inputs: Input names to the text of the setting.
        overrides: Stages to the options of their config that settings override.
    """

    pipeline: Pipeline
    inputs: Mapping[str, str]
    overrides: Mapping[str, Mapping[str, str]]

    @property
    def graph(self) -> Graph:
        """The frozen graph."""
        return self.pipeline.graph


@dataclass(frozen=True)
class _Settings:
    """Settings by where they may belong, as text."""

    plain: dict[str, str] = field(default_factory=dict)
    dotted: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Factory:
    """A callable that returns a pipeline, with the name that errors give it."""

    target: str
    function: Callable[..., Any]

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            return {}

    @property
    def open(self) -> bool:
        """It takes options of any name."""
        return any(item.kind is item.VAR_KEYWORD for item in self.parameters.values())

    @property
    def names(self) -> list[str]:
        """Options by name."""
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [name for name, item in self.parameters.items() if item.kind in named]


def build(target: str, settings: list[str] | None = None) -> Built:
    """Builds the pipeline of a target.

    Args:
        target: A registered name or ``MODULE:ATTR``.
        settings: The pairs of ``--set``.

    Raises:
        UsageError: The target, a stage or an option does not exist.
        JobError: A module cannot be imported, or a factory raised.
        OrchestratorError: The pipeline breaks a rule of the library.
    """
    parsed = _parse(settings)
    found = _import(target, parsed) if ":" in target else _registered(target)
    if isinstance(found, _Factory):
        return _from_factory(found, parsed)
    _check_paths(found.graph, parsed.dotted)
    return Built(found, _input_settings(target, found.graph, parsed.plain, ()), parsed.dotted)


def _parse(settings: list[str] | None) -> _Settings:
    parsed = _Settings()
    for name, text in parse_pairs("--set", settings, "OPTION=VALUE or STAGE.OPTION=VALUE").items():
        stage, dot, option = name.partition(".")
        if not dot:
            parsed.plain[name] = text
        elif stage and option:
            parsed.dotted.setdefault(stage, {})[option] = text
        else:
            raise UsageError(f"--set takes OPTION=VALUE or STAGE.OPTION=VALUE, not {name!r}.")
    return parsed


def _registered(name: str) -> _Factory:
    from orchestrator.plugin import default_manager

    pipelines = default_manager().registry.pipelines
    if name in pipelines:
        return _Factory(name, pipelines.get(name).load())
    try:
        pipelines.get(name)
    except PluginError as error:
        hint = " A module is given as MODULE:ATTR." if "." in name or "/" in name else ""
        raise UsageError(f"{error}{hint}") from error
    raise AssertionError(name)


def _import(target: str, settings: _Settings) -> Pipeline | _Factory:
    from orchestrator.pipeline import Pipeline

    module_name, _, attributes = target.partition(":")
    if not module_name or not attributes or module_name.endswith(".py") or "/" in module_name:
        raise UsageError(
            f"A target is a registered name or MODULE:ATTR, e.g. my_package.my_module:make; not {target!r}."
        )
    found: Any = None
    try:
        with _overriding(settings.dotted):
            found = _attribute(module_name, attributes)
    except UsageError:
        # What a factory makes is not there yet, so its stages cannot be known either.
        if found is None or isinstance(found, Pipeline):
            raise
    if isinstance(found, Pipeline):
        return found
    if not callable(found):
        raise UsageError(
            f"{target!r} is a {type(found).__name__}; it must be a Pipeline or a function that returns one."
        )
    return _Factory(target, found)


def _attribute(module_name: str, path: str) -> Any:
    found = _module(module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise UsageError(f"{module_name!r} has no {attribute!r}.{nearest(attribute, public)}")
        found = getattr(found, attribute)
    return found


def _module(name: str) -> Any:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except OrchestratorError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"There is no module {name!r}, neither installed nor in {folder!r}.") from error
        raise JobError(f"The module {name!r} cannot be imported: {_short(error)}") from error


def _from_factory(factory: _Factory, settings: _Settings) -> Built:
    overrides = settings.dotted
    known = {name: text for name, text in settings.plain.items() if factory.open or name in factory.names}
    options: dict[str, Any] = {name: parse_value(text) for name, text in known.items()}
    pipeline = _call(factory, options, overrides)
    inputs = _simple_inputs(pipeline.graph) & known.keys()
    if inputs:
        pipeline = _call(
            factory, {name: value for name, value in options.items() if name not in inputs}, overrides
        )
    _check_paths(pipeline.graph, overrides)
    rest = {name: text for name, text in settings.plain.items() if name not in known or name in inputs}
    return Built(pipeline, _input_settings(factory.target, pipeline.graph, rest, factory.names), overrides)


def _call(factory: _Factory, options: dict[str, Any], overrides: dict[str, dict[str, str]]) -> Pipeline:
    from orchestrator.pipeline import Pipeline

    for name, item in factory.parameters.items():
        if name in factory.names and item.default is item.empty and name not in options:
            raise UsageError(f"{factory.target!r} needs the option {name!r}: --set {name}=VALUE.")
    with _overriding(overrides):
        try:
            pipeline = factory.function(**options)
        except OrchestratorError:
            raise
        except (Exception, SystemExit) as error:
            given = f" with {options!r}" if options else ""
            raise JobError(
                f"The pipeline {factory.target!r} cannot be built{given}: {_short(error)}"
            ) from error
    if not isinstance(pipeline, Pipeline):
        raise UsageError(
            f"{factory.target!r} returned a {type(pipeline).__name__}; it must return a Pipeline."
        )
    return pipeline


@contextlib.contextmanager
def _overriding(overrides: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """The context in which stages are added with overridden options.

    Raises:
        UsageError: (on leaving) A stage was never added.
    """
    from orchestrator.pipeline import stage_overrides

    built = False
    local: dict[str, dict[str, Any]] = {}
    for path, options in overrides.items():
        local.setdefault(path.rpartition("/")[2], {}).update(_values(options))
    try:
        with stage_overrides(local):
            yield
            built = True
    except GraphError as error:
        if built:
            raise UsageError(str(error)) from error
        raise


def _check_paths(graph: Graph, overrides: Mapping[str, Mapping[str, str]]) -> None:
    """Makes sure that a path names one stage: while a body is built, its stages go by their last names."""
    for path in overrides:
        if "/" not in path:
            continue
        if path not in graph.stages:
            raise UsageError(f"There is no stage {path!r} to set options of.{nearest(path, graph.stages)}")
        last = path.rpartition("/")[2]
        same = [name for name in graph.stages if name.rpartition("/")[2] == last]
        if len(same) > 1:
            raise UsageError(
                f"Options of {path!r} cannot be set alone: {', '.join(map(repr, same))} are added as {last!r}. "
                f"--set {last}.OPTION=VALUE sets them all."
            )


def _values(options: Mapping[str, str]) -> dict[str, Any]:
    return {name: parse_value(text) for name, text in options.items()}


def _simple_inputs(graph: Graph) -> set[str]:
    return {name for name, spec in graph.inputs.items() if spec in SIMPLE}


def _input_settings(target: str, graph: Graph, settings: dict[str, str], options: Any) -> dict[str, str]:
    """Returns the settings, which must all be of text or number inputs."""
    inputs = _simple_inputs(graph)
    for name in settings:
        if name in inputs:
            continue
        if name in graph.inputs:
            raise UsageError(f"The input {name!r} of {target!r} comes from a file: --input {name}=FILE.")
        known = {*options, *inputs}
        which = nearest(name, known) if known else " It has none."
        raise UsageError(f"{target!r} has no option {name!r}.{which}")
    return settings


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")

"""Find the pipeline that a target names, and build it with the options of ``--set``.

A *target* is a registered name, whose factory is called with options, or ``MODULE:ATTR``: a pipeline or such
a factory in a module, which may lie in the current folder.

A *setting* ``NAME=VALUE`` finds its place by its name:

1. ``stage.option`` is an option of a stage; it overrides the config that the stage is added with. ``loop/stage.option``
   names a stage in the body of a loop, or in a pipeline that was added, by its path.
2. A parameter of the factory is an option of the pipeline.
3. A text or number input of the pipeline gets the value, also where a parameter of that name does.
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

__all__ = ["BuiltPipeline", "build_target"]

#: Types of inputs that a setting can give.
SIMPLE = (str, int, float, bool)


@dataclass(frozen=True)
class BuiltPipeline:
    """A pipeline, with the settings that are inputs or options of its stages.

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
        return self.pipeline.freeze()

    def is_overridden(self, stage: str, option: str) -> bool:
        """Tells whether a setting gave an option of a stage, by its path or by its last name."""
        return any(option in self.overrides.get(name, ()) for name in (stage, stage.rpartition("/")[2]))


@dataclass(frozen=True)
class _Assignments:
    """The settings as text, by where they may belong.

    Attributes:
        by_name: ``NAME=VALUE``: parameters and inputs.
        by_stage: ``STAGE.OPTION=VALUE``: the options of each stage.
    """

    by_name: dict[str, str] = field(default_factory=dict)
    by_stage: dict[str, dict[str, str]] = field(default_factory=dict)


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
    def is_open(self) -> bool:
        """It takes options of any name."""
        return any(item.kind is item.VAR_KEYWORD for item in self.parameters.values())

    @property
    def names(self) -> list[str]:
        """Options by name."""
        by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return [name for name, item in self.parameters.items() if item.kind in by_keyword]


def build_target(target: str, settings: list[str] | None = None) -> BuiltPipeline:
    """Builds the pipeline of a target.

    Args:
        target: A registered name or ``MODULE:ATTR``.
        settings: The pairs of ``--set``.

    Raises:
        UsageError: The target, a stage or an option does not exist.
        JobError: A module cannot be imported, or a factory raised.
        OrchestratorError: The pipeline breaks a rule of the library.
    """
    assignments = _parse(settings)
    source = _import(target, assignments) if ":" in target else _registered_factory(target)
    if isinstance(source, _Factory):
        return _from_factory(source, assignments)
    graph = source.freeze()
    _check_paths(graph, assignments.by_stage)
    texts = _input_settings(target, graph, assignments.by_name, ())
    return BuiltPipeline(source, texts, assignments.by_stage)


def _parse(settings: list[str] | None) -> _Assignments:
    assignments = _Assignments()
    for name, text in parse_pairs("--set", settings, "OPTION=VALUE or STAGE.OPTION=VALUE").items():
        stage, dot, option = name.partition(".")
        if not dot:
            assignments.by_name[name] = text
        elif stage and option:
            assignments.by_stage.setdefault(stage, {})[option] = text
        else:
            raise UsageError(f"--set takes OPTION=VALUE or STAGE.OPTION=VALUE, not {name!r}.")
    return assignments


def _registered_factory(name: str) -> _Factory:
    from orchestrator.plugin import default_manager

    try:
        entry = default_manager().registry.pipelines.get(name)
    except PluginError as error:
        hint = " A module is given as MODULE:ATTR." if "." in name or "/" in name else ""
        raise UsageError(f"{error}{hint}") from error
    return _Factory(name, entry.load())


def _import(target: str, settings: _Assignments) -> Pipeline | _Factory:
    from orchestrator.pipeline import Pipeline

    module_name, _, attributes = target.partition(":")
    if not module_name or not attributes or module_name.endswith(".py") or "/" in module_name:
        raise UsageError(
            f"A target is a registered name or MODULE:ATTR, e.g. my_package.my_module:make; not {target!r}."
        )
    source: Any = None
    try:
        with _override_stages(settings.by_stage):
            source = _attribute(module_name, attributes)
    except UsageError:
        # What a factory makes is not there yet, so its stages cannot be known either.
        if source is None or isinstance(source, Pipeline):
            raise
    if isinstance(source, Pipeline):
        return source
    if not callable(source):
        raise UsageError(
            f"{target!r} is a {type(source).__name__}; it must be a Pipeline or a function that returns one."
        )
    return _Factory(target, source)


def _attribute(module_name: str, path: str) -> Any:
    value = _module(module_name)
    for attribute in path.split("."):
        if not hasattr(value, attribute):
            public = [name for name in dir(value) if not name.startswith("_")]
            raise UsageError(f"{module_name!r} has no {attribute!r}.{nearest(attribute, public)}")
        value = getattr(value, attribute)
    return value


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
        raise JobError(f"The module {name!r} cannot be imported: {_one_line(error)}") from error


def _from_factory(factory: _Factory, settings: _Assignments) -> BuiltPipeline:
    options = {
        name: parse_value(text)
        for name, text in settings.by_name.items()
        if factory.is_open or name in factory.names
    }
    pipeline = _call(factory, options, settings.by_stage)
    # Only now is it known what the inputs are: one may go by the name of a parameter, and is then given as well.
    graph = pipeline.freeze()
    _check_paths(graph, settings.by_stage)
    inputs = _simple_inputs(graph)
    texts = {name: text for name, text in settings.by_name.items() if name in inputs or name not in options}
    return BuiltPipeline(
        pipeline, _input_settings(factory.target, graph, texts, factory.names), settings.by_stage
    )


def _call(factory: _Factory, options: dict[str, Any], overrides: dict[str, dict[str, str]]) -> Pipeline:
    from orchestrator.pipeline import Pipeline

    # An option that is missing is said before the call, which would raise a TypeError like any fault of the factory.
    for name, item in factory.parameters.items():
        if name in factory.names and item.default is item.empty and name not in options:
            raise UsageError(f"{factory.target!r} needs the option {name!r}: --set {name}=VALUE.")
    with _override_stages(overrides):
        try:
            pipeline = factory.function(**options)
        except OrchestratorError:
            raise
        except (Exception, SystemExit) as error:  # of code that is not ours, up to a script that ends itself
            with_options = f" with {options!r}" if options else ""
            raise JobError(
                f"The pipeline {factory.target!r} cannot be built{with_options}: {_one_line(error)}"
            ) from error
    if not isinstance(pipeline, Pipeline):
        raise UsageError(
            f"{factory.target!r} returned a {type(pipeline).__name__}; it must return a Pipeline."
        )
    return pipeline


@contextlib.contextmanager
def _override_stages(overrides: Mapping[str, Mapping[str, str]]) -> Iterator[None]:
    """The context in which stages are added with overridden options.

    Raises:
        UsageError: (on leaving) A stage was never added.
    """
    from orchestrator.pipeline import stage_overrides

    # While stages are added they go by their last names; `_check_paths` refuses a path that is not alone in that.
    is_complete = False
    local: dict[str, dict[str, Any]] = {}
    for path, options in overrides.items():
        local.setdefault(path.rpartition("/")[2], {}).update(_values(options))
    try:
        with stage_overrides(local):
            yield
            is_complete = True
    except GraphError as error:
        # Raised by the context itself, not by what was built in it: a name of the settings was never added.
        if is_complete:
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
        names = {*options, *inputs}
        which = nearest(name, names) if names else " It has none."
        raise UsageError(f"{target!r} has no option {name!r}.{which}")
    return settings


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")

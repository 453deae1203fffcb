"""The plugin manager: loads plugins one by one, each in isolation, and holds what they registered.

A plugin is *loaded* when its hooks were checked and all of its names adopted; *broken* when any of that
failed, and then nothing of it is left; *blocked* when it is left out on purpose. A broken plugin is an
error only for who asks for a name that it would have given.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from typing import Any

import pluggy

from orchestrator.errors import OrchestratorError, PluginError, nearest
from orchestrator.plugin import hookspecs
from orchestrator.plugin.check import check_plugin
from orchestrator.plugin.discovery import DiscoveredPlugin, find_plugins
from orchestrator.plugin.hookspecs import ADOPTING, OBSERVERS, REGISTERING
from orchestrator.plugin.marker import PROJECT
from orchestrator.plugin.observer import Observer
from orchestrator.registry import DISABLE_VARIABLE, BrokenPlugin, NameRegistry, Owner, Registry

__all__ = ["PluginManager", "default_manager"]


class PluginManager:
    """The plugins of one process, or of one test.

    Args:
        load_entry_points: Whether to load what the installed distributions declare.

    Attributes:
        registry: The names that the loaded plugins registered.
    """

    def __init__(self, *, load_entry_points: bool = True) -> None:
        self.registry = Registry()
        self._host = pluggy.PluginManager(PROJECT)
        self._host.add_hookspecs(hookspecs)
        self._owners: dict[str, Owner] = {}
        self._logged_failures: set[tuple[Owner, str]] = set()
        self._lock = threading.RLock()
        self._block(os.environ.get(DISABLE_VARIABLE, ""))
        if load_entry_points:
            self.load_entry_points()

    @property
    def plugins(self) -> tuple[Owner, ...]:
        """The loaded plugins, sorted by name."""
        return tuple(owner for _, owner in sorted(self._owners.items()))

    @property
    def broken_plugins(self) -> tuple[BrokenPlugin, ...]:
        """The plugins that could not be loaded, with the reason."""
        return self.registry.broken_plugins

    @property
    def blocked_plugins(self) -> tuple[str, ...]:
        """The names of plugins that are left out, sorted."""
        return self.registry.blocked_plugins

    def load_entry_points(self) -> None:
        """Loads the plugins of the installed distributions; a broken one is recorded and skipped.

        Plugins that are loaded already are left alone, so that it can be called again after an install.
        """
        with self._lock:
            for candidate in find_plugins():
                owner = self._owners.get(candidate.owner.plugin)
                if owner == candidate.owner or self._host.is_blocked(candidate.owner.plugin):
                    continue
                self._load(candidate)

    def register(self, plugin: object, name: str | None = None) -> Owner | None:
        """Registers a module or object with hooks: in a test, a notebook or a script.

        Args:
            plugin: A module, or an object whose methods are hooks.
            name: The plugin's name; by default that of the module or class.

        Returns:
            The plugin as it is listed, or ``None`` if its name is blocked.

        Raises:
            PluginError: The plugin is broken; nothing of it is registered, and it is listed as broken.
        """
        owner = Owner(name or getattr(plugin, "__name__", None) or type(plugin).__name__)
        with self._lock:
            if self._host.is_blocked(owner.plugin):
                return None
            self._register(plugin, owner)
        return owner

    def unregister(self, name: str) -> None:
        """Forgets a plugin and all it registered; sessions that were loaded before keep its stages.

        Raises:
            PluginError: No plugin of that name is loaded.
        """
        with self._lock:
            owner = self._owners.get(name)
            if owner is None:
                hint = nearest(name, self._owners)
                raise PluginError(f"No plugin {name!r} is loaded.{hint}", plugin=name)
            self._forget(owner)

    def adopt(self, target: object) -> object:
        """Returns the stage that the first plugin that knows an object makes of it; else the object itself.

        Raises:
            PluginError: A plugin failed at it, or made something else than a wrapper.
        """
        with self._lock:
            implementations = getattr(self._host.hook, ADOPTING).get_hookimpls()
        for each in reversed(implementations):
            stage = self._adopt_with(each, target)
            if stage is not None:
                return stage
        return target

    def _adopt_with(self, hook: Any, target: object) -> object:
        # An error of this project's own says already what is wrong; any other is told with the plugin's name.
        owner = self._owners[hook.plugin_name]
        try:
            stage = hook.function(target=target)
        except OrchestratorError:
            raise
        except Exception as error:
            raise _because(
                owner, f"failed to adopt {type(target).__name__!r}", error, "Mend the hook"
            ) from error
        if stage is not None and not _is_wrapper(stage):
            raise PluginError(
                f"{owner} made {stage!r} of a {type(target).__name__}; {ADOPTING} returns a ModelWrapper or None.",
                plugin=owner.plugin,
                distribution=owner.distribution,
            )
        return stage

    def observers_of(self, hook: str) -> tuple[Observer, ...]:
        """Returns the observers of a hook in the order in which to call them; empty if nobody listens.

        Raises:
            PluginError: ``hook`` is no observing hook.
        """
        if hook not in OBSERVERS:
            raise PluginError(f"{hook!r} is no hook with observers.{nearest(hook, OBSERVERS)}", hook=hook)
        with self._lock:
            implementations = getattr(self._host.hook, hook).get_hookimpls()
            # pluggy keeps them in reverse order of calling.
            return tuple(
                Observer(hook, self._owners[each.plugin_name], each.function, self._logged_failures)
                for each in reversed(implementations)
            )

    def notify(self, hook: str, **objects: object) -> None:
        """Tells every observer of a hook; for rare events. Hot paths keep :meth:`observers_of`."""
        for observer in self.observers_of(hook):
            observer(**objects)

    def _block(self, names: str) -> None:
        plugins = [name.strip() for name in names.split(",") if name.strip()]
        for name in plugins:
            self._host.set_blocked(name)
        self.registry.block(plugins)

    def _load(self, candidate: DiscoveredPlugin) -> None:
        try:
            plugin = candidate.load()
        except (Exception, SystemExit) as error:
            self._record(_load_error(candidate, error), candidate.owner)
            return
        with contextlib.suppress(PluginError):  # recorded where it was raised
            self._register(plugin, candidate.owner)

    def _register(self, plugin: object, owner: Owner) -> None:
        """Registers a plugin whole, or records it as broken, leaves nothing of it and raises."""
        staging = Registry(owner)
        try:
            self._check_new(plugin, owner)
            self._adopt(plugin, owner, staging)
        except PluginError as error:
            self._record(error, owner, staging)
            raise
        except (Exception, SystemExit) as error:
            failure = _hook_error(owner, error)
            self._record(failure, owner, staging)
            raise failure from error

    def _check_new(self, plugin: object, owner: Owner) -> None:
        other_owner = self._owners.get(owner.plugin)
        if other_owner is not None:
            raise PluginError(
                f"Two plugins are named {owner.plugin!r}: {other_owner} is loaded, {owner} is left out."
                " Rename one, i.e. its entry point, or uninstall one.",
                plugin=owner.plugin,
                distributions=(other_owner.distribution, owner.distribution),
            )
        # A blocked name stands for None in pluggy's table.
        other = None if plugin is None else self._host.get_name(plugin)
        if other is not None:
            raise PluginError(
                f"{owner} is the same object as {self._owners[other]}. Register it once.",
                plugin=owner.plugin,
                distributions=(self._owners[other].distribution, owner.distribution),
            )

    def _adopt(self, plugin: object, owner: Owner, staging: Registry) -> None:
        marks = self._marks(plugin)
        check_plugin(plugin, owner, marks)
        _fill(staging, plugin, marks)
        try:
            self._host.register(plugin, owner.plugin)
            self.registry.adopt(staging)
        except BaseException:
            if self._host.has_plugin(owner.plugin):
                self._host.unregister(name=owner.plugin)
            raise
        self._owners = {**self._owners, owner.plugin: owner}

    def _marks(self, plugin: object) -> dict[str, Mapping[str, Any]]:
        options_by_name = {name: self._host.parse_hookimpl_opts(plugin, name) for name in dir(plugin)}
        return {name: options for name, options in options_by_name.items() if options is not None}

    def _forget(self, owner: Owner) -> None:
        self._host.unregister(name=owner.plugin)
        self.registry.drop(owner)
        self._logged_failures.difference_update([(owner, hook) for hook in OBSERVERS])
        self._owners = {name: each for name, each in self._owners.items() if name != owner.plugin}

    def _record(self, error: PluginError, owner: Owner, staging: Registry | None = None) -> None:
        if self._owners.get(owner.plugin) == owner:
            return  # the same plugin a second time: the first is loaded and well
        names = staging.provides() if staging is not None else ()
        self.registry.add_broken(BrokenPlugin(owner.plugin, owner.distribution, owner.version, error, names))


def _fill(staging: Registry, plugin: object, marks: Mapping[str, Mapping[str, Any]]) -> None:
    """Calls every registering hook, also after one has failed: the names explain what is missing."""
    failures: list[BaseException] = []
    for name, options in marks.items():
        hook = options.get("specname") or name
        if hook in REGISTERING:
            try:
                getattr(plugin, name)(registry=_part(staging, hook))
            except (Exception, SystemExit) as error:
                failures.append(error)
    if failures:
        raise failures[0]


def _part(registry: Registry, hook: str) -> NameRegistry:
    return {
        "orchestrator_register_stages": registry.stages,
        "orchestrator_register_backends": registry.backends,
        "orchestrator_register_pipelines": registry.pipelines,
    }[hook]


def _is_wrapper(stage: object) -> bool:
    """Tells whether an object is a stage; this module itself is imported before torch is."""
    from orchestrator.stage import ModelWrapper

    return isinstance(stage, ModelWrapper)


def _load_error(candidate: DiscoveredPlugin, error: BaseException) -> PluginError:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    mend = f"Install {missing!r}" if missing else f"Upgrade or repair {candidate.owner.distribution!r}"
    return _because(candidate.owner, f"cannot be loaded from {candidate.target!r}", error, mend)


def _hook_error(owner: Owner, error: BaseException) -> PluginError:
    mend = f"Upgrade or repair {owner.distribution!r}" if owner.distribution else "Mend its hooks"
    return _because(owner, "failed while it registered", error, mend)


def _because(owner: Owner, what: str, error: BaseException, mend: str) -> PluginError:
    failure = PluginError(
        f"{owner} {what}: {type(error).__name__}: {error}. {mend}, or leave it out:"
        f" {DISABLE_VARIABLE}={owner.plugin}.",
        plugin=owner.plugin,
        distribution=owner.distribution,
    )
    failure.__cause__ = error
    return failure


_default: PluginManager | None = None
_default_lock = threading.RLock()


def default_manager() -> PluginManager:
    """Returns the manager of this process, which loads all installed plugins when it is first asked for.

    A plugin that asks for it while it is being loaded gets the manager as it then is; other threads wait.
    """
    global _default
    with _default_lock:
        if _default is None:
            manager = _default = PluginManager(load_entry_points=False)
            try:
                manager.load_entry_points()
            except BaseException:
                _default = None
                raise
        return _default

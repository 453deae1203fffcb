"""The registries: unique names of one kind, filled by plugins and read by users.

A plugin's names are staged in a :class:`Registry` of its own and adopted as one, see
:meth:`Registry.adopt`. Plugins that are broken or left out are remembered, so that the error about an
unknown name can say where the name would have come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from orchestrator.errors import PluginError, nearest
from orchestrator.registry.entry import BY_HAND, DISABLE_VARIABLE, BrokenPlugin, Owner, RegistryEntry

__all__ = ["BackendRegistry", "NameRegistry", "PipelineRegistry", "Registry", "StageRegistry"]


@dataclass
class Unavailable:
    """Plugins that give nothing, shared by the registries so that an unknown name can be explained."""

    broken_plugins: list[BrokenPlugin] = field(default_factory=list)
    blocked_plugins: tuple[str, ...] = ()

    def explain(self, kind: str, name: str, alternatives: Iterable[str]) -> str:
        """Returns where ``name`` would have come from, or the names that may be meant.

        When a broken plugin is known to give the name, a guess at another name would mislead.
        """
        sure = [plugin for plugin in self.broken_plugins if (kind, name) in plugin.provides]
        if sure:
            return "".join(f" It comes with a broken plugin. {plugin.error}" for plugin in sure)
        words = [nearest(name, alternatives)]
        words += [f" It may come with a broken plugin. {plugin.error}" for plugin in self.broken_plugins]
        if self.blocked_plugins:
            names = ", ".join(repr(plugin) for plugin in self.blocked_plugins)
            words.append(f" {DISABLE_VARIABLE} leaves out: {names}.")
        return "".join(words)


class NameRegistry:
    """The base of the three registries: entries of one kind under unique names.

    Iterating gives the names in sorted order. Readers need no lock: a change replaces the table.
    """

    kind: ClassVar[str]

    def __init__(self, owner: Owner = BY_HAND, unavailable: Unavailable | None = None) -> None:
        self._owner = owner
        self._unavailable = unavailable if unavailable is not None else Unavailable()
        self._entries: dict[str, RegistryEntry] = {}
        self._closed = False

    def add(self, name: str, target: object, *, summary: str = "") -> None:
        """Gives a target a name; imports nothing.

        Args:
            name: A unique name; dots are fine, ``:``, ``->`` and spaces are not.
            target: ``"package.module:Attribute"``, or a class or factory.
            summary: One line for ``orchestrator list``.

        Raises:
            PluginError: The name, target or summary is unfit, or the name is taken.
        """
        self._put(RegistryEntry(self.kind, name, target, summary, self._owner))

    def get(self, name: str) -> RegistryEntry:
        """Returns the entry of that name.

        Raises:
            PluginError: Nothing has that name. The error offers the nearest one, and tells which broken
                plugin would have given it.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def entries(self) -> tuple[RegistryEntry, ...]:
        """Returns all entries, sorted by name."""
        return tuple(entry for _, entry in sorted(self._entries.items()))

    def __contains__(self, name: object) -> bool:
        """Tells whether something has that name."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names in sorted order."""
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        """Returns how many names there are."""
        return len(self._entries)

    def _put(self, entry: RegistryEntry) -> None:
        if self._closed:
            raise PluginError(
                f"{entry.owner} adds the {self.kind} {entry.name!r} after its hook has returned."
                " Names are added inside the hook only; do not keep the registry.",
                name=entry.name,
                plugin=entry.plugin,
            )
        self._check_free(entry)
        self._entries = {**self._entries, entry.name: entry}

    def _check_free(self, entry: RegistryEntry) -> None:
        holder = self._entries.get(entry.name)
        if holder is not None:
            raise _duplicate(f"{self.kind} {entry.name!r}", holder, entry)

    def _check_adoptable(self, staging: NameRegistry) -> None:
        for entry in staging.entries():
            self._check_free(entry)

    def _adopt(self, staging: NameRegistry) -> None:
        self._entries = {**self._entries, **staging._entries}
        staging._closed = True

    def _drop(self, owner: Owner) -> None:
        self._entries = {name: entry for name, entry in self._entries.items() if entry.owner != owner}

    def _unknown(self, name: str) -> PluginError:
        return PluginError(
            f"No {self.kind} is registered as {name!r}.{self._unavailable.explain(self.kind, str(name), self)}",
            kind=self.kind,
            name=name,
            known=tuple(self),
        )


class StageRegistry(NameRegistry):
    """Stages by name; a target is a stage's class or a factory of it, called with the stage's config."""

    kind = "stage"


class PipelineRegistry(NameRegistry):
    """Pipelines by name; a target is a factory that is called with options and returns a pipeline."""

    kind = "pipeline"


class BackendRegistry(NameRegistry):
    """Backends by name and by the device families they serve; a target is called with a device string."""

    kind = "backend"

    def add(
        self, name: str, target: object, *, summary: str = "", devices: Iterable[str] | None = None
    ) -> None:
        """Gives a backend a name and the device families it serves; imports nothing.

        Args:
            name: A unique name; dots are fine, ``:``, ``->`` and spaces are not.
            target: ``"package.module:Attribute"``, or the backend's class or factory.
            summary: One line for ``orchestrator list``.
            devices: Device families, e.g. ``("cpu", "cuda")``; by default the name itself.

        Raises:
            PluginError: An argument is unfit, or the name or a device family is taken.
        """
        if devices is None or isinstance(devices, str):
            devices = (name if devices is None else devices,)
        families = tuple(dict.fromkeys(devices))
        self._put(RegistryEntry(self.kind, name, target, summary, self._owner, families))

    def for_device(self, device: str) -> RegistryEntry:
        """Returns the backend that serves a device string, e.g. ``"cuda:1"``.

        Raises:
            PluginError: No backend serves that family; ``.known`` holds the families that are served.
        """
        family = str(device).partition(":")[0]
        by_family = self._by_family()
        if family not in by_family:
            why = self._unavailable.explain("device", family, by_family)
            raise PluginError(
                f"No backend serves the device {device!r}.{why}",
                device=device,
                known=tuple(sorted(by_family)),
            )
        return by_family[family]

    @property
    def devices(self) -> tuple[str, ...]:
        """The device families that are served, sorted."""
        return tuple(sorted(self._by_family()))

    def _by_family(self) -> dict[str, RegistryEntry]:
        return {family: entry for entry in self._entries.values() for family in entry.devices}

    def _check_free(self, entry: RegistryEntry) -> None:
        super()._check_free(entry)
        by_family = self._by_family()
        for family in entry.devices:
            if family in by_family:
                raise _duplicate(f"backend for device {family!r}", by_family[family], entry)


class Registry:
    """The three registries of one plugin manager.

    Attributes:
        stages: Stages by name.
        backends: Backends by name and device family.
        pipelines: Pipelines by name.
    """

    def __init__(self, owner: Owner = BY_HAND) -> None:
        self._unavailable = Unavailable()
        self.stages = StageRegistry(owner, self._unavailable)
        self.backends = BackendRegistry(owner, self._unavailable)
        self.pipelines = PipelineRegistry(owner, self._unavailable)

    @property
    def broken_plugins(self) -> tuple[BrokenPlugin, ...]:
        """The plugins that were found and could not be used."""
        return tuple(self._unavailable.broken_plugins)

    @property
    def blocked_plugins(self) -> tuple[str, ...]:
        """The names of plugins that are left out on purpose."""
        return self._unavailable.blocked_plugins

    def block(self, names: Iterable[str]) -> None:
        """Records which plugins are left out, for the errors about unknown names."""
        self._unavailable.blocked_plugins = tuple(sorted({*self._unavailable.blocked_plugins, *names}))

    def adopt(self, staging: Registry) -> None:
        """Takes over all that a plugin has added, or nothing.

        Raises:
            PluginError: A name or a device family is taken; this registry is as it was.
        """
        for mine, theirs in zip(self._all(), staging._all(), strict=True):
            mine._check_adoptable(theirs)
        for mine, theirs in zip(self._all(), staging._all(), strict=True):
            mine._adopt(theirs)
        self.forget_broken(staging.stages._owner)

    def drop(self, owner: Owner) -> None:
        """Forgets every entry of a plugin."""
        for names in self._all():
            names._drop(owner)

    def add_broken(self, plugin: BrokenPlugin) -> None:
        """Records a plugin that cannot be used; an earlier record of the same plugin is replaced."""
        self.forget_broken(plugin.owner)
        self._unavailable.broken_plugins.append(plugin)

    def forget_broken(self, owner: Owner) -> None:
        """Forgets that a plugin was broken."""
        self._unavailable.broken_plugins = [
            plugin for plugin in self._unavailable.broken_plugins if plugin.owner != owner
        ]

    def provides(self) -> tuple[tuple[str, str], ...]:
        """Returns ``(kind, name)`` of every entry, and ``("device", family)`` of every family served."""
        names = [(registry.kind, name) for registry in self._all() for name in registry]
        return (*names, *(("device", family) for family in self.backends.devices))

    def _all(self) -> tuple[NameRegistry, ...]:
        return self.stages, self.backends, self.pipelines


def _duplicate(what: str, holder: RegistryEntry, entry: RegistryEntry) -> PluginError:
    # A plugin that takes its own name is its author's to mend; between two the user can choose.
    if holder.owner == entry.owner:
        twice = f"twice by {entry.owner}: as {holder.target!r} and as {entry.target!r}. Rename one."
    else:
        twice = (
            f"twice: by {holder.owner} as {holder.target!r} and by {entry.owner} as {entry.target!r}."
            f" Rename one, uninstall one, or leave one out: {DISABLE_VARIABLE}={entry.plugin}."
        )
    return PluginError(
        f"The {what} is registered {twice}",
        name=entry.name,
        entries=(holder, entry),
        plugins=(holder.plugin, entry.plugin),
        distributions=(holder.distribution, entry.distribution),
    )

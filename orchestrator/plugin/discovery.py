"""Find the plugins of the installed distributions, without importing any.

A plugin is *found* when a distribution declares an entry point in the group ``orchestrator``. A
distribution whose entry points cannot be read is found too, with the error in place of the entry point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from orchestrator.plugin.marker import PROJECT
from orchestrator.registry import Owner

__all__ = ["DiscoveredPlugin", "find_plugins"]

_OWN_DISTRIBUTION = "stage-orchestrator"


@dataclass(frozen=True)
class DiscoveredPlugin:
    """A plugin that a distribution declares.

    Attributes:
        owner: Its name, distribution and version.
        target: The module or object that the entry point names, e.g. ``"my_stages.plugin"``.
        entry_point: To load it with; ``None`` if it could not be read.
        error: Why it could not be read.
    """

    owner: Owner
    target: str
    entry_point: metadata.EntryPoint | None = None
    error: Exception | None = None

    def load(self) -> object:
        """Imports the target; raises whatever that raises."""
        if self.entry_point is None:
            raise self.error or ValueError("it has no entry point")
        if metadata.EntryPoint.pattern.match(self.target) is None:
            raise ValueError("an entry point names 'package.module' or 'package.module:object'")
        plugin: object = self.entry_point.load()
        return plugin


def find_plugins() -> list[DiscoveredPlugin]:
    """Returns every declared plugin, in the order in which they are to be loaded.

    1. Plugins of the core itself come first, so that no plugin can take one of its names.
    2. The rest is sorted by plugin and distribution, so that the loser of a conflict is always the same.
    """
    return sorted(_entry_points(), key=_load_order)


def _load_order(candidate: DiscoveredPlugin) -> tuple[bool, str, str]:
    distribution = candidate.owner.distribution or ""
    return distribution != _OWN_DISTRIBUTION, candidate.owner.plugin, distribution


def _entry_points() -> Iterator[DiscoveredPlugin]:
    try:
        points: Iterable[metadata.EntryPoint] = metadata.entry_points(group=PROJECT)
    except Exception:
        # One unreadable file fails the call for all; read the distributions one by one.
        yield from _entry_points_one_by_one()
        return
    for point in points:
        yield _discovered_plugin(point, point.dist)


def _entry_points_one_by_one() -> Iterator[DiscoveredPlugin]:
    names: set[str] = set()
    for distribution in metadata.distributions():
        name = _text(distribution, "Name")
        # As in metadata.entry_points: the first distribution of a name on the path shadows the others.
        if name is None or name in names:
            continue
        names.add(name)
        try:
            points = [point for point in distribution.entry_points if point.group == PROJECT]
        except Exception as error:
            if _mentions_group(distribution):
                yield DiscoveredPlugin(_owner(name, distribution), "entry_points.txt", error=error)
            continue
        for point in points:
            yield _discovered_plugin(point, distribution)


def _discovered_plugin(
    point: metadata.EntryPoint, distribution: metadata.Distribution | None
) -> DiscoveredPlugin:
    return DiscoveredPlugin(_owner(point.name, distribution), point.value, point)


def _owner(plugin: str, distribution: metadata.Distribution | None) -> Owner:
    if distribution is None:
        return Owner(plugin)
    return Owner(plugin, _text(distribution, "Name") or "?", _text(distribution, "Version"))


def _text(distribution: metadata.Distribution, key: str) -> str | None:
    # A folder left behind by a failed uninstall has no METADATA; releases differ in what they raise.
    try:
        value: str | None = distribution.metadata[key]
    except Exception:
        return None
    return value


def _mentions_group(distribution: metadata.Distribution) -> bool:
    return f"[{PROJECT}]" in (distribution.read_text("entry_points.txt") or "")

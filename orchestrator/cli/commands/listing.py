"""``orchestrator list``: what can be used by name, who ships it, and which plugins are broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.options import AsJson, Debug
from orchestrator.cli.report import reporting

if TYPE_CHECKING:
    from orchestrator.plugin import PluginManager
    from orchestrator.registry import NameRegistry, RegistryEntry

__all__ = ["command"]


def command(as_json: AsJson = False, debug: Debug = False) -> None:
    """List pipelines, stages, backends and plugins, with the error of each broken plugin.

    Nothing but the plugins themselves is imported, so a name may still turn out broken when it is used.
    """
    with reporting(as_json=as_json, debug=debug) as reply:
        from orchestrator.plugin import default_manager

        tables = _all_tables(default_manager())
        reply.data = tables
        if not as_json:
            for kind, rows in tables.items():
                _print(kind, rows)


def _all_tables(manager: PluginManager) -> dict[str, list[dict[str, Any]]]:
    registry = manager.registry
    return {
        "pipelines": _rows(registry.pipelines),
        "stages": _rows(registry.stages),
        "backends": _rows(registry.backends),
        "plugins": _plugins(manager),
    }


def _rows(names: NameRegistry) -> list[dict[str, Any]]:
    return [_row(entry) for entry in names.entries()]


def _row(entry: RegistryEntry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "summary": entry.summary}
    if entry.devices:
        row["devices"] = list(entry.devices)
    target = entry.target if isinstance(entry.target, str) else repr(entry.target)
    return {
        **row,
        "plugin": entry.plugin,
        "distribution": entry.distribution,
        "version": entry.version,
        "target": target,
    }


def _plugins(manager: PluginManager) -> list[dict[str, Any]]:
    rows = [_plugin(owner.plugin, owner.distribution, owner.version, "loaded") for owner in manager.plugins]
    rows += [
        _plugin(each.name, each.distribution, each.version, "broken", str(each.error))
        for each in manager.broken_plugins
    ]
    rows += [_plugin(name, None, None, "left out") for name in manager.blocked_plugins]
    return sorted(rows, key=lambda row: (row["name"], row["status"]))


def _plugin(
    name: str, distribution: str | None, version: str | None, status: str, error: str | None = None
) -> dict[str, Any]:
    return {"name": name, "distribution": distribution, "version": version, "status": status, "error": error}


def _print(kind: str, rows: list[dict[str, Any]]) -> None:
    from orchestrator.cli.tables import print_table

    if not rows:
        typer.echo(f"{kind}\n(none)\n")
        return
    columns = [name for name in rows[0] if name not in ("target", "version", "error")]
    print_table(columns, [[_cell(row, name) for name in columns] for row in rows], title=kind)
    for row in rows:
        if row.get("error"):
            typer.echo(f"{row['name']} is broken: {row['error']}")
    typer.echo("")


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if name == "distribution":
        return f"{value} {row['version'] or ''}".rstrip() if value else "-"
    return ", ".join(value) if isinstance(value, list) else str(value)

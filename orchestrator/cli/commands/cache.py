"""``orchestrator cache``: what was compiled and kept, whether it is whole, and how to be rid of it.

A *store* is the folder that ``Plan.compile`` was given. Looking into one needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from orchestrator.cli.options import AsJson, Debug
from orchestrator.cli.report import UsageError, reporting

if TYPE_CHECKING:
    from orchestrator.store import ArtifactStore, StoreEntry

__all__ = ["app"]

DEFAULT = "build"

Store: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--store", metavar="DIR", envvar="ORCHESTRATOR_STORE", help="The folder given to Plan.compile."
    ),
]

app = typer.Typer(
    help="List, verify or remove compiled artifacts.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_(store: Store = Path(DEFAULT), as_json: AsJson = False, debug: Debug = False) -> None:
    """List artifacts, with stage, device, size and state.

    Sizes of files are compared, not their content; `verify` reads every byte.
    """
    with reporting(as_json=as_json, debug=debug) as reply:
        entries = _open(store).entries()
        total = sum(entry.bytes for entry in entries)
        reply.data = {"store": str(store), "bytes": total, "artifacts": [_plain(each) for each in entries]}
        if not as_json:
            _print(entries)
            typer.echo(f"{_count(len(entries))}, {_size(total)} in {store}")


@app.command()
def verify(store: Store = Path(DEFAULT), as_json: AsJson = False, debug: Debug = False) -> None:
    """Read every byte of every artifact and compare it with its checksum.

    The exit code is 1 if an artifact is damaged. The next compile builds it again; `clean --damaged` removes it.
    """
    with reporting(as_json=as_json, debug=debug) as reply:
        entries = _open(store).entries(checksums=True)
        # The reply is the same whether or not a fault was found; only the exit code, after it, tells them apart.
        damaged_entries = [entry for entry in entries if entry.state == "damaged"]
        reply.data = {
            "store": str(store),
            "artifacts": len(entries),
            "ok": sum(entry.state == "ok" for entry in entries),
            "damaged": [_plain(entry) for entry in damaged_entries],
        }
        if not as_json:
            for entry in damaged_entries:
                typer.echo(f"DAMAGED  {_label(entry)}: {_fault(entry)}")
            typer.echo(f"{_count(len(entries))} in {store}, {len(damaged_entries) or 'none'} damaged")
    if damaged_entries:
        raise typer.Exit(1)


@app.command()
def clean(
    store: Store = Path(DEFAULT),
    only_damaged: Annotated[bool, typer.Option("--damaged", help="Only damaged artifacts.")] = False,
    unused_days: Annotated[
        float | None,
        typer.Option(
            "--unused", metavar="DAYS", min=0, help="Only those not used for DAYS.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove artifacts: all, or those that an option names.

    Artifacts that are being compiled are left alone, and folders of killed compiles always removed.
    """
    # The store keeps what somebody is compiling; it is told here, for it is no fault.
    with reporting(as_json=as_json, debug=debug) as reply:
        report = _open(store).clean(only_damaged=only_damaged, unused_days=unused_days)
        reply.data = {
            "store": str(store),
            "removed": [_plain(entry) for entry in report.artifacts],
            "leftovers": report.stale_builds,
            "bytes": report.bytes,
            "held": list(report.busy_keys),
        }
        if not as_json:
            left = f" and {report.stale_builds} unfinished" if report.stale_builds else ""
            typer.echo(f"removed {_count(len(report.artifacts))}{left}, {_size(report.bytes)}, from {store}")
            for key in report.busy_keys:
                typer.echo(f"kept {key[:12]}: it is being compiled")


def _open(store: Path) -> ArtifactStore:
    """Opens a store that is there.

    Raises:
        UsageError: It is not.
    """
    from orchestrator.store import ArtifactStore

    if not store.is_dir():
        raise UsageError(
            f"There is no store {str(store)!r}. Give the folder that was given to Plan.compile: --store DIR, or "
            f"ORCHESTRATOR_STORE=DIR in the environment."
        )
    return ArtifactStore(store)


def _print(entries: tuple[StoreEntry, ...]) -> None:
    from orchestrator.cli.tables import print_table

    if not entries:
        return
    columns = ("key", "stage", "device", "size", "created", "used", "state")
    print_table(columns, [_row(entry) for entry in entries])
    for entry in entries:
        if entry.fault:
            typer.echo(f"{_label(entry)} is {_state_in_words(entry)}: {_fault(entry)}")


def _row(entry: StoreEntry) -> tuple[str, ...]:
    about = entry.about
    return (
        entry.key[:12],
        str(about.get("stage", "-")),
        str(about.get("device", "-")),
        _size(entry.bytes),
        _time(entry.creation_time),
        _time(entry.last_use),
        entry.state,
    )


def _plain(entry: StoreEntry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "state": entry.state,
        "fault": entry.fault,
        "bytes": entry.bytes,
        "created": _time(entry.creation_time),
        "used": _time(entry.last_use),
        "about": dict(entry.about),
        "path": str(entry.path),
    }


def _label(entry: StoreEntry) -> str:
    from orchestrator.cli.tables import printable

    stage = entry.about.get("stage")
    return f"{entry.key[:12]} ({printable(str(stage))})" if stage else entry.key[:12]


def _fault(entry: StoreEntry) -> str:
    from orchestrator.cli.tables import printable

    return printable(entry.fault)


def _state_in_words(entry: StoreEntry) -> str:
    return "damaged" if entry.state == "damaged" else "of another version, not used by this release"


def _count(number: int) -> str:
    return f"{number or 'no'} artifact{'s' if number != 1 else ''}"


def _size(size: float) -> str:
    """Bytes for a person, e.g. ``1.5 MB``; powers of ten."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _time(seconds: float) -> str:
    """UTC to the second; ``-`` where it is not known."""
    from datetime import datetime, timezone

    if not seconds:
        return "-"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

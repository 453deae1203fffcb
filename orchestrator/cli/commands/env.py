"""``orchestrator env``: versions and devices, as a bug report needs them.

It works where little else does: a library that cannot be imported is reported as such, with the error.
"""

from __future__ import annotations

import typer

from orchestrator.cli.options import AsJson
from orchestrator.cli.report import reporting

__all__ = ["command"]


def command(as_json: AsJson = False) -> None:
    """Print versions and devices, for a bug report."""
    with reporting(as_json=as_json) as reply:
        from orchestrator.cli.machine import describe_machine

        # Warnings go to stderr, so that --json stays one document; they are in it as well.
        machine = describe_machine()
        reply.data = machine
        for warning in machine["warnings"]:
            typer.echo(f"warning: {warning}", err=True)
        if not as_json:
            from orchestrator.cli.tables import print_table

            for title in ("versions", "system", "devices"):
                rows = [(name, str(value)) for name, value in machine[title].items()]
                print_table((title, ""), rows)
                typer.echo("")

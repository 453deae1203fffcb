"""The command line: what the library does, for a shell and for programs that call one.

    run        run one request and write its outputs
    plan       print the plan, or write it as JSON
    validate   build and plan; run nothing
    check      try what stages promise: pad rules, and batch=True
    list       pipelines, stages, backends and plugins, broken ones included
    draw       the graph as Mermaid, DOT or SVG
    env        versions and devices, for a bug report
    cache      list, verify or remove compiled artifacts

A *target* is the name of a registered pipeline, or ``MODULE:ATTR``. Results go to stdout, everything else to
stderr; with ``--json`` stdout holds one JSON document and nothing else, whatever a stage prints.

Exit codes:

    code  meaning          causes
    0     done             a broken plugin that nobody asked for included
    1     the job failed   a pipeline that cannot be built, planned, loaded or run; a file whose content
                           cannot be read or does not fit its input; an output that cannot be written; a
                           damaged artifact that `cache verify` found; a broken promise that `check` found
    2     wrong usage      the command line is at fault: an option that does not exist or is malformed; a
                           target, stage, device, dim, edge, input or store that does not exist; a size of
                           memory that is none; an option that no backend of the plan knows, or a value that it
                           does not take; an input that is missing; a file that is not there, or of a kind that
                           its input does not take
    130   interrupted      Ctrl-C

An error is ``error: ...`` on stderr, with its traceback if ``--debug`` asks for it. With ``--json`` stdout
then holds ``{"error": {"type": ..., "message": ...}}``; what cannot be parsed is told on stderr alone.

Starting is cheap: this package imports neither torch nor networkx nor rich; a command imports what it needs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.commands import cache, check, draw, env, listing, plan, run, validate

__all__ = ["app", "main"]

app = typer.Typer(
    name="orchestrator",
    help="Plan a graph of model stages, see why each tensor is where it is, and run it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.command)
app.command("plan")(plan.command)
app.command("validate")(validate.command)
app.command("check")(check.command)
app.command("list")(listing.command)
app.command("draw")(draw.command)
app.command("env")(env.command)
app.add_typer(cache.app, name="cache")


def _print_version(value: bool) -> None:
    if value:
        from importlib import metadata

        typer.echo(metadata.version("stage-orchestrator"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Plan a graph of model stages, see why each tensor is where it is, and run it."""


def main() -> None:
    """Runs the command of ``sys.argv``; ends with :class:`SystemExit`."""
    app(prog_name="orchestrator")

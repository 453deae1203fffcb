"""Options that several commands share, and the ``NAME=VALUE`` pairs in them.

A pair splits at its first ``=``, so that values may hold more. A name is given once: which of two values wins
would be a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

import typer

from orchestrator.cli.report import UsageError

__all__ = [
    "AsJson",
    "Debug",
    "Device",
    "Inputs",
    "Memory",
    "Options",
    "Placement",
    "Residencies",
    "Settings",
    "Sizes",
    "Target",
    "parse_memory",
    "parse_options",
    "parse_pairs",
    "parse_residencies",
    "parse_sizes",
    "parse_value",
]


def _repeatable(*names: str, metavar: str, help: str) -> Any:
    """An option that may be given several times, each time with one more pair."""
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


Pairs: TypeAlias = list[str] | None

Target: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_MODULE:ATTR", help="A registered pipeline, or MODULE:ATTR.", show_default=False
    ),
]
Inputs: TypeAlias = Annotated[
    Pairs,
    _repeatable(
        "--input",
        "-i",
        metavar="NAME=FILE",
        help="A file, or text for a text input. Repeatable. Without any, the pipeline's examples are taken.",
    ),
]
Device: TypeAlias = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Where stages run, e.g. cuda:0.")
]
Placement: TypeAlias = Annotated[
    Pairs,
    _repeatable("--placement", metavar="STAGE=DEVICE", help="Another device for one stage. Repeatable."),
]
Sizes: TypeAlias = Annotated[
    Pairs, _repeatable("--sizes", metavar="DIM=4,8", help="Compiled sizes of a dim. Repeatable.")
]
Residencies: TypeAlias = Annotated[
    Pairs,
    _repeatable(
        "--residency",
        metavar="'A.OUT -> B.IN=host'",
        help="Force an edge to stay on the device or go over the host. Repeatable.",
    ),
]
Memory: TypeAlias = Annotated[
    Pairs,
    _repeatable(
        "--memory",
        metavar="[DEVICE=]16GB",
        help="Memory that one rank of a device may use. Repeatable.",
    ),
]
Options: TypeAlias = Annotated[
    Pairs,
    _repeatable(
        "--option",
        metavar="NAME=VALUE",
        help="Option of the devices' backends, e.g. tp_degree=2. JSON, else text. Repeatable.",
    ),
]
Settings: TypeAlias = Annotated[
    Pairs,
    _repeatable(
        "--set",
        metavar="[STAGE.]OPTION=VALUE",
        help="Option of the pipeline or a stage, or a text or number input. JSON, else text. Repeatable.",
    ),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print JSON for a program, and nothing else.")
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def parse_pairs(option: str, pairs: Iterable[str] | None, form: str) -> dict[str, str]:
    """Returns the values of a repeatable ``NAME=VALUE`` option by name.

    Args:
        option: The option, for messages.
        pairs: The texts of the command line.
        form: The form of a pair, for messages.

    Raises:
        UsageError: A pair without ``=`` or without a name, or a name given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs or ():
        name, mark, value = pair.partition("=")
        if not mark or not name.strip():
            raise UsageError(f"{option} takes {form}, not {pair!r}.")
        name = name.strip()
        if name in values:
            raise UsageError(f"{option} is given twice for {name!r}: {values[name]!r} and {value!r}.")
        values[name] = value
    return values


def parse_sizes(pairs: Iterable[str] | None) -> dict[str, int | tuple[int, ...]]:
    """Returns the sizes of each dim: an int for one, a tuple for several.

    Raises:
        UsageError: A malformed pair, or a size that is no positive int.
    """
    sizes: dict[str, int | tuple[int, ...]] = {}
    for name, text in parse_pairs("--sizes", pairs, "DIM=SIZE[,SIZE...]").items():
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise UsageError(f"--sizes of {name!r} takes positive ints such as 4,8, not {text!r}.")
        numbers = tuple(int(part) for part in parts)
        sizes[name] = numbers[0] if len(numbers) == 1 else numbers
    return sizes


def parse_residencies(pairs: Iterable[str] | None) -> dict[str, str]:
    """Returns ``device`` or ``host`` for each edge, which is written as ``a.out -> b.in``.

    Raises:
        UsageError: A malformed pair, an edge given twice, or another residency.
    """
    form = "'FROM -> TO=host' or 'FROM -> TO=device'"
    canonical_pairs = (re.sub(r"\s*->\s*", " -> ", pair) for pair in pairs or ())
    residencies = {
        edge: residency.strip()
        for edge, residency in parse_pairs("--residency", canonical_pairs, form).items()
    }
    for edge, residency in residencies.items():
        if residency not in ("device", "host"):
            raise UsageError(f"--residency of {edge!r} is device or host, not {residency!r}.")
    return residencies


def parse_memory(budgets: Iterable[str] | None) -> str | dict[str, str]:
    """Returns the one budget of all devices as text, or the budgets by device; empty: there is none.

    Raises:
        UsageError: A malformed pair, a device given twice, or a budget of all devices beside another one.
    """
    texts = list(budgets or ())
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    return parse_pairs("--memory", texts, "one SIZE, or DEVICE=SIZE for each device")


def parse_options(pairs: Iterable[str] | None) -> dict[str, Any]:
    """Returns the options of backends by name.

    Raises:
        UsageError: A malformed pair.
    """
    texts = parse_pairs("--option", pairs, "NAME=VALUE")
    return {name: parse_value(text) for name, text in texts.items()}


def parse_value(text: str) -> Any:
    """Returns the value that a text is in JSON, or the text itself where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

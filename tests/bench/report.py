"""Results as JSON, as a table on a terminal, and as the table of a documentation page."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.bench.measure import ROOT, Row

RESULTS = ROOT / "docs" / "_data" / "bench.json"
PAGE = ROOT / "docs" / "explanation" / "figures.md"
BEGIN, END = "<!-- begin: written by python -m tests.bench -->\n", "<!-- end -->\n"

TITLES = ("figure", "case", "ours", "by hand", "judged", "limit", "")

Results = Mapping[str, Any]


def collect(rows: Iterable[Row], *, quick: bool, skipped: Iterable[str]) -> dict[str, Any]:
    """Returns the results as a JSON document."""
    return {
        "machine": machine(),
        "quick": quick,
        "skipped": list(skipped),
        "rows": [row.as_dict() for row in rows],
    }


def machine() -> dict[str, Any]:
    """Describes where and with what was measured."""
    import torch

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or "unknown")


def _commit() -> str:
    """The commit that was measured; ``+`` if the code differs from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = _git(
            "status", "--porcelain", "--", "orchestrator", "stages", "plugins", "tests/bench"
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def number(value: float | None) -> str:
    """Three digits after the point, fewer for what is large."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 3}f}"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text."""
    word = "at least" if row["at_least"] else "at most"
    reference = f"{number(row['reference'])} {row['unit']}" if row["reference"] is not None else "-"
    return [
        row["figure"],
        row["case"],
        f"{number(row['ours'])} {row['unit']}",
        reference,
        f"{number(row['value'])} {row['value_unit']}",
        f"{word} {row['limit']:g}" if row["limit"] is not None else "-",
        row["verdict"],
    ]


def text(results: Results) -> str:
    """The table for a terminal."""
    lines = [list(TITLES), *(cells(row) for row in results["rows"])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    head = [described(results["machine"]), *(f"Skipped: {what}" for what in results["skipped"]), ""]
    return "\n".join(line.rstrip() for line in [*head, *shown])


def described(found: Mapping[str, Any]) -> str:
    """The machine as a sentence."""
    gpu = f", {found['gpu']}" if found["gpu"] else ""
    return (
        f"Measured on {found['date']} at commit {found['commit']}: {found['cpu']}{gpu}, {found['cores']} cores, "
        f"{found['system']}, Python {found['python']}, torch {found['torch']}, one torch thread."
    )


def markdown(results: Results) -> str:
    """The part of the page that holds the results."""
    lines = [f"{described(results['machine'])}\n"]
    for figure in dict.fromkeys(row["figure"] for row in results["rows"]):
        lines.append("| " + " | ".join([figure, *TITLES[2:6], "", "remarks"]) + " |")
        lines.append("|---|---:|---:|---:|---:|---|---|")
        for row in (row for row in results["rows"] if row["figure"] == figure):
            lines.append("| " + " | ".join([*cells(row)[1:], row["note"]]) + " |")
        lines.append("")
    return "\n".join(lines)


def page(results: Results, before: str) -> str:
    """The page with its results replaced."""
    head, _, rest = before.partition(BEGIN)
    tail = rest.partition(END)[2]
    return f"{head}{BEGIN}\n{markdown(results)}\n{END}{tail}"


def write_json(results: Results, path: Path) -> None:
    """Writes the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def write_docs(results: Results) -> None:
    """Writes the results that the page shows, and the page."""
    write_json(results, RESULTS)
    PAGE.write_text(page(results, PAGE.read_text(encoding="utf-8")), encoding="utf-8")

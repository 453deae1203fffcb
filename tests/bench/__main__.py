"""Measures the figures that the project promises: prints one table and writes JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, which the modules below do: its pools of threads have their size from then on.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch

from tests.bench import decoding, diffusion, generation, peers, report
from tests.bench.measure import Effort, Row

#: Figure to its module; the order of the table.
FIGURES = {
    "chain": "chain",
    "model5": "dag",
    "memory": "memory",
    "stream": "streaming",
    "plan": "planning",
    "start": "startup",
    "loop": "loops",
    "state": "state",
    "neuron": "neuron",
    "decode": "decoding",
    "generate": "generation",
    "diffusion": "diffusion",
    "peers": "peers",
}
ON_DEVICES = ("chain", "memory")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean nothing")
    parser.add_argument("--only", choices=FIGURES, action="append", help="may be given several times")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu, and cuda where there is one")
    parser.add_argument(
        "--write-docs", action="store_true", help="write the page docs/explanation/figures.md"
    )
    parser.add_argument(
        "--from-json", type=Path, metavar="PATH", help="measure nothing, take results from a file"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    if options.write_docs and (options.quick or options.only) and not options.from_json:
        parser.error("the page shows all figures, measured in full")
    return options


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Measures; tells on stderr how far it is."""
    devices = [options.device] if options.device else ["cpu", *["cuda"] * torch.cuda.is_available()]
    for name in (name for name in FIGURES if name in (options.only or FIGURES)):
        for device in devices:
            if device == "cpu" or name in ON_DEVICES:
                print(f"{name} on {device} ...", file=sys.stderr, flush=True)
                module = importlib.import_module(f"tests.bench.{FIGURES[name]}")
                yield from module.rows(Effort(options.quick), device)


def skipped(options: argparse.Namespace) -> list[str]:
    """Says what is not measured here."""
    names = options.only or FIGURES
    said = []
    if not torch.cuda.is_available() and set(names) & set(ON_DEVICES):
        said.append("CUDA: there is no such device here")
    if "decode" in names:
        said += [f"decoding: {name} is not installed" for name in decoding.absent()]
    if "generate" in names:
        said += [f"generation: {name} is not installed" for name in generation.absent()]
    if "diffusion" in names:
        said += [f"diffusion: {name} is not installed" for name in diffusion.absent()]
    if "peers" in names:
        said += [f"{name}: not installed (the extra `bench`)" for name in peers.absent()]
    return said


def main(arguments: list[str] | None = None) -> int:
    """Runs; the exit code is 1 if a result was wrong, never because a figure is over its limit."""
    options = parse(arguments)
    torch.set_num_threads(1)
    if options.from_json:
        results = json.loads(options.from_json.read_text(encoding="utf-8"))
    else:
        results = report.collect(measure(options), quick=options.quick, skipped=skipped(options))
        report.write_json(results, options.json)
    print(report.text(results))
    if options.write_docs:
        report.write_docs(results)
    return int(any(row["verdict"] == "wrong" for row in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())

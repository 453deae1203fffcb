"""Runs the device `nxdi` on the real classes of NxD Inference, over a simulated device.

    python tests/neuron/harness.py [NAME ...]     # all checks, or those whose name holds a NAME

The sources of NxD Inference and of NxD Core, and the simulated device, are not part of this repository:

    NXDI_SRC                     .../neuronx-distributed-inference/src
    NXD_SRC                      .../neuronx-distributed/src
    ORCHESTRATOR_NXDI_HARNESS    the folder with simdev.py, sim_runtime.py and simpar.py
    ORCHESTRATOR_NXDI_GUIDE      optional: guide-fpem.rst, the guide to pipeline execution, whose classes are run
                                 unchanged; else it is looked for beside that folder

Each check is a function `check_*` of a module in `on_nxdi`. The last line printed is JSON: a check to what went wrong,
or null.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

VARIABLES = ("NXDI_SRC", "NXD_SRC", "ORCHESTRATOR_NXDI_HARNESS")
MODULES = (
    "programs",
    "state_dicts",
    "adopted",
    "parallel_layers",
    "refused",
    "pipelines",
    "entry_points",
    "generators",
    "shipped",
    "pictures",
    "random_graphs",
    "renamed",
)


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")


def missing() -> list[str]:
    """Variables that are not set."""
    return [name for name in VARIABLES if not os.environ.get(name)]


def install() -> None:
    """Makes NxD Inference importable, with the simulated device under it."""
    # The reference trees stay clean.
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.environ["ORCHESTRATOR_NXDI_HARNESS"])
    # Before any model: it puts ranks in lock step under NxD's collectives.
    importlib.import_module("simpar")
    sim_runtime = importlib.import_module("sim_runtime")
    sim_runtime.install(os.environ["NXDI_SRC"], os.environ["NXD_SRC"])
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")


def checks(parts: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    for module in MODULES:
        for name, check in list(vars(importlib.import_module(f"on_nxdi.{module}")).items()):
            if name.startswith("check_") and (not parts or any(part in name for part in parts)):
                yield name.removeprefix("check_"), check


def main(parts: list[str]) -> int:
    if missing():
        say(f"Not set: {', '.join(missing())}. {__doc__}")
        return 2
    # The classes of NxD Inference are imported by the checks, so whatever stands under them comes first.
    install()
    results: dict[str, str | None] = {}
    for name, check in checks(parts):
        say(f"--- {name}")
        # One check that fails, by an assertion or by `pytest.raises`, does not end the others.
        try:
            check()
            results[name] = None
        except (Exception, pytest.fail.Exception):
            results[name] = traceback.format_exc()
            say(results[name])
    say(f"{sum(fault is None for fault in results.values())} of {len(results)} checks passed")
    say(json.dumps(results))
    return int(any(results.values()))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    sys.exit(main(sys.argv[1:]))

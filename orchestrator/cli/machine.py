"""Find out versions, devices and conflicts of this installation; nothing here raises where one is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

__all__ = ["describe_machine"]

_OWN = "stage-orchestrator"
_DISTRIBUTIONS = (
    _OWN,
    "stage-orchestrator-stages",
    "stage-orchestrator-neuron",
    "torch",
    "networkx",
    "pluggy",
    "typer",
    "rich",
    "numpy",
    "pillow",
    "safetensors",
)
_GIB = 1024**3


def describe_machine() -> dict[str, Any]:
    """Returns versions, system, devices and warnings, each name with its description."""
    return {
        "versions": {name: _version(name) for name in _DISTRIBUTIONS},
        "system": _system(),
        "devices": dict(_devices()),
        "warnings": list(_warnings()),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _system() -> dict[str, str]:
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "graphviz": _graphviz(),
    }


def _graphviz() -> str:
    program = shutil.which("dot")
    if program is None:
        return "not installed"
    try:
        process = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"broken: {error}"
    return (process.stderr or process.stdout).strip()


def _devices() -> Iterator[tuple[str, str]]:
    # Whatever torch or a driver raises is what a bug report is about, so it is a row of the table.
    try:
        import torch
    except Exception as error:
        yield "torch", f"cannot be imported: {type(error).__name__}: {error}"
        return
    yield "cpu", f"{platform.processor() or platform.machine()}, torch uses {torch.get_num_threads()} threads"
    yield (
        "cuda",
        f"torch is built for CUDA {torch.version.cuda}"
        if torch.version.cuda
        else "torch is built without it",
    )
    try:
        yield from _cuda_devices()
        if torch.backends.mps.is_available():
            yield "mps", "available"
    except Exception as error:
        yield "error", f"devices cannot be listed: {type(error).__name__}: {error}"


def _cuda_devices() -> Iterator[tuple[str, str]]:
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / _GIB:.1f} GiB"
        yield (
            f"cuda:{index}",
            f"{properties.name}, {memory}, compute capability {properties.major}.{properties.minor}",
        )


def _warnings() -> Iterator[str]:
    owners = sorted(_owners("orchestrator") | {_OWN})
    if len(owners) > 1:
        names = ", ".join(repr(name) for name in owners)
        yield (
            f"The import name 'orchestrator' belongs to {len(owners)} installed distributions: {names}. "
            f"They overwrite or hide one another; uninstall all but one."
        )


def _owners(package: str) -> set[str]:
    """Names of the distributions that own a top-level package, except through an editable install."""
    owners = set()
    for distribution in metadata.distributions():
        name: str | None = distribution.metadata["Name"]
        tops = (distribution.read_text("top_level.txt") or "").split()
        record = distribution.read_text("RECORD") or ""
        if name and (package in tops or re.search(rf"^{package}/", record, re.MULTILINE)):
            owners.add(re.sub(r"[-_.]+", "-", name).lower())
    return owners

"""What the build of a region leaves in the store, and how it is loaded: by torch's runtime, without its compiler.

    region.json     whether it was compiled, how far its results are from eager ones; or why it cannot be
    package.pt2     the program, of AOTInductor; weights are outside
    constants.pt    tensors of the program that are no weights of its modules

Weights are those of the stages' own modules: nothing is copied, and all programs of a region share them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.runner.compiled.region import Program

__all__ = [
    "CONSTANTS",
    "PACKAGE",
    "BuildReport",
    "RegionPrograms",
    "load_program",
    "read_report",
    "write_report",
]

CONSTANTS, PACKAGE = "constants.pt", "package.pt2"

_REPORT = "region.json"
#: Requests that run one program at the same time, at most; each takes a few hundred bytes.
_MOST_RUNNERS = 4


@dataclass(frozen=True)
class BuildReport:
    """How a build ended.

    Attributes:
        refusal: Why it cannot be compiled, a clause; empty: it is.
        call: The call that it is for; empty: not known.
        operation: The operation that it is for; empty: not known.
        error: The largest difference from eager results, relative to the largest magnitude of a result.
        is_close: Whether that suits the dtypes.
        copies: Outputs that the program gives in memory of something else, which eager ones are not: they are copied.
    """

    refusal: str = ""
    call: str = ""
    operation: str = ""
    error: float = 0.0
    is_close: bool = True
    copies: tuple[int, ...] = ()

    def is_within(self, tolerance: float) -> bool:
        """Tells whether results are near enough to eager ones; a tolerance of 0 is one that suits the dtypes."""
        return self.error <= tolerance if tolerance else self.is_close


def write_report(folder: Path, report: BuildReport) -> None:
    """Writes how a build ended; numbers that JSON lacks as text."""
    (folder / _REPORT).write_text(json.dumps({**asdict(report), "error": str(report.error)}))


def read_report(folder: Path) -> BuildReport:
    """Reads how a build ended."""
    content = json.loads((folder / _REPORT).read_text())
    return BuildReport(**{**content, "error": float(content["error"]), "copies": tuple(content["copies"])})


class RegionPrograms(dict[tuple[Any, ...], Program]):
    """Programs by the shapes of their inputs, with the tensors that they read and do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Mapping[str, Tensor]] = []


def load_program(
    folder: Path, weights: Mapping[str, Tensor], device: str, copies: Sequence[int] = ()
) -> tuple[Program, Mapping[str, Tensor]]:
    """Loads a program.

    Args:
        folder: Where its build left it.
        weights: Parameters and buffers of the region's modules; the program reads them where they are.
        device: The device.
        copies: Outputs that are copied.

    Returns:
        The program, and the tensors that must live as long as it does.
    """
    kind, _, number = device.partition(":")
    runners = min(os.cpu_count() or 1, _MOST_RUNNERS)
    index = int(number or 0) if kind == "cuda" else -1
    loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / PACKAGE), "model", False, runners, index)
    constants = torch.load(folder / CONSTANTS, map_location=device, weights_only=True)
    names = loader.get_constant_fqns()
    tensors = {name: (weights[name] if name in weights else constants[name]).detach() for name in names}
    if tensors:
        loader.load_constants(tensors, False, True, user_managed=True)
    return _copying(loader.boxed_run, copies) if copies else loader.boxed_run, tensors


def _copying(run: Program, copies: Sequence[int]) -> Program:
    def call(values: list[Any]) -> list[Any]:
        results = run(values)
        for at in copies:
            results[at] = results[at].clone()
        return results

    return call

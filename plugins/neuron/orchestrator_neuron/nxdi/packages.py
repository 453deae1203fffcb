"""What must be installed to run on NxD Inference, and which versions are known to work.

Nothing here imports NxD Inference, except :func:`require`.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from orchestrator.errors import CompileError

__all__ = ["PACKAGES", "Package", "notes", "require", "versions"]


@dataclass(frozen=True)
class Package:
    """One package, with the versions that this plugin was written against.

    Attributes:
        name: Name of the distribution.
        module: What it is imported as.
        first: The first known version.
        beyond: The first version that is not known.
        shown: Both for a person.
        wanted: It must be there; else it is looked at only where it is.
    """

    name: str
    module: str
    first: tuple[int, ...]
    beyond: tuple[int, ...]
    shown: str
    wanted: bool = True

    def version(self) -> str | None:
        """Returns the version that is installed, or that a loaded module states; None: neither."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            stated = getattr(sys.modules.get(self.module), "__version__", None)
            return stated if isinstance(stated, str) else None

    def known(self, version: str) -> bool:
        """Tells whether a version lies in the known range; local and build parts do not count."""
        numbers = tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))
        return self.first <= numbers < self.beyond


PACKAGES = (
    Package(
        "neuronx-distributed-inference",
        "neuronx_distributed_inference",
        (0, 9),
        (0, 11),
        "0.9 or 0.10",
    ),
    Package("neuronx-distributed", "neuronx_distributed", (0, 18), (0, 20), "0.18 or 0.19"),
    Package("torch-neuronx", "torch_neuronx", (2, 9), (2, 10), "2.9"),
    Package("transformers", "transformers", (4, 57), (4, 58), "4.57"),
    Package("neuronx-cc", "neuronxcc", (2, 24), (2, 27), "2.24 to 2.26", wanted=False),
)


def require() -> None:
    """Imports NxD Inference.

    Raises:
        CompileError: It is not installed, or cannot be imported.
    """
    missing = [package for package in PACKAGES if package.wanted and not _present(package.module)]
    if missing:
        raise CompileError(
            f"The device 'neuron' runs through NxD Inference, and {_listed(missing)} not installed here: install "
            f"stage-orchestrator-neuron[nxdi] with AWS's package index for Neuron, or plan for 'neuron-emulated', "
            f"which runs the same plan without it.",
            device="neuron",
            packages=tuple(package.name for package in missing),
        )
    try:
        importlib.import_module("neuronx_distributed_inference.models.application_base")
    except Exception as error:
        raise CompileError(
            f"NxD Inference is installed but cannot be imported ({type(error).__name__}: {error}); the versions that "
            f"work together are {_shown()}. 'neuron-emulated' runs the same plan without it.",
            device="neuron",
        ) from error


def notes() -> Iterator[str]:
    """Yields a sentence for each package whose installed version is outside the known range; imports nothing."""
    for package in PACKAGES:
        version = package.version()
        if version is not None and not package.known(version):
            yield (
                f"{package.name} is {version}; the device 'neuron' was written against {package.shown}, other "
                f"versions may work."
            )


def versions() -> dict[str, str | None]:
    """Returns what is installed of it, by name, for content keys."""
    return {package.name: package.version() for package in PACKAGES}


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return module in sys.modules


def _listed(packages: list[Package]) -> str:
    names = [f"{package.name} {package.shown}" for package in packages]
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


def _shown() -> str:
    return ", ".join(f"{package.name} {package.shown}" for package in PACKAGES)

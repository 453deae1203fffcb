"""The packages that NxD Inference needs, and the versions of them that are known to work.

Nothing here imports NxD Inference, except :func:`require`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from orchestrator.errors import CompileError
from orchestrator_neuron.options import PLATFORMS

__all__ = ["PACKAGES", "Package", "is_installed", "notes", "platform", "require", "versions"]


@dataclass(frozen=True)
class Package:
    """One package, with the versions that this plugin was written against.

    Attributes:
        name: Name of the distribution.
        module: Its import name.
        first: The first known version.
        beyond: The first version that is not known.
        range_text: Both for a person.
        is_required: It must be installed; else its version is compared only where it is.
    """

    name: str
    module: str
    first: tuple[int, ...]
    beyond: tuple[int, ...]
    range_text: str
    is_required: bool = True

    def version(self) -> str | None:
        """Returns the version that is installed, or that a loaded module states; None: neither."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            module_version = getattr(sys.modules.get(self.module), "__version__", None)
            return module_version if isinstance(module_version, str) else None

    def is_known(self, version: str) -> bool:
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
    Package("neuronx-cc", "neuronxcc", (2, 24), (2, 27), "2.24 to 2.26", is_required=False),
)


def require() -> None:
    """Imports NxD Inference.

    Raises:
        CompileError: It is not installed, or cannot be imported.
    """
    # By import, not by metadata: a module may be there without its distribution. A missing package says more than an
    # import that fails, so it comes first.
    missing = [package for package in PACKAGES if package.is_required and not _present(package.module)]
    if missing:
        raise CompileError(
            f"The device 'nxdi' runs through NxD Inference, and {_join(missing)} not installed here: install "
            f"stage-orchestrator-neuron[nxdi] with AWS's package index for Neuron, or plan for 'neuron-emulated', "
            f"which runs the same plan without it.",
            device="nxdi",
            packages=tuple(package.name for package in missing),
        )
    try:
        importlib.import_module("neuronx_distributed_inference.models.application_base")
    except Exception as error:
        raise CompileError(
            f"NxD Inference is installed but cannot be imported ({type(error).__name__}: {error}); the versions that "
            f"work together are {_ranges_text()}. 'neuron-emulated' runs the same plan without it.",
            device="nxdi",
        ) from error


def notes() -> Iterator[str]:
    """Yields a sentence for each package whose installed version is outside the known range; imports nothing."""
    for package in PACKAGES:
        version = package.version()
        if version is not None and not package.is_known(version):
            yield (
                f"{package.name} is {version}; the device 'nxdi' was written against {package.range_text}, other "
                f"versions may work."
            )


def versions() -> dict[str, str | None]:
    """Returns the installed version of each package, by name, for content keys."""
    return {package.name: package.version() for package in PACKAGES}


def _present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return module in sys.modules


def _join(packages: list[Package]) -> str:
    names = [f"{package.name} {package.range_text}" for package in packages]
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


def _ranges_text() -> str:
    return ", ".join(f"{package.name} {package.range_text}" for package in PACKAGES)


def is_installed() -> bool:
    """Tells, without importing anything, whether NxD Inference is there."""
    return _present("neuronx_distributed_inference")


@functools.cache
def platform() -> str:
    """Returns the platform that NxD Inference compiles for here; trn2 where nothing tells."""
    target = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE", "")
    if not target and is_installed():
        # It fails where there is no Neuron device, and is not there in other releases.
        with contextlib.suppress(Exception):
            target = str(importlib.import_module("torch_neuronx.utils").get_platform_target())
    return next((name for name in PLATFORMS if target.startswith(name)), "trn2")

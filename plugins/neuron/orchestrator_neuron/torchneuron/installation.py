"""Whether TorchNeuron is here: by what torch knows, and by the version of the package.

Two packages have the name ``torch-neuronx``: up to 2.9 it is the one that NxD Inference runs on, from 2.10 it is
TorchNeuron. Either may rename torch's spare device type, so that the name alone does not tell them apart.
"""

from __future__ import annotations

import re
from importlib import metadata

import torch

from orchestrator.errors import CompileError
from orchestrator_neuron.nxdi import packages

__all__ = [
    "DEVICE",
    "PACKAGE",
    "check_version",
    "is_known",
    "knows_operations",
    "package_version",
    "version_notes",
]

#: The device type, as torch spells it.
DEVICE = "neuron"

#: Versions whose documentation this was written against (Neuron 2.33); each wants the torch of its first two numbers.
PACKAGE = packages.Package("torch-neuronx", "torch_neuronx", (2, 13), (2, 15), "2.13 or 2.14")

_FIRST_NATIVE = (2, 10)


def is_known() -> bool:
    """Tells, without touching a device, whether torch has a device ``neuron`` that is TorchNeuron's."""
    if torch._C._get_privateuse1_backend_name() != DEVICE:
        return False
    # The module's own version says nothing here: of a build from source it is 0.1.0.
    try:
        return _numbers(metadata.version(PACKAGE.name)) >= _FIRST_NATIVE
    except metadata.PackageNotFoundError:
        return not packages.is_installed()


def knows_operations() -> bool:
    """Tells whether the device's operations are registered, so that those which it lacks can be told."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("aten::empty.memory_format", "PrivateUse1")


def package_version() -> str | None:
    """Returns the version of the package that is installed, or that a loaded module states; None: neither."""
    return PACKAGE.version()


def check_version(device: str) -> None:
    """Makes sure that the package is for this torch.

    Raises:
        CompileError: It is for another one.
    """
    version = package_version()
    if version is not None and _numbers(version)[:2] != _numbers(torch.__version__)[:2]:
        release = ".".join(str(number) for number in _numbers(torch.__version__)[:2])
        raise CompileError(
            f"torch-neuronx {version} is for torch {'.'.join(version.split('.')[:2])}, and this is torch "
            f"{torch.__version__}: TorchNeuron wants the two to agree. Install torch-neuronx=={release}.*, or the "
            f"torch that it is for.",
            device=device,
            version=version,
        )


def version_notes() -> tuple[str, ...]:
    """Returns a sentence where the installed version is none of those that this was written against."""
    version = package_version()
    if version is None or PACKAGE.is_known(version):
        return ()
    return (
        f"torch-neuronx is {version}; the device 'neuron' was written against {PACKAGE.range_text}, other versions may "
        f"work.",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))

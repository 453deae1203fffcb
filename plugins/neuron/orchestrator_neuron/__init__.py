"""Stage Orchestrator on AWS Neuron.

    neuron            NxD Inference: needs its packages and a device to run; planning needs neither
    neuron-emulated   a device made of ordinary host memory that obeys the same rules; always there

Importing this package, and registering, imports no torch and nothing of NxD Inference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.plugin import hookimpl

if TYPE_CHECKING:
    from orchestrator.registry import BackendRegistry

__version__ = "0.1.0"


@hookimpl
def orchestrator_register_backends(registry: BackendRegistry) -> None:
    """Registers both device families."""
    registry.add(
        "neuron",
        "orchestrator_neuron.nxdi.backend:NxdiBackend",
        summary="AWS Neuron by NxD Inference",
    )
    registry.add(
        "neuron-emulated",
        "orchestrator_neuron.emulated.backend:EmulatedBackend",
        summary="emulated Neuron device, with its rules",
    )

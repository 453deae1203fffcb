"""Stage Orchestrator on AWS Neuron.

    neuron            TorchNeuron, where torch knows that device; else another name of ``nxdi``
    nxdi              NxD Inference: needs its packages and a device to run; planning needs neither
    neuron-emulated   a device made of ordinary host memory that obeys the same rules; always there

Importing this package, and registering, imports no torch and nothing of NxD Inference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.lazy import lazy_names
from orchestrator.plugin import hookimpl

if TYPE_CHECKING:
    from orchestrator import ModelWrapper
    from orchestrator.registry import BackendRegistry
    from orchestrator_neuron.nxdi.importer import from_nxdi

__all__ = ["__version__", "from_nxdi", "orchestrator_adopt_stage", "orchestrator_register_backends"]

__version__ = "0.1.0"


__getattr__, __dir__ = lazy_names(__name__, {"from_nxdi": ".nxdi.importer"})


@hookimpl
def orchestrator_register_backends(registry: BackendRegistry) -> None:
    """Registers the device families."""
    registry.add(
        "neuron",
        "orchestrator_neuron.torchneuron.backend:TorchNeuronBackend",
        summary="AWS Neuron by TorchNeuron",
    )
    registry.add(
        "nxdi",
        "orchestrator_neuron.nxdi.backend:NxdiBackend",
        summary="AWS Neuron by NxD Inference",
    )
    registry.add(
        "neuron-emulated",
        "orchestrator_neuron.emulated.backend:EmulatedBackend",
        summary="emulated Neuron device, with its rules",
    )


@hookimpl
def orchestrator_adopt_stage(target: object) -> ModelWrapper | None:
    """Makes a stage of a ``ModelWrapper`` or ``NeuronApplicationBase`` of NxD Inference."""
    kinds = type(target).__mro__
    if not any(kind.__module__.startswith("neuronx_distributed_inference.") for kind in kinds):
        return None
    if not {"ModelWrapper", "NeuronApplicationBase"} & {kind.__name__ for kind in kinds}:
        return None
    from orchestrator import GraphError, ModelWrapper
    from orchestrator_neuron.nxdi.importer import from_nxdi

    stage = from_nxdi(target)
    if not isinstance(stage, ModelWrapper):
        raise GraphError(
            f"{type(target).__name__} has several submodels, and a stage is one of them: from_nxdi(application) has "
            f"each by its tag, {', '.join(stage.entries)}.",
            application=type(target).__name__,
        )
    return stage

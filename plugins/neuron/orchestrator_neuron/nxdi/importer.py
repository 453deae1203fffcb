"""``from_nxdi``: stages of what users wrote for NxD Inference, whatever it is."""

from __future__ import annotations

from typing import Any

from orchestrator.errors import GraphError
from orchestrator_neuron.nxdi import packages
from orchestrator_neuron.nxdi.adopt import AdoptedStage
from orchestrator_neuron.nxdi.read import build_wrapper, only_model

__all__ = ["from_nxdi"]


def from_nxdi(
    thing: Any,
    *,
    config: Any = None,
    inputs: Any = None,
    outputs: Any = None,
    checkpoint: Any = None,
) -> Any:
    """Makes a stage of a wrapper or application of NxD Inference, for ``Pipeline.add``.

    Args:
        thing: A ``ModelWrapper`` class of NxD Inference, an object of one, or an object of a
            ``NeuronApplicationBase``. An application compiles and loads itself, with its own checkpoint, and nothing
            is folded into it.
        config: The ``InferenceConfig`` of a class.
        inputs: Names of the input ports, or names to specs; else the parameters of the model's ``forward``, at the
            shapes and dtypes of the example inputs if they are in one row. Several rows leave sizes to the pipeline.
        outputs: Names of the output ports, or names to specs.
        checkpoint: Weights of a wrapper, on every device: a safetensors file or folder, or a ``state_dict``, by the
            names of its whole model; or a folder that ``save_sharded_checkpoint`` wrote. ``"random"``: they are drawn.

    Returns:
        A stage. Of an application with several submodels it is an object that has a stage for each as an attribute, by
        its tag, and there ``inputs`` and ``outputs`` are by tag.

    Raises:
        CompileError: NxD Inference is not installed.
        GraphError: It is none of these, or it cannot work; the message says why.
    """
    packages.require()
    # Here, not above: the classes are NxD Inference's own, and planning for another device needs none of them.
    from orchestrator_neuron.nxdi import classes

    application = thing if isinstance(thing, classes.NeuronApplicationBase) else None
    if application is not None and checkpoint is not None:
        raise GraphError(
            f"{type(application).__name__} loads its own checkpoint, from its model_path "
            f"{str(application.model_path)!r}; leave checkpoint= out, or give its wrapper to from_nxdi.",
            thing=thing,
        )
    if application is not None and (len(application.models) > 1 or hasattr(application, "vision_models")):
        from orchestrator_neuron.nxdi.submodels import Submodels

        return Submodels(application, inputs, outputs)
    if application is not None:
        wrapper = only_model(application)
    elif isinstance(thing, type) and issubclass(thing, classes.ModelWrapper):
        wrapper = build_wrapper(thing, config)
    else:
        wrapper = thing
    if not isinstance(wrapper, classes.ModelWrapper):
        raise GraphError(
            f"from_nxdi takes a ModelWrapper of NxD Inference, its class with config=, or an application object, not "
            f"{thing!r}. Modules, functions and this project's own wrappers go to pipeline.add as they are.",
            thing=thing,
        )
    return AdoptedStage(wrapper, application, inputs, outputs, checkpoint)

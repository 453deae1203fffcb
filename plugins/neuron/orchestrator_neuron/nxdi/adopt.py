"""Stages that users wrote for NxD Inference: their wrappers and applications, as stages of a pipeline.

A user's wrapper names a model class, its config and example inputs. That is all a stage needs: ports come from the
parameters of the model's ``forward``, shapes from the example inputs, flags from the plan. It runs on ``cpu`` and
``neuron-emulated`` too, where its model is a plain module.

NxD Inference's own ``get_model_instance`` and ``forward`` are those of a language model and fail for any other. Where a
wrapper overrides them they are used on ``nxdi``; where it does not, they are filled in. A program into which adapters
are folded, and the second program of a stage, are called directly: a ``forward`` that was written for the stage's own
inputs does not fit them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from orchestrator.errors import GraphError
from orchestrator.specs import PortSpec
from orchestrator.stage import ModelWrapper, Stage
from orchestrator_neuron.nxdi import packages
from orchestrator_neuron.nxdi.checks import check_dtypes, check_modes, differences, mend_flags, row_misfit
from orchestrator_neuron.nxdi.read import (
    Ports,
    build_wrapper,
    config_text,
    copy_of,
    declared_inputs,
    example_rows,
    instance_of,
    load_weights_of,
    only_model,
    options_of,
    overrides,
    port_names,
    source_of,
)
from orchestrator_neuron.options import NeuronSettings
from orchestrator_neuron.wrapper import NeuronWrapper

__all__ = ["AdoptedStage", "from_nxdi"]


def from_nxdi(
    thing: Any, *, config: Any = None, inputs: Ports | None = None, outputs: Ports | None = None
) -> ModelWrapper:
    """Makes a stage of a wrapper or application of NxD Inference, for ``Pipeline.add``.

    Args:
        thing: A ``ModelWrapper`` class of NxD Inference, an object of one, or an object of a ``NeuronApplicationBase``
            with one submodel. An application compiles and loads itself, with its own checkpoint, and nothing is folded
            into it.
        config: The ``InferenceConfig`` of a class.
        inputs: Names of the input ports, or names to specs; else the parameters of the model's ``forward``, at the
            shapes and dtypes of the example inputs if they are in one row. Several rows leave sizes to the pipeline.
        outputs: Names of the output ports, or names to specs.

    Raises:
        CompileError: NxD Inference is not installed.
        GraphError: It is none of these, or it cannot work; the message says why.
    """
    packages.require()
    # Here, not above: the classes are NxD Inference's own, and planning for another device needs none of them.
    from orchestrator_neuron.nxdi import classes

    application = thing if isinstance(thing, classes.NeuronApplicationBase) else None
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
    return AdoptedStage(wrapper, application, inputs, outputs)


class _UserObjects:
    """A user's own wrapper and application, which all copies of a stage share: a loaded one cannot be copied."""

    def __init__(self, wrapper: Any, application: Any) -> None:
        self.wrapper, self.application = wrapper, application

    def __deepcopy__(self, memo: dict[int, Any]) -> _UserObjects:
        return self


class AdoptedStage(NeuronWrapper):
    """A user's NxD Inference wrapper, or application, as a stage; see :func:`from_nxdi`.

    Attributes:
        rows: Specs of its example inputs, a row for each bucket.
        neuron_options: Its ``NeuronConfig``, as options of the stage.
    """

    def __init__(
        self, wrapper: Any, application: Any = None, inputs: Ports | None = None, outputs: Ports | None = None
    ) -> None:
        super().__init__(wrapper.config, wrapper.model_cls, wrapper.tag or type(wrapper).__name__)
        self._user = _UserObjects(wrapper, application)
        self._arguments = mend_flags(wrapper)
        check_modes(wrapper)
        self.rows = example_rows(wrapper)
        check_dtypes(wrapper, self.rows)
        self.inputs = declared_inputs(self.rows, port_names(wrapper, application), inputs)
        self.outputs = outputs if outputs is not None else {}
        self.neuron_options = options_of(wrapper)
        # As they are now: loading an application writes into its objects.
        self._sources = [
            source_of(wrapper),
            source_of(application),
            config_text(self.config),
            wrapper.compiler_args,
        ]
        model = wrapper.model if application is None else None
        if isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule):
            self._model = model

    def key_parts(self) -> list[object]:
        """Returns sources, config and arguments: an application is the same stage before it is loaded and after."""
        return [
            self.tag,
            self.config,
            self.model_cls,
            self._arguments,
            self.rows,
            self.neuron_options,
            self._sources,
        ]

    @property
    def nxdi_wrapper(self) -> Any:
        """The user's wrapper; it is never written to, except where it is part of an application."""
        return self._user.wrapper

    @property
    def application(self) -> Any:
        """The user's application, if the stage is one."""
        return self._user.application

    @property
    def model(self) -> Any:
        """The model as a plain module; that of an application has the weights of its checkpoint."""
        if self.__dict__.get("_model") is None:
            model = self.make_model()
            if self.application is not None:
                load_weights_of(model, self.application)
            self._model = model
        return self._model

    def make_model(self) -> Any:
        """Builds a new model, whole, as NxD Inference builds that of a rank."""
        return self._build(1, 1)

    def _build(self, degree: int, world: int) -> torch.nn.Module:
        # Here, not above: NxD is imported for it, and `require` has made sure that it can be.
        from orchestrator_neuron.nxdi.models import build_model, config_of_degree

        config = config_of_degree(self.config, self.rows, degree, world)
        return build_model(self.nxdi_wrapper, self._arguments, config, degree, world)

    @property
    def has_forward(self) -> bool:
        """The user's wrapper has a ``forward`` of its own."""
        return overrides(self.nxdi_wrapper, "forward")

    def neuron_review(
        self, stage: Stage, settings: NeuronSettings, inputs: Mapping[str, PortSpec]
    ) -> Iterator[str]:
        """Yields warnings about the stage on a Neuron device.

        Raises:
            PlanError: Its ``NeuronConfig`` contradicts the plan, or the plan feeds it other shapes than
                it is compiled for.
        """
        own = self.application is not None
        yield from differences(stage.name, self.nxdi_wrapper, settings, own)
        error = row_misfit(stage.name, self.rows, inputs) if own else None
        if error is not None:
            raise error

    def instance(self, config: Any) -> Any:
        """Returns the model instance that NxD traces: the user's own where there is one."""
        return instance_of(self.nxdi_wrapper, self._arguments, config)

    def complete(self) -> None:
        """Gives the wrapper of an application a model instance, and a ``forward`` for any stage where it has none."""
        wrapper, arguments = self.nxdi_wrapper, self._arguments
        wrapper.get_model_instance = lambda: instance_of(wrapper, arguments, wrapper.config)
        if not self.has_forward:
            wrapper.forward = lambda *values: wrapper._forward(*wrapper.convert_int64_to_int32(*values))

    def model_for_bucket(self, config: Any) -> Callable[[int], torch.nn.Module]:
        """Builds the user's model for tracing; NxD calls it inside its parallel state.

        Returns:
            A function from bucket to the model of it.

        Raises:
            CompileError: The model keeps state on the device.
        """
        instance = self.instance(config)
        instance.load_module()
        return lambda bucket: instance.get(bucket)[0]

    def program_wrapper(
        self, config: Any, tag: str, instance: Any, examples: Any, arguments: Any, to_host: bool
    ) -> Any:
        """Returns a copy of the user's wrapper, set up for a program; its ``forward`` is the user's."""
        wrapper = copy_of(self.nxdi_wrapper, config)
        wrapper.tag, wrapper.model = tag, None
        wrapper.pipeline_execution, wrapper.return_ranked_to_cpu = True, to_host
        wrapper.get_model_instance = lambda: instance
        wrapper.input_generator = lambda: examples
        if arguments is not None:
            wrapper.compiler_args = arguments
        return wrapper

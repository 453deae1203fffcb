"""Reading a user's NxD Inference objects: their methods, ports, example inputs and configs."""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from orchestrator.errors import GraphError
from orchestrator.specs import PortSpec, TensorSpec
from orchestrator_neuron.nxdi.checks import Row, check_example

__all__ = [
    "Ports",
    "build_wrapper",
    "config_text",
    "copy_of",
    "declared_inputs",
    "example_rows",
    "held_row",
    "instance_of",
    "load_weights_of",
    "only_model",
    "options_of",
    "overrides",
    "port_names",
    "source_of",
]

Ports: TypeAlias = Mapping[str, "PortSpec | None"] | Sequence[str]


def only_model(application: Any) -> Any:
    """Returns the one wrapper of an application.

    Raises:
        GraphError: It has none, or NxD Inference would compile it for the inputs of a language model.
    """
    if not application.models:
        raise GraphError(
            f"{type(application).__name__} has no submodel; put a wrapper into its list of models.",
            application=type(application).__name__,
        )
    if not overrides(application.models[0], "input_generator"):
        raise GraphError(
            f"The wrapper of {type(application).__name__} has no input_generator of its own, so NxD Inference would "
            f"compile it for the inputs of a language model; override input_generator.",
            application=type(application).__name__,
        )
    return application.models[0]


def build_wrapper(kind: type, config: Any) -> Any:
    """Builds a wrapper from its class.

    Raises:
        GraphError: There is no config, or the class wants more than that.
    """
    if config is None:
        raise GraphError(
            f"from_nxdi({kind.__name__}) needs the InferenceConfig that it is build_wrapper from: config=...",
            thing=kind,
        )
    try:
        return kind(config)
    except TypeError as error:
        raise GraphError(
            f"{kind.__name__} cannot be build_wrapper from its config alone ({error}); give from_nxdi an object of it.",
            thing=kind,
        ) from error


def instance_of(
    wrapper: Any, arguments: dict[str, Any], config: Any, dtypes: Sequence[torch.dtype] = ()
) -> Any:
    """Returns the model instance that NxD traces for a wrapper: its own, or one that builds its model class.

    Args:
        wrapper: The user's wrapper; a copy of it is asked.
        arguments: Keyword arguments of its model class.
        config: The config to build with.
        dtypes: What the model takes, where integers of 64 bits arrive in 32.
    """
    from orchestrator_neuron.nxdi.classes import EncoderModelInstance, StatelessInstance

    kind = type(wrapper)
    if overrides(wrapper, "get_model_instance"):
        instance = kind.get_model_instance(copy_of(wrapper, config))
    else:
        instance = EncoderModelInstance(wrapper.model_cls, config, **arguments)
    return StatelessInstance(instance, kind.__name__, dtypes)


def overrides(wrapper: Any, method: str) -> bool:
    """Tells whether a wrapper's class has its own version of a method."""
    from orchestrator_neuron.nxdi import classes

    return getattr(type(wrapper), method) is not getattr(classes.ModelWrapper, method)


def example_rows(wrapper: Any) -> list[Row]:
    """Returns specs of the wrapper's example inputs; none where it inherits them."""
    if not overrides(wrapper, "input_generator"):
        return []
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = list(wrapper.input_generator())
    except Exception:
        rows = list(wrapper.input_generator())
    for row in rows:
        check_example(wrapper, row)
    return [tuple(TensorSpec(tuple(value.shape), value.dtype) for value in row) for row in rows]


def held_row(row: Row) -> Row:
    """Returns example inputs in the dtypes in which the device holds them."""
    return tuple(TensorSpec(spec.dims, torch.int32) if spec.dtype is torch.int64 else spec for spec in row)


def port_names(wrapper: Any, application: Any) -> list[str]:
    """Returns names of the model's input ports, of an application's where it names them; empty: they cannot be read."""
    # A model class may be any callable that builds a model: one that has no forward says nothing of its parameters.
    functions = [
        function for function in (getattr(wrapper.model_cls, "forward", None),) if function is not None
    ]
    if application is not None:
        functions.insert(0, type(application).forward)
    for function in functions:
        with contextlib.suppress(TypeError, ValueError):
            parameters = list(inspect.signature(function).parameters.values())[1:]
            if parameters and all(item.kind is item.POSITIONAL_OR_KEYWORD for item in parameters):
                return [item.name for item in parameters]
    return []


def declared_inputs(rows: list[Row], names: list[str], inputs: Ports | None) -> dict[str, PortSpec | None]:
    """Returns input ports with the shapes of the one row of example inputs; the user's own specs come first."""
    specs = dict(inputs) if isinstance(inputs, Mapping) else {}
    ports = list(inputs) if inputs is not None else names
    row = rows[0] if len(rows) == 1 else ()
    if len(row) > len(ports) and ports:
        raise GraphError(
            f"There are {len(row)} example inputs for the input ports {ports}; name one port for each: inputs=('a', "
            f"'b').",
            inputs=ports,
        )
    shapes: dict[str, PortSpec | None] = dict(zip(ports, row, strict=False))
    if inputs is None:
        return shapes
    return {name: specs.get(name) or shapes.get(name) for name in ports}


def options_of(wrapper: Any) -> dict[str, Any]:
    """Returns a wrapper's ``NeuronConfig`` as options of a stage."""
    neuron = wrapper.config.neuron_config
    options: dict[str, Any] = {"tp_degree": neuron.tp_degree}
    if neuron.cast_type == "config" and neuron.torch_dtype not in (None, torch.float32):
        options["torch_dtype"] = neuron.torch_dtype
    return options


def copy_of(wrapper: Any, config: Any) -> Any:
    """Returns a copy of a wrapper that shares nothing that is written to."""
    duplicate = copy.copy(wrapper)
    for name in ("_modules", "_parameters", "_buffers"):
        duplicate.__dict__[name] = dict(duplicate.__dict__[name])
    duplicate.config, duplicate.neuron_config = config, config.neuron_config
    return duplicate


def load_weights_of(model: torch.nn.Module, application: Any) -> None:
    """Gives a plain model the weights of an application's checkpoint.

    Raises:
        GraphError: They cannot be read, or do not fit.
    """
    name = type(application).__name__
    try:
        model.load_state_dict(_with_tied(application.checkpoint_loader_fn(), model))
    except Exception as error:
        raise GraphError(
            f"The weights of {name} cannot be taken from its model_path {application.model_path!r}: {error}",
            application=name,
        ) from error


def _with_tied(weights: Mapping[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns what a model has of weights, a tied one by all of its names: a checkpoint holds it by one of them."""
    own = model.state_dict(keep_vars=True)
    by_tensor = {id(tensor): weights[name] for name, tensor in own.items() if name in weights}
    tied = {name: by_tensor[id(tensor)] for name, tensor in own.items() if id(tensor) in by_tensor}
    return {**tied, **{name: weights[name] for name in own if name in weights}}


def source_of(thing: Any) -> list[str]:
    """Returns name and source of an object's class."""
    kind = type(thing)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return [name, inspect.getsource(kind)]
    except (OSError, TypeError):
        return [name]


def config_text(config: Any) -> str:
    """Returns a config as text, alike in every process."""
    try:
        return str(config.to_json_string())
    except Exception:
        return type(config).__name__

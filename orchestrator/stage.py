"""Stages: one model, or one plain function, with named input and output ports.

:class:`ModelWrapper` is the base class of stage plugins and has the shape of NxD Inference's class of that
name, so that a wrapper written for it reads the same here. :func:`make_stage` turns whatever a user hands
to ``Pipeline.add`` (a module, a function, a wrapper) into a :class:`Stage`: the object plus its ports.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from orchestrator.errors import GraphError, nearest
from orchestrator.specs import Dim, PortSpec, TensorSpec, check_name, dim_names

__all__ = ["ModelWrapper", "Port", "Stage", "accepts_whole", "build", "make_stage", "parameter_names"]

Ports = Mapping[str, "PortSpec | None"]


def build(factory: Callable[..., Any], config: Any) -> Any:
    """Calls a model class or stage factory with its config.

    A parameter called ``config``, or a config that is no mapping, gets the config whole; a mapping is spread
    over the parameters otherwise.
    """
    whole = accepts_whole(factory) if config is None or isinstance(config, Mapping) else True
    if config is None:
        return factory({}) if whole else factory()
    return factory(config) if whole else factory(**config)


def accepts_whole(factory: Callable[..., Any]) -> bool:
    """Tells whether a factory takes its config as one parameter called ``config``."""
    return "config" in (parameter_names(factory) or ())


def parameter_names(factory: Callable[..., Any]) -> tuple[str, ...] | None:
    """Returns the parameters of a callable; None where it takes any keyword, or they cannot be read."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(item.kind is item.VAR_KEYWORD for item in parameters):
        return None
    return tuple(item.name for item in parameters)


class ModelWrapper:
    """Base class of stage plugins: a model class, its config, and what it eats and gives.

    Subclass it and set what differs, as class attributes or through the constructor.

    Args:
        config: What ``model_cls`` is built from: passed whole, or spread if it is a mapping and the class
            has no parameter ``config``.
        model_cls: A class or factory of the model.
        tag: A short name for artifacts and messages.

    Attributes:
        inputs: Names to specs, in the order of ``forward``; empty: taken from the signature.
        outputs: Names to specs (``None``: inferred); empty: one output called ``output``.
        opaque: True if ``forward`` cannot run on fake tensors; then ``outputs`` declares everything.
        aliases: Output ports that are an input port, updated; of an opaque wrapper nothing but its word says so.
    """

    model_cls: Callable[..., Any] | None = None
    config: Any = None
    tag: str = ""
    inputs: Mapping[str, PortSpec | None] = {}
    outputs: Mapping[str, PortSpec | None] | Sequence[str] = {}
    opaque: ClassVar[bool] = False
    aliases: Mapping[str, str] = {}

    def __init__(
        self, config: Any = None, model_cls: Callable[..., Any] | None = None, tag: str = ""
    ) -> None:
        if config is not None:
            self.config = config
        if model_cls is not None:
            self.model_cls = model_cls
        if tag:
            self.tag = tag
        self._model: Any = None

    @property
    def makes_model(self) -> bool:
        """Whether it has a model, made by ``model_cls`` or by its subclass's own ``make_model`` or ``model``."""
        own = self.overrides("make_model") or self.overrides("model")
        return own or self.model_cls is not None or self.__dict__.get("_model") is not None

    @property
    def model(self) -> Any:
        """The model, built (in eval mode) when first asked for."""
        if self.__dict__.get("_model") is None:
            self._model = self.make_model()
        return self._model

    def make_model(self) -> Any:
        """Builds a new model from ``model_cls`` and ``config``.

        Raises:
            GraphError: There is no ``model_cls``.
        """
        factory = (
            self.__dict__.get("model_cls") or type(self).__dict__.get("model_cls") or type(self).model_cls
        )
        if factory is None:
            raise GraphError(
                f"{type(self).__name__} has no model_cls; override make_model or forward.", wrapper=self
            )
        model = build(factory, self.config)
        return model.eval() if isinstance(model, torch.nn.Module) else model

    def input_generator(self) -> list[tuple[torch.Tensor, ...]]:
        """Returns example inputs, one tuple for each combination of compiled sizes of ``inputs``.

        A bare name, whose sizes only a plan knows, counts as 1. Override it to state shapes by example.
        """
        specs = [spec for spec in self.inputs.values() if isinstance(spec, TensorSpec)]
        buckets: dict[str, tuple[int, ...]] = {}
        for dim in (dim for spec in specs for dim in spec.dims):
            for name in dim_names(dim):
                buckets[name] = (dim.buckets if isinstance(dim, Dim) else ()) or buckets.get(name, (1,))
        rows = (dict(zip(buckets, row, strict=True)) for row in itertools.product(*buckets.values()))
        return [tuple(torch.zeros(spec.shape(sizes), dtype=spec.dtype) for spec in specs) for sizes in rows]

    def forward(self, *tensors: Any, **kwargs: Any) -> Any:
        """Runs the model; override it to do more."""
        return self.model(*tensors, **kwargs)

    def __call__(self, *tensors: Any, **kwargs: Any) -> Any:
        """Calls :meth:`forward`."""
        return self.forward(*tensors, **kwargs)

    def key_parts(self) -> Iterable[object] | None:
        """Returns the objects that stand for its attributes in the stage's content key; ``None``: its attributes do.

        A stage compiled for one key is taken for every other stage of that key. So override it where an attribute
        changes and compiled programs do not depend on it (a cache, a connection, an object that loads itself), and
        return all that they do depend on: plain values, containers, functions, tensors. Its class and its model count
        in either case.
        """
        return None

    @classmethod
    def overrides(cls, method: str) -> bool:
        """Tells whether a subclass has its own version of a method."""
        return getattr(cls, method) is not getattr(ModelWrapper, method)


@dataclass(frozen=True)
class Port:
    """A named input or output of a stage.

    Attributes:
        name: The port's name.
        spec: What it takes or gives; ``None``: whatever fits, found by inference.
        optional: It may stay unfed.
        keyword: It is passed by name only.
    """

    name: str
    spec: PortSpec | None = None
    optional: bool = False
    keyword: bool = False


@dataclass(frozen=True, eq=False)
class Stage:
    """A model or function with named ports; a stage called twice is two calls and one set of weights.

    Attributes:
        name: Unique in its graph; ``sub/enc`` for the stage ``enc`` of an inlined pipeline ``sub``.
        target: The module, function or wrapper.
        inputs: Input ports in call order.
        outputs: Output ports in order; empty: one called ``output``, or the keys of the dict it returns.
        host: It is plain Python on the host: never compiled, never run while planning.
        device: Where the author put it, if anywhere.
        config: Options of the stage, for its backend.
        accepts: Options its registered factory knows, for messages.
        aliases: Output ports that are an input port, updated: each with that input.
    """

    name: str
    target: Callable[..., Any]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...] = ()
    host: bool = False
    device: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    accepts: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    @property
    def wrapper(self) -> ModelWrapper | None:
        """The target, if it is a wrapper."""
        return self.target if isinstance(self.target, ModelWrapper) else None

    @property
    def opaque(self) -> bool:
        """Its outputs are declared by its author and cannot be inferred."""
        return self.wrapper is not None and self.wrapper.opaque

    def module(self) -> Any:
        """The callable that runs it: the wrapper's model where ``forward`` is not overridden."""
        wrapper = self.wrapper
        return wrapper.model if wrapper is not None and not wrapper.overrides("forward") else self.target

    def arguments(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns how it is called with values by port: by position while no port is left out, then by keyword."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        gap = False
        for port in self.inputs:
            if port.name not in values:
                gap = True
            elif gap or port.keyword:
                keywords[port.name] = values[port.name]
            else:
                positional.append(values[port.name])
        return tuple(positional), keywords

    def input(self, name: str) -> Port:
        """Returns an input port.

        Raises:
            GraphError: There is none of that name.
        """
        for port in self.inputs:
            if port.name == name:
                return port
        names = [port.name for port in self.inputs]
        raise GraphError(
            f"Stage {self.name!r} has no input port {name!r}.{nearest(name, names)}", stage=self.name
        )


def make_stage(
    name: str,
    target: Any,
    *,
    config: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    inputs: Any = None,
    outputs: Any = None,
    aliases: Any = None,
) -> Stage:
    """Turns a module, function or wrapper into a stage.

    Args:
        name: The stage's name.
        target: What runs.
        config: Options for its backend.
        device: Where it runs; ``"host"``: plain Python.
        inputs: Names of the input ports, or names to specs.
        outputs: Names of the output ports, or names to specs.
        aliases: Output ports that are an input port, updated: each with that input.

    Raises:
        GraphError: It is not callable, its ports cannot be read from it, or a port is declared that it lacks; or an
            alias is none.
    """
    if isinstance(target, type) and issubclass(target, (torch.nn.Module, ModelWrapper)):
        raise GraphError(
            f"Stage {name!r} is the class {target.__name__}; give an object: {target.__name__}(...).",
            stage=name,
        )
    if not callable(target):
        raise GraphError(
            f"Stage {name!r} is {target!r}; a stage is a module, a function, a ModelWrapper, a Pipeline or "
            f"a registered name.",
            stage=name,
        )
    # Ports are read off the target without running or building it, so a stage of any size is added at no cost.
    host = device == "host"
    input_ports = _input_ports(name, target, inputs)
    output_ports = _output_ports(name, target, outputs)
    if aliases is None and isinstance(target, ModelWrapper):
        aliases = target.aliases
    if host and (not output_ports or any(port.spec is None for port in output_ports)):
        raise GraphError(
            f"Host stage {name!r} never runs while planning, so it declares what it gives: "
            f"outputs={{'name': TensorSpec(...) or a Python type}}.",
            stage=name,
        )
    return Stage(
        name,
        target,
        input_ports,
        output_ports,
        host,
        None if host or device is None else str(device),
        dict(config or {}),
        aliases=_alias_pairs(name, aliases, input_ports, output_ports, host),
    )


def _alias_pairs(
    name: str, aliases: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...], host: bool
) -> tuple[tuple[str, str], ...]:
    """Normalises ``aliases=``: output ports to input ports, each known and named once."""
    if aliases is None:
        return ()
    if not isinstance(aliases, Mapping):
        raise GraphError(
            f"aliases of stage {name!r} is a dict of output port to the input port that it is, updated: "
            f"aliases={{'past_next': 'past'}}; not {aliases!r}.",
            stage=name,
        )
    if aliases and host:
        raise GraphError(
            f"Stage {name!r} is a host stage, which gets no input that it may write into; aliases= is for stages on "
            f"a device.",
            stage=name,
        )
    # Output ports that nobody declared are known only once the stage was tried; inference looks at those.
    input_names, output_names = [port.name for port in inputs], [port.name for port in outputs]
    outputs_by_input: dict[str, str] = {}
    for output, port in aliases.items():
        if output_names and output not in output_names:
            raise GraphError(
                f"aliases of stage {name!r} names the output {output!r}, which it does not have."
                f"{nearest(str(output), output_names)}",
                stage=name,
                port=output,
            )
        if port not in input_names:
            raise GraphError(
                f"aliases of stage {name!r} says that {output!r} is the input {port!r}, which it does not have."
                f"{nearest(str(port), input_names)}",
                stage=name,
                port=port,
            )
        if port in outputs_by_input:
            raise GraphError(
                f"aliases of stage {name!r} says of two outputs, {outputs_by_input[port]!r} and {output!r}, that they "
                f"are the input {port!r}; one value is updated into one.",
                stage=name,
                port=port,
            )
        outputs_by_input[port] = output
    return tuple((output, port) for port, output in outputs_by_input.items())


def _signature_of(target: Any) -> tuple[Callable[..., Any], int]:
    """The callable whose parameters are the stage's ports, and how many come before them (``self``)."""
    if isinstance(target, ModelWrapper):
        if type(target).overrides("forward") or target.model_cls is None:
            return target.forward, 0
        model_cls = target.model_cls
        if isinstance(model_cls, type) and target.__dict__.get("_model") is None:
            return getattr(model_cls, "forward", model_cls.__call__), 1
        target = target.model
    if isinstance(target, functools.partial) and isinstance(target.func, torch.nn.Module):
        return functools.partial(target.func.forward, *target.args, **target.keywords), 0
    # What torch.compile gives takes any arguments; those of the module in it are meant.
    while isinstance(target, torch.nn.Module) and "_orig_mod" in target._modules:
        target = target._orig_mod
    return (target.forward if isinstance(target, torch.nn.Module) else target), 0


def _signature_ports(target: Any) -> tuple[Port, ...] | None:
    """Ports read from a signature, or a script's schema; None where it has none or takes ``*args``."""
    function, bound_count = _signature_of(target)
    try:
        parameters = list(inspect.signature(function).parameters.values())[bound_count:]
    except (TypeError, ValueError):
        return _schema_ports(target)
    if any(item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD) for item in parameters):
        return _schema_ports(target)
    return tuple(
        Port(item.name, optional=item.default is not item.empty, keyword=item.kind is item.KEYWORD_ONLY)
        for item in parameters
    )


def _schema_ports(target: Any) -> tuple[Port, ...] | None:
    """Ports of a scripted or traced module or function, whose Python signature is gone; None for all else."""
    script: Any = target.forward if isinstance(target, torch.jit.ScriptModule) else target
    if not isinstance(script, (torch.jit.ScriptFunction, torch.ScriptMethod)):
        return None
    arguments: Any = script.schema.arguments  # type: ignore[union-attr]
    own_count = isinstance(script, torch.ScriptMethod)  # the module comes before what it is called with
    return tuple(
        Port(item.name, optional=item.has_default_value(), keyword=item.kwarg_only)
        for item in arguments[own_count:]
    )


def _port_specs(name: str, kind: str, ports: Any) -> dict[str, PortSpec | None]:
    """Normalises ``inputs=``/``outputs=``: one name, names, or names to specs."""
    # One name, several names and names with specs all become names with specs; None: inferred.
    if ports is None:
        return {}
    if isinstance(ports, str):
        ports = (ports,)
    if isinstance(ports, TensorSpec):
        raise GraphError(
            f"{kind}s of stage {name!r} go by name: {kind}s={{'name': TensorSpec(...)}}.", stage=name
        )
    pairs: Iterable[tuple[Any, Any]] = (
        ports.items() if isinstance(ports, Mapping) else ((port, None) for port in ports)
    )
    result: dict[str, PortSpec | None] = {}
    for port, spec in pairs:
        check_name(f"{kind} port", port)
        if port in result:
            raise GraphError(f"Stage {name!r} has two {kind} ports called {port!r}.", stage=name, port=port)
        spec = object if spec is Any else spec
        if spec is not None and not isinstance(spec, (TensorSpec, type)):
            raise GraphError(
                f"The {kind} port {port!r} of stage {name!r} is declared as {spec!r}; "
                f"it takes a TensorSpec or a Python type.",
                stage=name,
                port=port,
            )
        result[port] = spec
    return result


def _input_ports(name: str, target: Any, inputs: Any) -> tuple[Port, ...]:
    wrapper = target if isinstance(target, ModelWrapper) else None
    specs = _port_specs(
        name, "input", inputs if inputs is not None else (wrapper.inputs if wrapper else None)
    )
    # The signature says which ports there are. A wrapper whose own says nothing has its model built for it, as a last
    # resort; where nothing says it, the author has to.
    ports = _signature_ports(target)
    if ports is None and not specs and wrapper is not None and wrapper.makes_model:
        ports = _signature_ports(wrapper.model)
    if ports is None:
        if not specs:
            raise GraphError(
                f"The input ports of stage {name!r} cannot be read from its signature (a builtin, or *args or "
                f"**kwargs); name them: inputs=('a', 'b').",
                stage=name,
            )
        return _open_ports(target, specs)
    # Declared specs go to the parameters of that name, or, where one is called otherwise, to all by position.
    if not specs:
        return ports
    parameters = {port.name: port for port in ports}
    if specs.keys() <= parameters.keys():
        return tuple(Port(port.name, specs.get(port.name), port.optional, port.keyword) for port in ports)
    return _ports_by_position(name, ports, specs)


def _open_ports(target: Any, specs: Ports) -> tuple[Port, ...]:
    """Ports of a callable that takes ``*args`` or ``**kwargs``, or has no signature.

    A port named like a parameter is passed by that name, and so is one that only ``**kwargs`` can take. Where no
    name is known, the ports are the positional parameters in order.
    """
    function, bound_count = _signature_of(target)
    try:
        parameters = list(inspect.signature(function).parameters.values())[bound_count:]
    except (TypeError, ValueError):
        return tuple(Port(port, spec) for port, spec in specs.items())
    # Where one port is called like a parameter, all go by name: by position, the others would land on whatever
    # parameters are left. With ``*args`` only what must go by name does.
    by_name = {
        item.name: item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
    }
    places = sum(item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD) for item in parameters)
    spread = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    goes_by_name = not spread and any(port in by_name for port in specs)
    ports: list[Port] = []
    for place, (port, spec) in enumerate(specs.items()):
        parameter = by_name.get(port)
        keyword_only = parameter is not None and parameter.kind is parameter.KEYWORD_ONLY
        keyword = keyword_only or goes_by_name or (not spread and place >= places)
        optional = parameter is not None and parameter.default is not parameter.empty
        ports.append(Port(port, spec, optional, keyword))
    return tuple(ports)


def _ports_by_position(name: str, ports: tuple[Port, ...], specs: Ports) -> tuple[Port, ...]:
    """Declared ports that are no parameters: they name the positional parameters in order."""
    positional = [port for port in ports if not port.keyword]
    required = [port for port in positional if not port.optional]
    if not len(required) <= len(specs) <= len(positional):
        stray = next(port for port in specs if port not in {item.name for item in ports})
        raise GraphError(
            f"Stage {name!r} declares the input port {stray!r}, but its forward takes "
            f"({', '.join(port.name for port in ports)}).{nearest(stray, [port.name for port in ports])}",
            stage=name,
            port=stray,
        )
    pairs = zip(positional, specs.items(), strict=False)
    return tuple(Port(port, spec, old.optional) for old, (port, spec) in pairs)


def _output_ports(name: str, target: Any, outputs: Any) -> tuple[Port, ...]:
    if outputs is None and isinstance(target, ModelWrapper):
        outputs = target.outputs
    return tuple(Port(port, spec) for port, spec in _port_specs(name, "output", outputs).items())

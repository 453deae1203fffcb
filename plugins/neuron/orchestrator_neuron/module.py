"""The module that is traced for one program and one bucket: folded adapters, the stage, folded adapters.

It takes the program's tensors in order, one more where it has a route, and returns a tuple. The weights of its
application are found under ``stage.``: a name such as ``model.weight`` becomes ``stage.model.weight``, so that no
loader that strips ``model.`` touches it. All programs of an application have all of its weights, by the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from orchestrator.adapter import Adapter, apply
from orchestrator.duplicate import duplicate, fill_meta, owner_of
from orchestrator.errors import CompileError
from orchestrator.program import Application, Program, ProgramInput, ProgramOutput, ProgramState, outputs_of
from orchestrator.stage import Stage

__all__ = [
    "PREFIX",
    "ApplicationModule",
    "EntryPoints",
    "ProgramModule",
    "application_module",
    "entry_points",
    "example_inputs",
]

#: What the weights are found under.
PREFIX = "stage."


@dataclass(frozen=True)
class ApplicationModule:
    """Private copies of the callables of an application's stages, on the host, with the weights that they share.

    Attributes:
        targets: Stage to callable.
        owner: The module that owns the weights; ``None``: there are none. Where stages are of several modules, one that
            holds them.
    """

    targets: Mapping[str, Callable[..., Any]]
    owner: torch.nn.Module | None

    def target(self, application: Application, program: Program) -> Callable[..., Any] | None:
        """Returns the callable that a program runs; ``None``: it is weightless."""
        stage = application.stage_of(program)
        return None if stage is None else self.targets[stage.name]


def application_module(
    application: Application, dtype: torch.dtype | None = None, has_checkpoint: bool = False
) -> ApplicationModule:
    """Copies what an application runs.

    Args:
        application: The application.
        dtype: Of floating-point weights and buffers; ``None``: they stay as they are.
        has_checkpoint: A checkpoint gives the weights, so that those of the module may be without content.

    Raises:
        CompileError: A tensor of the module is on the meta device, and nothing else gives its content.
    """
    # One memo for all copies: what stages share, their copies share.
    memo: dict[int, Any] = {}
    targets: dict[str, Callable[..., Any]] = {}
    owners: list[torch.nn.Module] = []
    for stage in application.stages:
        targets[stage.name], owner = _copy(stage, memo)
        if owner is not None:
            owners.append(owner)
    owner = _joined(owners)
    if owner is None:
        return ApplicationModule(targets, None)
    # Tensors without content would compile, and give garbage. A checkpoint has weights, but no buffer that the module
    # computes for itself.
    for name, is_computed in fill_meta(owner).items():
        if is_computed or not has_checkpoint:
            raise _contentless(application.name, name, is_computed)
    owner = owner.eval().requires_grad_(False).to("cpu")
    if dtype is not None:
        _convert(owner, dtype)
    return ApplicationModule(targets, owner)


def _copy(stage: Stage, memo: dict[int, Any]) -> tuple[Callable[..., Any], torch.nn.Module | None]:
    """A copy of a stage's callable, and the module that owns its weights, if any."""
    # A wrapper that makes its model when first asked makes it in the original, so that it is made once for all copies.
    target = stage.module()
    wrapper = stage.wrapper
    if wrapper is not None and target is wrapper:
        _ = wrapper.model if wrapper.makes_model else None
    copy: Any = duplicate(target, memo)
    owner = owner_of(copy)
    if not isinstance(owner, torch.nn.Module) and wrapper is not None:
        owner = copy.__dict__.get("_model")
    return copy, owner if isinstance(owner, torch.nn.Module) else None


def _joined(owners: list[torch.nn.Module]) -> torch.nn.Module | None:
    """The module of all weights: the one that holds the others, else a new one that holds all which no other does."""
    distinct = list({id(owner): owner for owner in owners}.values())
    inner = {id(part) for owner in distinct for part in owner.modules() if part is not owner}
    outer = [owner for owner in distinct if id(owner) not in inner]
    if len(outer) < 2:
        return outer[0] if outer else None
    return torch.nn.ModuleList(outer)


def _contentless(stage: str, name: str, is_computed: bool) -> CompileError:
    """The error for a tensor without content that no checkpoint gives."""
    way_out = (
        "The module computes it when it is made, and no checkpoint has it: make it with content, outside of "
        "torch.device('meta')"
        if is_computed
        else "Give a checkpoint that has it, add(..., config={'checkpoint': 'model.safetensors'}), or load the weights "
        "into the module first: module.to_empty(device='cpu').load_state_dict(...)"
    )
    return CompileError(
        f"{name!r} of stage {stage!r} is on the meta device, without content. {way_out}.",
        stage=stage,
        weight=name,
    )


def _convert(owner: torch.nn.Module, dtype: torch.dtype) -> None:
    """Converts floating-point weights and buffers; complex ones stay, other than with ``owner.to(dtype)``."""
    # By identity, so that a buffer which two modules hold stays one tensor; each is held, so that none is used again.
    converted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in converted:
            converted[id(tensor)] = tensor, tensor.to(dtype) if tensor.is_floating_point() else tensor
        return converted[id(tensor)][1]

    owner._apply(convert)  # type: ignore[no-untyped-call]


class ProgramModule(torch.nn.Module):
    """The module that is traced for one version of a program.

    Args:
        target: The stage's callable, from :func:`application_module`; ``None``: a weightless program.
        owner: The module that owns the weights, if any.
        program: The program.
        sizes: The combination of buckets.
        checks_overflow: Integers beyond the 32 bits in which the device holds them raise when it runs; else they wrap.
        states: The states of the application, which are there as parameters ``states.0`` and so on. They follow the
            program's results, those that it does not write as they were.
    """

    def __init__(
        self,
        target: Callable[..., Any] | None,
        owner: torch.nn.Module | None,
        program: Program,
        sizes: Mapping[str, int],
        checks_overflow: bool = False,
        states: tuple[ProgramState, ...] = (),
    ) -> None:
        super().__init__()
        self._state_names = tuple(state.name for state in states)
        ends: tuple[ProgramInput | ProgramOutput, ...] = (*program.inputs, *program.outputs)
        self._state_places = {
            end.state: tuple(map(slice, end.spec.shape(sizes)))
            for end in ends
            if end.state and end.spec is not None
        }
        self.states = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(state.spec.shape({}), dtype=state.spec.dtype), requires_grad=False)
            for state in states
        )
        self.stage = owner
        # In a tuple, so that a target that is a module is not registered a second time.
        self._target = (target,)
        self.program = program
        self._sizes = dict(sizes)
        self._checks_overflow = checks_overflow

    @property
    def target(self) -> Callable[..., Any] | None:
        """The stage's callable; ``None``: the program is weightless."""
        return self._target[0]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the program once."""
        values = iter(tensors)
        states: dict[str, torch.Tensor] = dict(zip(self._state_names, self.states, strict=True))
        arguments = {
            item.port: item.constant
            if item.spec is None
            else self._enter(item, self._part(item.state, states) if item.state else next(values))
            for item in self.program.inputs
        }
        target = self.target
        results = arguments if target is None else self._by_port(self._call(target, arguments))
        outputs = [
            (item.state, self._adapt(self._narrow(results[item.port], item), item.adapters))
            for item in self.program.outputs
        ]
        # First what is handed over, then the states, in the order of the application.
        after = states | {state: self._whole(state, value, states) for state, value in outputs if state}
        return (*(value for state, value in outputs if not state), *after.values())

    def _part(self, state: str, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The corner of a state that a request of these sizes uses."""
        place = self._state_places[state]
        whole = states[state]
        return whole if tuple(part.stop for part in place) == whole.shape else whole[place]

    def _whole(self, state: str, value: torch.Tensor, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A state with that corner replaced."""
        if value.shape == states[state].shape:
            return value
        whole = states[state].clone()
        whole[self._state_places[state]] = value
        return whole

    def _enter(self, item: ProgramInput, value: torch.Tensor) -> torch.Tensor:
        value = self._adapt(value, item.adapters)
        if item.dtype is not None and not item.dtype.is_floating_point and value.dtype != item.dtype:
            value = value.to(item.dtype)
        # A program gives new values: what a stage updates in place is updated in a copy.
        return value.clone() if item.port in self.program.updates else value

    def _adapt(self, value: torch.Tensor, adapters: tuple[Adapter, ...]) -> torch.Tensor:
        for adapter in adapters:
            value = apply(adapter, value, self._sizes)
        return value

    def _narrow(self, value: torch.Tensor, item: ProgramOutput) -> torch.Tensor:
        """Converts a result of the stage to the dtype in which the device holds it; a folded cast does the rest."""
        if value.dtype == item.spec.dtype or any(adapter.kind == "cast" for adapter in item.adapters):
            return value
        if self._checks_overflow and value.dtype is torch.int64 and item.spec.dtype is torch.int32:
            limits = torch.iinfo(torch.int32)
            fits = ((value >= limits.min) & (value <= limits.max)).all()
            torch._assert_async(
                fits,
                f"an element of the output {item.port!r} is beyond the 32 bits in which a Neuron device holds "
                f"integers; give it as floating-point, or in parts",
            )
        return value.to(item.spec.dtype)

    def _call(self, target: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        keywords = self.program.keywords
        positional = [value for port, value in arguments.items() if port not in keywords]
        return target(*positional, **{port: arguments[port] for port in keywords})

    def _by_port(self, result: Any) -> Mapping[str, torch.Tensor]:
        ports = self.program.ports
        return dict(zip(ports, outputs_of(self.program.returns, ports, result), strict=True))


def example_inputs(program: Program, sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
    """Returns inputs of a program at one combination of buckets; their shapes and dtypes become its contract.

    Ones, not zeros: a compiler may drop what a mask of zeros hides.
    """
    tensors = [
        torch.ones(item.spec.shape(sizes), dtype=item.spec.dtype, device="cpu")
        for item in program.tensors
        if item.spec
    ]
    if program.route:
        tensors.append(torch.zeros(program.route, dtype=torch.int32, device="cpu"))
    return tuple(tensors)


#: Stage to the module that is traced for it at its first sizes, and example inputs.
EntryPoints: TypeAlias = Mapping[str, tuple[ProgramModule, tuple[torch.Tensor, ...]]]


def entry_points(application: Application, module: ApplicationModule) -> EntryPoints:
    """Returns each stage of an application in the first of its programs, at the first of its sizes.

    Args:
        application: The application.
        module: What it runs.
    """
    points: dict[str, tuple[ProgramModule, tuple[torch.Tensor, ...]]] = {}
    for program in application.programs:
        stage, sizes = application.stage_of(program), program.sizes[0]
        if stage is not None and stage.name not in points:
            program_module = ProgramModule(
                module.targets[stage.name], module.owner, program, sizes, states=application.states
            )
            points[stage.name] = program_module, example_inputs(program, sizes)
    return points

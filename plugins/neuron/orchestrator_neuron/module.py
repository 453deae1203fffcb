"""The module that is traced for one program and one bucket: folded adapters, the stage, folded adapters.

It takes the program's tensors in order, one more where it has a route, and returns a tuple. The stage's weights are
found under ``stage.``: a name such as ``model.weight`` becomes ``stage.model.weight``, so that no loader that strips
``model.`` touches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from orchestrator.adapter import Adapter, apply
from orchestrator.duplicate import duplicate, fill_meta, owner_of
from orchestrator.errors import CompileError
from orchestrator.program import Program, ProgramInput, ProgramOutput, outputs_of
from orchestrator.stage import Stage

__all__ = ["PREFIX", "ProgramModule", "example_inputs", "stage_module"]

#: What the stage's weights are found under.
PREFIX = "stage."


def stage_module(
    stage: Stage | None, dtype: torch.dtype | None = None, has_checkpoint: bool = False
) -> tuple[Callable[..., Any] | None, torch.nn.Module | None]:
    """Returns a private copy of a stage's callable, on the host, and the module that owns its weights, if any.

    Args:
        stage: The stage; ``None``: there is none.
        dtype: Of floating-point weights and buffers; ``None``: they stay as they are.
        has_checkpoint: A checkpoint gives the weights, so that those of the module may be without content.

    Raises:
        CompileError: A tensor of the module is on the meta device, and nothing else gives its content.
    """
    if stage is None:
        return None, None
    # A wrapper that makes its model when first asked makes it in the original, so that it is made once for all copies.
    target = stage.module()
    wrapper = stage.wrapper
    if wrapper is not None and target is wrapper:
        _ = wrapper.model if wrapper.makes_model else None
    memo: dict[int, Any] = {}
    copy: Any = duplicate(target, memo)
    owner = owner_of(copy)
    if not isinstance(owner, torch.nn.Module) and wrapper is not None:
        owner = copy.__dict__.get("_model")
    if not isinstance(owner, torch.nn.Module):
        return copy, None
    # Tensors without content would compile, and give garbage. A checkpoint has weights, but no buffer that the module
    # computes for itself.
    for name, is_computed in fill_meta(owner).items():
        if is_computed or not has_checkpoint:
            raise _contentless(stage.name, name, is_computed)
    owner = owner.eval().requires_grad_(False).to("cpu")
    if dtype is not None:
        _convert(owner, dtype)
    return copy, owner


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

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    owner._apply(convert)  # type: ignore[no-untyped-call]


class ProgramModule(torch.nn.Module):
    """The module that is traced for one version of a program.

    Args:
        target: The stage's callable, from :func:`stage_module`; ``None``: a weightless program.
        owner: The module that owns the weights, if any.
        program: The program.
        sizes: The combination of buckets.
        checks_overflow: Integers beyond the 32 bits in which the device holds them raise when it runs; else they wrap.
    """

    def __init__(
        self,
        target: Callable[..., Any] | None,
        owner: torch.nn.Module | None,
        program: Program,
        sizes: Mapping[str, int],
        checks_overflow: bool = False,
    ) -> None:
        super().__init__()
        self.stage = owner
        # In a tuple, so that a target that is a module is not registered a second time.
        self._target = (target,)
        self._program = program
        self._sizes = dict(sizes)
        self._checks_overflow = checks_overflow

    @property
    def target(self) -> Callable[..., Any] | None:
        """The stage's callable; ``None``: the program is weightless."""
        return self._target[0]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the program once."""
        values = iter(tensors)
        arguments = {
            item.port: item.constant if item.spec is None else self._enter(item, next(values))
            for item in self._program.inputs
        }
        target = self.target
        results = arguments if target is None else self._by_port(self._call(target, arguments))
        return tuple(
            self._adapt(self._narrow(results[item.port], item), item.adapters)
            for item in self._program.outputs
        )

    def _enter(self, item: ProgramInput, value: torch.Tensor) -> torch.Tensor:
        value = self._adapt(value, item.adapters)
        if item.dtype is not None and not item.dtype.is_floating_point and value.dtype != item.dtype:
            value = value.to(item.dtype)
        return value

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
        keywords = self._program.keywords
        positional = [value for port, value in arguments.items() if port not in keywords]
        return target(*positional, **{port: arguments[port] for port in keywords})

    def _by_port(self, result: Any) -> Mapping[str, torch.Tensor]:
        ports = self._program.ports
        return dict(zip(ports, outputs_of(self._program.returns, ports, result), strict=True))


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

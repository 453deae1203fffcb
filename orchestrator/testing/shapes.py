"""What a stage gives without running it: shapes and dtypes, found on fake tensors or taken from its declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.planner.infer.probe import Argument, DataDependentError, Prober
from orchestrator.specs import Dim, PortSpec, TensorSpec, plain_dim
from orchestrator.stage import Stage
from orchestrator.testing.record import HandleError, NullHandle

__all__ = ["Shapes"]


class Shapes:
    """Shapes of one stage.

    Args:
        stage: The stage.
        sizes: Every combination of sizes that it runs at.
        static: Whether other sizes are refused.
    """

    def __init__(self, stage: Stage, sizes: Sequence[Mapping[str, int]], static: bool) -> None:
        self._stage = stage
        self._sizes = sizes
        self._static = static
        self._prober = Prober()

    def check(self, args: tuple[Any, ...], keyword_arguments: Mapping[str, Any]) -> None:
        """Makes sure that inputs have one of the compiled sizes, where shapes are static.

        Raises:
            HandleError: They have not.
        """
        if not self._static:
            return
        values = self._by_port(args, keyword_arguments)
        if not any(self._fits(values, sizes) for sizes in self._sizes):
            shapes = {
                name: list(value.shape) for name, value in values.items() if isinstance(value, NullHandle)
            }
            raise HandleError(
                f"Stage {self._stage.name!r} is compiled for {list(map(dict, self._sizes))}, but was given {shapes}."
            )

    def _fits(self, values: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
        specs = {port.name: port.spec for port in self._stage.inputs}
        return all(
            not isinstance(spec := specs[name], TensorSpec)
            or not isinstance(value, NullHandle)
            or value.shape == spec.shape(sizes)
            for name, value in values.items()
        )

    def outputs(self, args: tuple[Any, ...], keyword_arguments: Mapping[str, Any]) -> Any:
        """Returns tensors on the meta device, in the form in which the stage gives its own.

        A dim that only a declaration brings in is at its largest bucket.
        """
        values = self._by_port(args, keyword_arguments)
        # 1. The stage is run on fake tensors, unless nobody may run it, or its outputs depend on what tensors hold:
        #    then its declaration is all there is.
        arguments: list[Argument] = [
            (name, (value.shape, value.dtype) if isinstance(value, NullHandle) else value)
            for name, value in values.items()
        ]
        if self._stage.opaque:
            return self._declared_outputs(values)
        try:
            outcome = self._prober.run(self._stage, tuple(arguments))
        except DataDependentError:
            return self._declared_outputs(values)
        # 2. The form in which it gives them: a value, a dict, or a tuple with a gap where it gives what is no tensor.
        outputs = {
            name: torch.empty(shape, dtype=dtype, device="meta") for name, shape, dtype in outcome.outputs
        }
        if outcome.returns == "single":
            return outputs["output"]
        if outcome.returns != "tuple":
            return outputs
        return tuple(outputs.get(str(position)) for position in range(len(outputs) + len(outcome.others)))

    def _by_port(self, args: tuple[Any, ...], keyword_arguments: Mapping[str, Any]) -> dict[str, Any]:
        ports = [port.name for port in self._stage.inputs]
        values = {**dict(zip(ports, args, strict=False)), **keyword_arguments}
        return {name: values[name] for name in ports if name in values}

    def _declared_outputs(self, values: Mapping[str, Any]) -> Any:
        sizes: dict[str, int] = {}
        for port in self._stage.inputs:
            value = values.get(port.name)
            if isinstance(port.spec, TensorSpec) and isinstance(value, NullHandle):
                pairs = zip(map(plain_dim, port.spec.dims), value.shape, strict=True)
                sizes.update((dim, size) for dim, size in pairs if isinstance(dim, str))
        outputs = {
            port.name: torch.empty(_shape(port.spec, sizes), dtype=port.spec.dtype, device="meta")
            for port in self._stage.outputs
            if isinstance(port.spec, TensorSpec)
        }
        return next(iter(outputs.values())) if len(outputs) == 1 else tuple(outputs.values())


def _shape(spec: PortSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    assert isinstance(spec, TensorSpec)
    largest = {dim.name: dim.buckets[-1] for dim in spec.dims if isinstance(dim, Dim) and dim.buckets}
    return spec.shape({**dict.fromkeys(spec.names, 1), **largest, **sizes})

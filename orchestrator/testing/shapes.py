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
        compiled: The sizes it was compiled for.
        static: Whether other sizes are refused.
    """

    def __init__(self, stage: Stage, compiled: Sequence[Mapping[str, int]], static: bool) -> None:
        self._stage = stage
        self._compiled = compiled
        self._static = static
        self._prober = Prober()

    def check(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Makes sure that inputs have one of the compiled sizes, where shapes are static.

        Raises:
            HandleError: They have not.
        """
        if not self._static:
            return
        given = self._by_port(args, named)
        if not any(self._fits(given, sizes) for sizes in self._compiled):
            shapes = {
                name: list(value.shape) for name, value in given.items() if isinstance(value, NullHandle)
            }
            raise HandleError(
                f"Stage {self._stage.name!r} is compiled for {list(map(dict, self._compiled))}, but was given {shapes}."
            )

    def _fits(self, given: Mapping[str, Any], sizes: Mapping[str, int]) -> bool:
        specs = {port.name: port.spec for port in self._stage.inputs}
        return all(
            not isinstance(spec := specs[name], TensorSpec)
            or not isinstance(value, NullHandle)
            or value.shape == spec.shape(sizes)
            for name, value in given.items()
        )

    def outputs(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Returns tensors on the meta device, in the form in which the stage gives its own.

        A dim that only a declaration brings in is at its largest bucket.
        """
        given = self._by_port(args, named)
        arguments: list[Argument] = [
            (name, (value.shape, value.dtype) if isinstance(value, NullHandle) else value)
            for name, value in given.items()
        ]
        if self._stage.opaque:
            return self._declared(given)
        try:
            outcome = self._prober.run(self._stage, tuple(arguments))
        except DataDependentError:
            return self._declared(given)
        made = {
            name: torch.empty(shape, dtype=dtype, device="meta") for name, shape, dtype in outcome.outputs
        }
        if outcome.returns == "single":
            return made["output"]
        if outcome.returns != "tuple":
            return made
        return tuple(made.get(str(position)) for position in range(len(made) + len(outcome.others)))

    def _by_port(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        ports = [port.name for port in self._stage.inputs]
        given = {**dict(zip(ports, args, strict=False)), **named}
        return {name: given[name] for name in ports if name in given}

    def _declared(self, given: Mapping[str, Any]) -> Any:
        sizes: dict[str, int] = {}
        for port in self._stage.inputs:
            value = given.get(port.name)
            if isinstance(port.spec, TensorSpec) and isinstance(value, NullHandle):
                pairs = zip(map(plain_dim, port.spec.dims), value.shape, strict=True)
                sizes.update((dim, size) for dim, size in pairs if isinstance(dim, str))
        made = {
            port.name: torch.empty(_shape(port.spec, sizes), dtype=port.spec.dtype, device="meta")
            for port in self._stage.outputs
            if isinstance(port.spec, TensorSpec)
        }
        return next(iter(made.values())) if len(made) == 1 else tuple(made.values())


def _shape(spec: PortSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    assert isinstance(spec, TensorSpec)
    largest = {dim.name: dim.buckets[-1] for dim in spec.dims if isinstance(dim, Dim) and dim.buckets}
    return spec.shape({**dict.fromkeys(spec.names, 1), **largest, **sizes})

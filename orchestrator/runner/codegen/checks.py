"""Checking at each call what rests on an author's word: outputs of host stages and of opaque stages.

The check of a stage that gives birth to a dim also notes the size it decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from orchestrator.errors import StageError, nearest
from orchestrator.plan.chunks import size_error, ways_out
from orchestrator.plan.model import Plan
from orchestrator.plan.records import DimPlan, PlannedCall
from orchestrator.plan.steps import HOST
from orchestrator.program import outputs_of
from orchestrator.specs import PortSpec, TensorSpec, is_dense, show_spec, show_tensor
from orchestrator.surroundings import autocast_hint

__all__ = ["make_check", "make_unwritten", "versions"]


def make_check(plan: Plan, call: PlannedCall) -> Callable[..., tuple[Any, ...]]:
    """Returns the function ``(result of the stage, real sizes, buckets) -> outputs in order``.

    A host stage gives real sizes, one on a device the bucket it runs in. The sizes of dims that are born here are
    added to the real ones.

    Raises:
        StageError: (the returned function) The stage gave something else than it declared.
    """
    dims = {dim.name: dim for dim in plan.dims}
    own = {dim.name for dim in plan.dims if dim.decided_by.partition(".")[0] == call.name}
    ports = call.outputs

    def check(result: Any, real: dict[str, int], bucket: Mapping[str, int]) -> tuple[Any, ...]:
        values = _unpack(call, result)
        # A dim that nobody decided before gets the size of the first port that carries it; every later port, of this
        # stage or another one, is held to that.
        for (port, spec), value in zip(ports, values, strict=True):
            if isinstance(spec, TensorSpec):
                _check_tensor(call, port, spec, value)
                for name, size in _dim_sizes(call, port, spec, value):
                    if name not in real:
                        _check_born(call, port, dims[name], size)
                        real[name] = size
                    expected_size = (real if call.device == HOST or name in own else bucket)[name]
                    if expected_size != size:
                        raise _differs(
                            call, port, spec, value, f" Dim {name!r} is {expected_size} in this request."
                        )
            elif not isinstance(value, spec) and spec is not object:
                raise _differs(call, port, spec, value)
        return values

    return check


def versions(*values: Any) -> tuple[int, ...]:
    """Returns how often each tensor, or all in a container, was written into; 0 for what does not tell."""
    return tuple(map(_version, values))


def _version(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return 0 if value.is_inference() else value._version
    if isinstance(value, (list, tuple)):
        return sum(map(_version, value))
    return sum(map(_version, value.values())) if isinstance(value, dict) else 0


def make_unwritten(call: PlannedCall) -> Callable[..., None]:
    """Returns the function ``(versions before, inputs in order)`` that makes sure a host stage wrote into none of them.

    Stages on a device are seen to write while planning; a host stage runs only now.

    Raises:
        StageError: (the returned function) It did.
    """

    def unwritten(before: tuple[int, ...], *values: Any) -> None:
        # The sums tell whether there is anything to say, which is all that most requests pay for.
        after = versions(*values)
        if after == before:
            return
        pairs = zip(call.inputs, before, after, strict=True)
        port = next(port for (port, _), old, new in pairs if old != new)
        raise StageError(
            f"Stage {call.stage!r} (call {call.name!r}) wrote into its input {port!r}; another reader of that value, "
            f"or the caller, sees it. Work on a copy: {port}.clone().",
            stage=call.stage,
            call=call.name,
            port=port,
        )

    return unwritten


def _unpack(call: PlannedCall, result: Any) -> tuple[Any, ...]:
    """Outputs in order, from one value, a tuple, or a dict by port."""
    # From the most certain form to the least: one that planning saw, a dict by port, one value, a tuple. A stage that
    # nobody looked into may give its one output in a sequence of one, or declare a Python value that is a dict.
    names = [port for port, _ in call.outputs]
    if call.returns not in ("single", "tuple", "dict"):
        return outputs_of(call.returns, names, result)
    tensors = all(isinstance(spec, TensorSpec) for _, spec in call.outputs)
    if isinstance(result, Mapping) and (tensors or {str(key) for key in result} == set(names)):
        result = {str(key): result[key] for key in sorted(result, key=lambda key: isinstance(key, str))}
        missing = [name for name in names if name not in result]
        if missing:
            raise StageError(
                f"Stage {call.stage!r} (call {call.name!r}) declares the output {missing[0]!r} but gave a dict of "
                f"{sorted(result)}.{nearest(missing[0], result)}",
                stage=call.stage,
                call=call.name,
            )
        return tuple(result[name] for name in names)
    if len(names) == 1:
        spec = call.outputs[0][1]
        is_sequence = isinstance(result, tuple) or (isinstance(result, list) and isinstance(spec, TensorSpec))
        return tuple(result) if is_sequence and len(result) == 1 and spec is not tuple else (result,)
    if not isinstance(result, (tuple, list)) or len(result) != len(names):
        text = f"{len(result)} values" if isinstance(result, (tuple, list)) else show_tensor(result)
        raise StageError(
            f"Stage {call.stage!r} (call {call.name!r}) declares the outputs {names} but gave {text}.",
            stage=call.stage,
            call=call.name,
        )
    return tuple(result)


def _check_tensor(call: PlannedCall, port: str, spec: TensorSpec, value: Any) -> None:
    host = call.device == HOST
    if host and isinstance(value, torch.Tensor) and not is_dense(value):
        raise _differs(
            call, port, spec, value, " It is sparse, nested or without content; give a dense tensor."
        )
    shape = getattr(value, "shape", None)
    if shape is None or getattr(value, "dtype", None) != spec.dtype or len(shape) != len(spec.dims):
        raise _differs(call, port, spec, value)
    if host and (not isinstance(value, torch.Tensor) or not value.is_cpu):
        raise _differs(call, port, spec, value)


def _dim_sizes(call: PlannedCall, port: str, spec: TensorSpec, value: Any) -> Iterator[tuple[str, int]]:
    """Yields the named dims with their sizes; the others are checked."""
    for dim, size in zip(spec.dims, value.shape, strict=True):
        if not isinstance(dim, int):
            yield str(dim), size
        elif dim != size:
            raise _differs(call, port, spec, value)


def _check_born(call: PlannedCall, port: str, dim: DimPlan, size: int) -> None:
    # As a request's own sizes are checked, but it is the stage that has to change.
    fault = size_error(dim, size)
    if fault == "large":
        raise StageError(
            f"Stage {call.stage!r} decided {dim.name}={size} at '{call.name}.{port}', above its largest bucket "
            f"{dim.buckets[-1]}. {ways_out(dim, size)}",
            stage=call.stage,
            call=call.name,
            port=port,
            dim=dim.name,
            size=size,
        )
    if fault == "odd":
        why = (
            "it is exact. Let the stage fill it up to one of them."
            if dim.exact
            else "there is no pad rule. Declare the output with pad=0 or pad='repeat_first'."
        )
        raise StageError(
            f"'{call.name}.{port}' decided {dim.name}={size}, which is no bucket {dim.buckets}, and {why}",
            stage=call.stage,
            call=call.name,
            dim=dim.name,
            size=size,
        )


def _differs(call: PlannedCall, port: str, spec: PortSpec, value: Any, more: str = "") -> StageError:
    text, kind = show_tensor(value), type(value)
    if isinstance(spec, type) and kind.__name__ == spec.__name__:
        text = f"a {kind.__module__}.{kind.__name__}, which is another type; give {spec.__name__}(value)"
    return StageError(
        f"Stage {call.stage!r} declares that '{call.name}.{port}' is {show_spec(spec)}, but it gave "
        f"{text}.{more}{autocast_hint()}",
        stage=call.stage,
        call=call.name,
        port=port,
        declared=spec,
        given=value if not isinstance(value, torch.Tensor) else None,
    )

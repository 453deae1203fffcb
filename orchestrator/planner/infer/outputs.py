"""Outputs of a stage in trials, compared with those that its author declared."""

from __future__ import annotations

from orchestrator.errors import PlanError
from orchestrator.planner.infer.probe import ProbeResult
from orchestrator.specs import TensorSpec, dtype_name, plain_dims, show_spec
from orchestrator.stage import Stage

__all__ = ["check_declared", "handed_over", "port_names", "show_sizes"]


def port_names(name: str, stage: Stage, outcome: ProbeResult) -> list[str]:
    """Returns the names of the tensors a stage gave, in order.

    Values of other types are left out where the declared names say which outputs are meant.

    Raises:
        PlanError: They do not fit the declared ones, or are no tensors.
    """
    declared_names = [port.name for port in stage.outputs]
    keys = [key for key, _, _ in outcome.outputs]
    if outcome.returns == "single":
        if len(declared_names) > 1:
            raise _wrong_outputs(name, stage, f"declares the outputs {declared_names} but gives one tensor")
        return declared_names or ["output"]
    # A dict names its outputs itself; a declaration chooses among them, and is needed only beside other types.
    if outcome.returns in ("dict", "keys"):
        missing = [port for port in declared_names if port not in keys]
        if missing and missing[0] in dict(outcome.others):
            raise _mixture_error(name, stage, outcome, "a dict")
        if missing:
            raise _wrong_outputs(
                name, stage, f"declares the output {missing[0]!r} but gives a dict of {keys}"
            )
        if outcome.others and not declared_names:
            raise _mixture_error(name, stage, outcome, "a dict")
        return keys
    # A tuple has positions alone, so each tensor in it needs one declared name.
    if outcome.returns == "tuple":
        if outcome.others and not 0 < len(declared_names) == len(keys):
            raise _mixture_error(name, stage, outcome, "a tuple")
        if len(declared_names) != len(keys):
            declaration = f"declares {declared_names}" if declared_names else "declares no names"
            raise _wrong_outputs(
                name, stage, f"gives a tuple of {len(keys)} but {declaration}: outputs=('a', 'b', ...)"
            )
        return declared_names
    raise _wrong_outputs(
        name,
        stage,
        f"gives {outcome.returns}; a stage on a device gives a tensor, or a tuple or dict of tensors",
    )


def handed_over(outcome: ProbeResult) -> str:
    """Returns how a stage hands its outputs over, as a plan says it."""
    if outcome.returns == "tuple" and outcome.others:
        return " ".join(["at", *(key for key, _, _ in outcome.outputs)])
    return outcome.returns


def _mixture_error(name: str, stage: Stage, outcome: ProbeResult, kind: str) -> PlanError:
    """The error of a stage that gives other types besides tensors, with the keys and a way to choose the tensors."""
    others = ", ".join(f"{key!r} is a {type_name}" for key, type_name in outcome.others)
    keys = [key for key, _, _ in outcome.outputs]
    # The advice uses keys of the dict itself, or as many placeholder names as there are tensors.
    how = (
        f"outputs={tuple(keys)}"
        if kind == "a dict"
        else f"one name for each: outputs={tuple('abcdefgh'[: len(keys)])}"
    )
    advice = f"Say which tensors are its outputs, {how}" if keys else "It gives no tensor"
    return _wrong_outputs(
        name,
        stage,
        f"gives {kind} that holds a {outcome.others[0][1]}: {others}. {advice}; or put a function around it that "
        f"returns tensors alone",
    )


def _wrong_outputs(name: str, stage: Stage, what: str) -> PlanError:
    return PlanError(f"Stage {stage.name!r} (call {name!r}) {what}.", stage=stage.name, call=name)


def check_declared(
    name: str,
    stage: Stage,
    port: str,
    spec: TensorSpec,
    samples: list[tuple[dict[str, int], ProbeResult]],
    position: int,
) -> TensorSpec:
    """Checks an inferred output against its declaration; the declaration's names are used where they hold."""
    declaration = next((item.spec for item in stage.outputs if item.name == port), None)
    if declaration is None:
        return spec
    if (
        isinstance(declaration, TensorSpec)
        and declaration.dtype == spec.dtype
        and len(declaration.dims) == len(spec.dims)
    ):
        names = set(samples[0][0])
        dims = tuple(
            declared_dim if isinstance(declared_dim, str) and declared_dim in names else inferred_dim
            for declared_dim, inferred_dim in zip(plain_dims(declaration.dims), spec.dims, strict=True)
        )
        # A declared name that occurs at no port of the call is free: no sample can contradict it.
        wrong = [
            axis
            for axis, dim in enumerate(plain_dims(declaration.dims))
            for at, out in samples
            if (at.get(dim) if isinstance(dim, str) else dim) not in (None, out.outputs[position][1][axis])
        ]
        if not wrong:
            return TensorSpec(dims, spec.dtype, pad=declaration.pad)
    at, outcome = samples[-1]
    raise PlanError(
        f"Stage {stage.name!r} (call {name!r}) declares that '{name}.{port}' is {show_spec(declaration)}, but it gives "
        f"{list(outcome.outputs[position][1])} {dtype_name(spec.dtype)}{show_sizes(at)}.",
        stage=stage.name,
        call=name,
        port=port,
        declared=declaration,
        found=spec,
    )


def show_sizes(sizes: dict[str, int]) -> str:
    """Returns `` at batch=8``, or nothing where there are no names."""
    return f" at {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""

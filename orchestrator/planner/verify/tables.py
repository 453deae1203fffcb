"""Verify, fifth part: the tables of a plan by themselves."""

from __future__ import annotations

from orchestrator.plan.model import Plan
from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import HOST, MapStep, iter_steps
from orchestrator.planner.verify.edges import demand, same_spec
from orchestrator.specs import TensorSpec

__all__ = ["check_tables"]


def check_tables(plan: Plan) -> None:
    """Checks that names are unique and known, sizes are sizes, and the first values are the inputs.

    Raises:
        PlanError: They are not.
    """
    # Dims: chunks only where independence was promised, buckets that grow, and loose ones at no bucket.
    memory = {HOST: HOST, **{group.device: group.memory for group in plan.groups}}
    dims = {dim.name for dim in plan.dims}
    items = {step.items_dim for step in iter_steps(plan.steps, MapStep)}
    for dim in plan.dims:
        may_chunk = dim.name in items or (dim.batch and not dim.whole)
        demand(
            plan, not dim.can_chunk or may_chunk, f"dim {dim.name!r} runs in chunks, which nobody promised"
        )
        sound = dim.buckets and list(dim.buckets) == sorted(set(dim.buckets)) and dim.buckets[0] > 0
        demand(plan, bool(sound), f"dim {dim.name!r} has the buckets {dim.buckets}")
        at_bucket = [
            value.origin for value in plan.values if not value.unpadded and dim.name in _names(value)
        ]
        demand(
            plan,
            not dim.loose or not at_bucket,
            f"dim {dim.name!r} is loose, but {at_bucket[:1]} is at a bucket of it",
        )
    # Names are keys everywhere else: each once.
    for kind, names in (
        ("call", [call.name for call in plan.calls]),
        ("dim", [dim.name for dim in plan.dims]),
        ("device group", [group.device for group in plan.groups]),
        ("output", [name for name, _ in plan.outputs]),
        ("edge", [str(edge) for edge in plan.edges]),
    ):
        twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        demand(plan, not twice, f"{kind} {sorted(twice)[:1]} is there twice")
    _check_applications(plan)
    _check_host_operations(plan)
    # What refers to the tables; a request's inputs are the first values, by which the runner numbers them.
    for call in plan.calls:
        demand(plan, call.device in memory, f"call {call.name!r} runs on {call.device!r}, which is no group")
    for index, (name, spec) in enumerate(plan.inputs):
        value = _value(plan, index)
        same = (
            value.origin == name and value.memory == HOST and value.unpadded and same_spec(value.spec, spec)
        )
        demand(plan, same and not value.constant, f"value {index} is not the input {name!r}")
    for value in plan.values:
        demand(
            plan, all(name in dims for name in _names(value)), f"{value.origin!r} has a dim the plan lacks"
        )
        demand(plan, value.memory in memory.values(), f"{value.origin!r} is in {value.memory!r}, no memory")


def _check_applications(plan: Plan) -> None:
    """Stages that share weights are there, on the device of their application, and of one application only."""
    places = {call.stage: call.device for call in plan.calls}
    weights, seen = dict(plan.weights), set[str]()
    for item in plan.applications:
        alone = len(set(item.stages)) < max(2, len(item.stages))
        demand(plan, not alone, f"the application {item.name!r} has no two stages, or one twice")
        for stage in item.stages:
            demand(plan, places.get(stage) == item.device, f"stage {stage!r} is not on {item.device!r}")
            demand(plan, stage not in seen, f"stage {stage!r} is of two applications")
            seen.add(stage)
        fits = 0 <= item.weights <= weights.get(item.device, 0)
        demand(plan, fits, f"the application {item.name!r} has {item.weights} bytes of weights")


def _check_host_operations(plan: Plan) -> None:
    """What calls do on the host is said of devices with a link, once for each combination of buckets, in counts."""
    linked = {group.device for group in plan.groups if not group.host_memory}
    buckets = {dim.name: dim.buckets for dim in plan.dims}
    for call in plan.calls:
        records = call.host_operations
        demand(
            plan, not records or call.device in linked, f"call {call.name!r} crosses a link that is not there"
        )
        sizes = [dict(record.sizes) for record in records]
        own = {name for _, spec in call.inputs if isinstance(spec, TensorSpec) for name in spec.names}
        sound = all(set(at) == own and all(at[name] in buckets[name] for name in at) for at in sizes)
        demand(
            plan, sound, f"call {call.name!r} does something on the host at sizes {sizes}, which it never has"
        )
        once = all(at not in sizes[:place] for place, at in enumerate(sizes))
        demand(plan, once, f"call {call.name!r} says twice what it does on the host")
        for record in records:
            counts = (record.uploads, record.upload_bytes, record.downloads, record.download_bytes)
            whole = all(type(count) is int and count >= 0 for count in counts)
            demand(plan, bool(record.names) and whole, f"call {call.name!r} does {record} on the host")


def _names(value: PlannedValue) -> tuple[str, ...]:
    return value.spec.names if isinstance(value.spec, TensorSpec) else ()


def _value(plan: Plan, index: int) -> PlannedValue:
    demand(plan, index < len(plan.values), f"there is no value {index}")
    return plan.values[index]

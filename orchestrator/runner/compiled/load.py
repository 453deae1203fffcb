"""Loading the compiled regions of a plan: what the store lacks is built, each program in a process of its own.

A program's key is of all that goes into it but the contents of weights: the code of the stages, the region's source,
forms of what it reads, torch, the processor or GPU.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import CompileError, OrchestratorError
from orchestrator.fingerprint import digest, fingerprint
from orchestrator.plan.compute_runs import ComputeRun, runs_of, sizes_of
from orchestrator.plan.records import CompiledRegion
from orchestrator.program import Application
from orchestrator.runner.codegen.codegen import Code
from orchestrator.runner.compiled.package import BuildReport, RegionPrograms, load_program, read_report
from orchestrator.runner.compiled.region import LoadedRegion
from orchestrator.runner.compiled.samples import InputRecorder, fit_sample, make_sample
from orchestrator.runner.compiled.source import RegionModule, eager_region, region_modules, without_sizes
from orchestrator.runner.load.compile import Job, build_applications
from orchestrator.runner.load.load import Executable
from orchestrator.runner.session import Session
from orchestrator.runner.sharing import Sharing
from orchestrator.specs import TensorSpec
from orchestrator.store import ArtifactStore

__all__ = ["load_regions"]

#: Goes up when the same region becomes another program.
_VERSION = 2


@dataclass(frozen=True)
class _Region:
    """A region of the plan, ready to be built or loaded."""

    record: CompiledRegion
    run: ComputeRun
    code: Code
    module: RegionModule

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        return self.module.tensors()


@dataclass(frozen=True)
class _Target:
    """A program of a region: one combination of sizes."""

    region: _Region
    sizes: Mapping[str, int]
    key: str

    @property
    def name(self) -> str:
        """What it is called in errors and lists."""
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{self.region.record.name} at {sizes}" if sizes else self.region.record.name


def load_regions(
    executable: Executable, store: ArtifactStore, request: Callable[[], Mapping[str, Any]]
) -> Executable:
    """Returns the executable with its regions compiled, and a plan that says which of them run eagerly after all.

    Args:
        executable: The loaded plan.
        store: Where artifacts are.
        request: Returns the example request.

    Raises:
        CompileError: A region that is required cannot be compiled or is too far from eager results, a compiler was
            killed, or the store cannot be written to.
    """
    if not executable.plan.compiled:
        return executable
    targets = list(_targets(executable))
    folders, failures, notes = _build(executable, targets, store, request)
    regions: dict[str, LoadedRegion] = {}
    # One table for each region: where a program is missing its stages run, and the plan says so.
    for target in targets:
        region = target.region
        problem = failures.get(target.key) or _problem(region, read_report(folders[target.key]))
        if problem:
            if region.record.is_required:
                raise CompileError(
                    f"The compiled region {target.name!r} is required and cannot be compiled: {problem}. Leave it "
                    f"out of compile=, or say 'aot' for it, which runs it eagerly.",
                    stage=region.record.calls[0],
                )
            notes.append(f"The region {target.name!r} runs eagerly: {problem}.")
            continue
        loaded = regions.setdefault(region.record.calls[0], _empty(executable, region))
        _add_program(executable, loaded, target, folders[target.key])
    compiled = tuple(region.record for region in regions.values())
    plan = replace(
        executable.plan, compiled=compiled, notes=tuple(dict.fromkeys((*executable.plan.notes, *notes)))
    )
    return replace(executable, plan=plan, regions=regions)


def _targets(executable: Executable) -> Iterator[_Target]:
    """Yields every program that there is to be, with its key."""
    plan = executable.plan
    sharing, runs = Sharing(plan), runs_of(plan)
    machine = _machine()
    for record in plan.compiled:
        run = runs[record.name]
        code = eager_region(executable, run, sharing)
        region = _Region(
            record, run, code, RegionModule(without_sizes(code), region_modules(executable, run))
        )
        # What is alike for all sizes is described once: reading the stages takes the time.
        stages = [
            executable.stages[name] for name in dict.fromkeys(plan.call(call).stage for call in run.calls)
        ]
        adapters = [repr(step) for step in run.steps]
        forms = [
            (name, tuple(tensor.shape), tensor.stride(), str(tensor.dtype))
            for name, tensor in region.weights.items()
        ]
        about = [_VERSION, machine, record.device, fingerprint(*stages), code.source, adapters, forms]
        for sizes in sizes_of(plan, run):
            shapes = [_spec(executable, index).shape(sizes) for index in run.inputs]
            specs = [str(_spec(executable, index)) for index in run.inputs]
            yield _Target(region, sizes, digest([about, specs, shapes]))


def _spec(executable: Executable, index: int) -> TensorSpec:
    spec = executable.plan.values[index].spec
    assert isinstance(spec, TensorSpec), "no port of a run is a Python value"
    return spec


def _machine() -> list[str]:
    """What a program depends on besides its stages: torch, the processor's instructions, threads or none."""
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        )
    except (OSError, StopIteration):
        flags = platform.processor()
    kinds = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [
        torch.__version__,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        hashlib.sha256(flags.encode()).hexdigest(),
        str(torch.get_num_threads() == 1),
        *kinds,
    ]


def _build(
    executable: Executable,
    targets: Sequence[_Target],
    store: ArtifactStore,
    request: Callable[[], Mapping[str, Any]],
) -> tuple[dict[str, Path], dict[str, str], list[str]]:
    """Builds what the store lacks.

    Returns:
        Key to the folder of what was built, key to why it was not, and notes for the plan.
    """
    places = {target.key: store.find(target.key) for target in targets}
    folders = {key: place for key, place in places.items() if place is not None}
    missing = {target.key: target for target in targets if target.key not in folders}
    if not missing:
        return folders, {}, []
    regions = {target.region.record.name: target.region for target in missing.values()}
    samples = _record(executable, regions, request)
    notes = [] if samples is not None else [_MADE_UP]
    scratch = Path(tempfile.mkdtemp(prefix="stage-orchestrator-"))
    try:
        # Headers that are compiled for all cost as much as two programs, and spare half of each.
        shares_headers = len(missing) > 2
        jobs = [
            _job(executable, target, samples or {}, scratch, shares_headers) for target in missing.values()
        ]
        built, failures = _build_jobs(jobs, missing, store)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folders | built, failures, notes


_MADE_UP = (
    "Compiled regions were compared with eager ones on values that were made up: the pipeline has no example request "
    "that runs (pipeline.example_inputs)."
)


def _build_jobs(
    jobs: list[Job], targets: Mapping[str, _Target], store: ArtifactStore
) -> tuple[dict[str, Path], dict[str, str]]:
    """Builds programs; a compiler that fails fails alone, unless its region is required."""
    failures: dict[str, str] = {}
    while True:
        try:
            return build_applications(jobs, store), failures
        except CompileError as error:
            # A full disk, or a compiler that was killed, is nothing that eager stages make good.
            failure = next((job for job in jobs if job.application.name == error.objects.get("stage")), None)
            if "operation" not in error.objects or failure is None:
                raise
            if targets[failure.key].region.record.is_required:
                raise
            failures[failure.key] = error.message.rstrip(".")
            jobs.remove(failure)


def _job(
    executable: Executable,
    target: _Target,
    samples: Mapping[str, list[Tensor]],
    scratch: Path,
    shares_headers: bool,
) -> Job:
    # Only here torch's compiler is asked for: a process that finds all in the store never imports it.
    from orchestrator.runner.compiled.build import RegionBuilder

    region, plan = target.region, executable.plan
    specs = [_spec(executable, index) for index in region.run.inputs]
    recorded = samples.get(region.record.name)
    values = (
        [make_sample(spec, target.sizes, region.record.device) for spec in specs]
        if recorded is None
        else [
            fit_sample(value, spec.shape(target.sizes)) for value, spec in zip(recorded, specs, strict=True)
        ]
    )
    stages = tuple(executable.stages[plan.call(call).stage] for call in region.run.calls)
    builder = RegionBuilder(
        region.record.device,
        region.run,
        region.code,
        dict(region.module.named_children()),
        values,
        torch.get_num_threads(),
        scratch,
        shares_headers,
    )
    return Job(builder, Application(target.name, stages, ()), target.key)


def _record(
    executable: Executable, regions: Mapping[str, _Region], request: Callable[[], Mapping[str, Any]]
) -> dict[str, list[Tensor]] | None:
    """Runs the example request, and returns what each region read in its first run; None: there is no such request."""
    recordings = {name: InputRecorder(without_sizes(region.code)) for name, region in regions.items()}
    loaded = {
        region.record.calls[0]: LoadedRegion(region.record, region.run, (), recordings[name])
        for name, region in regions.items()
    }
    try:
        Session(replace(executable, regions=loaded)).run(request())
    except OrchestratorError:
        return None
    return {name: recording.values for name, recording in recordings.items() if recording.values is not None}


def _problem(region: _Region, report: BuildReport) -> str:
    """Why a program that was built is not used, a clause; empty: it is."""
    if report.refusal:
        where = (
            f"call {report.call!r}" if report.call else f"one of its calls {', '.join(region.record.calls)}"
        )
        operation = f", operation {report.operation}" if report.operation else ""
        return f"{where} cannot be compiled{operation}: {report.refusal}"
    if not report.is_within(region.record.tolerance):
        allowed = f"{region.record.tolerance:g}" if region.record.tolerance else "what suits its dtypes"
        return f"its results differ from eager ones by {report.error:.2g} of the largest, more than {allowed}"
    return ""


def _empty(executable: Executable, region: _Region) -> LoadedRegion:
    sized = tuple(index for index in region.run.inputs if _spec(executable, index).names)
    return LoadedRegion(region.record, region.run, sized, RegionPrograms())


def _add_program(executable: Executable, loaded: LoadedRegion, target: _Target, folder: Path) -> None:
    table, region = loaded.programs, target.region
    assert isinstance(table, RegionPrograms)
    shapes = tuple(_spec(executable, index).shape(target.sizes) for index in loaded.sized_inputs)
    program, tensors = load_program(folder, region.weights, region.record.device, read_report(folder).copies)
    table[shapes] = program
    table.tensors.append(tensors)

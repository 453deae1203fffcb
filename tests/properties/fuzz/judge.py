"""The verdict on a recipe: every request is right, refused in words, wrong, or a crash."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import re
import signal
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from orchestrator import Dim, Pipeline, Plan, Residency
from orchestrator.errors import CompileError, GraphError, InputError, OrchestratorError, PlanError, StageError
from orchestrator.testing import recording
from tests.planner.devices import ranked
from tests.properties.fuzz import hosts, zoo
from tests.properties.fuzz.recipe import Recipe, script
from tests.properties.fuzz.rules import CRASH, rule_of

__all__ = ["Report", "judge"]

#: Seconds for a graph, with all its requests; a compiling one may take some.
PATIENCE = 120


class Hang(BaseException):
    """A graph took too long."""


@dataclass
class Report:
    """What became of a recipe.

    Attributes:
        counts: Requests by verdict: right, refused, wrong, crashed.
        rules: Refusals by the rule that they name.
        faults: The kind of each fault, with what was seen.
        unclear: Refusals that no rule explains.
    """

    counts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str]] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)

    @property
    def signature(self) -> str:
        """What two faults of one kind have in common; empty without a fault."""
        if not self.faults:
            return f"unclear: {_plain(self.unclear[0])}" if self.unclear else ""
        kind, text = self.faults[0]
        return f"{kind}: {_plain(text)}"


def _plain(text: str) -> str:
    """A message without what differs from graph to graph."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|\[[^\]]*\]", "_", text.splitlines()[0].partition(": [")[0])[:90]


def judge(recipe: Recipe) -> Report:
    """Plans a recipe and runs its requests."""
    report = Report()
    space: dict[str, Any] = {**vars(hosts), **vars(zoo), "Dim": Dim}
    exec(compile(script(recipe), f"<recipe {recipe.seed}>", "exec"), space)
    requests = space["REQUESTS"]
    with torch.no_grad():
        expected = [_by_hand(space, request) for request in requests]
    try:
        with _patience():
            _run(recipe, report, space, requests, expected)
    except Hang:
        report.counts["crashed"] += 1
        report.faults.append(("crashed", "it hangs"))
    return report


def _by_hand(space: dict[str, Any], request: dict[str, Any]) -> Any:
    """The outputs, or what a stage raises."""
    try:
        return space["by_hand"](copy.deepcopy(request))
    except hosts.TooHighError as error:
        return error


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _run(recipe: Recipe, report: Report, space: dict[str, Any], requests: Any, expected: Any) -> None:
    try:
        pipeline: Pipeline = space["build"](ranked)
        plan = _planned(pipeline, space["PLAN"], recipe)
        if recipe.through_json:
            again = Plan.from_json(plan.to_json())
            assert again == plan, "a plan differs after JSON"
            plan = pipeline.bind(again)
        session = plan.load()
    except (CompileError, GraphError, PlanError) as error:
        _refused(report, error, len(requests), "the plan")
        return
    except Exception as error:
        _crashed(report, error)
        return
    given = [*zip(requests, expected, strict=True)]
    with session, recording() as record:
        results = [_ask(report, session, request, wanted) for request, wanted in given]
        able = [pair for pair, result in zip(given, results, strict=True) if result is not None]
        if recipe.streamed:
            _stream(report, session, able)
        raised = [request for request, wanted in given if isinstance(wanted, hosts.TooHighError)]
        if raised and not any(isinstance(value, hosts.Keeps | hosts.Haunts) for value in space.values()):
            _held(report, session, raised[0])
        if record.live:
            _fault(report, "leak", f"alive after the requests: {record.live}")
    for result, (_, wanted) in zip(results, given, strict=True):
        for difference in (
            [] if result is None else [*compare(result, wanted, "after later requests the result")][:1]
        ):
            _fault(report, "wrong", difference)


def _fault(report: Report, kind: str, text: str) -> None:
    report.counts["wrong" if kind == "wrong" else "crashed"] += 1
    report.faults.append((kind, text))


def _held(report: Report, session: Any, request: dict[str, Any]) -> None:
    """Runs a request in which a stage raises once more; nothing may hold what was given then."""
    given = copy.deepcopy(request)
    tensors = [value for value in given.values() if isinstance(value, torch.Tensor)]
    tensors += [part for value in given.values() if isinstance(value, list) for part in value]
    alive = [weakref.ref(tensor) for tensor in tensors]
    with contextlib.suppress(OrchestratorError):
        session.run(given)
    del given, tensors
    gc.collect()
    held = sum(ref() is not None for ref in alive)
    if held:
        _fault(report, "leak", f"{held} inputs are alive after a request in which a stage raised")


def _planned(pipeline: Pipeline, asked: dict[str, Any], recipe: Recipe) -> Plan:
    """The plan, with one edge between two calls forced over the host where the recipe says so."""
    plan = pipeline.plan(**asked)
    calls = {call.name for call in plan.calls}
    free = [
        str(edge)
        for edge in plan.edges
        if edge.residency is Residency.DEVICE
        and {edge.source.rpartition(".")[0], edge.target.rpartition(".")[0]} <= calls
    ]
    if recipe.forced and free:
        return pipeline.plan(**asked, residency={free[recipe.seed % len(free)]: Residency.HOST})
    return plan


def _stream(report: Report, session: Any, able: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """The requests that were right, again in a stream."""
    try:
        for given, (_, wanted) in zip(session.stream([one for one, _ in able], depth=2), able, strict=True):
            differences = [*compare(given, wanted, "the streamed result")]
            if differences:
                _fault(report, "wrong", differences[0])
    except Exception as error:
        _crashed(report, error)


def _ask(report: Report, session: Any, request: dict[str, Any], wanted: Any) -> dict[str, Any] | None:
    """Runs a request; returns its result if that is right."""
    before = copy.deepcopy(request)
    result: dict[str, Any] | None = None
    differences: list[str] = []
    try:
        result = session.run(request)
        differences += compare(result, wanted, "the result")
    except (InputError, StageError) as error:
        if _is_of(error, wanted):
            report.counts["right"] += 1
        else:
            _refused(report, error, 1, "the request")
    except Exception as error:
        _crashed(report, error)
    differences += compare(request, before, "the caller's request")
    if differences:
        _fault(report, "wrong", differences[0])
    elif result is not None:
        report.counts["right"] += 1
    return None if differences else result


def _is_of(error: BaseException | None, wanted: Any) -> bool:
    """Tells whether a stage raised as it does by hand."""
    while error is not None and not isinstance(error, hosts.TooHighError):
        error = error.__cause__
    return error is not None and isinstance(wanted, hosts.TooHighError)


def _refused(report: Report, error: OrchestratorError, requests: int, what: str) -> None:
    text = f"{type(error).__name__}: {error}"
    if CRASH.search(text):
        _crashed(report, error)
        return
    rule = rule_of(text)
    if rule is None:
        report.unclear.append(text)
    report.counts["refused"] += requests
    report.rules[f"{what}: {rule or 'unclear'}"] += 1


def _crashed(report: Report, error: BaseException) -> None:
    report.counts["crashed"] += 1
    inner = error.__cause__ or error
    last = traceback.extract_tb(inner.__traceback__)[-1:]
    where = f" at {last[0].filename.rpartition('/')[2]}:{last[0].lineno}" if last else ""
    report.faults.append(("crashed", f"{type(error).__name__}: {error}{where}"))


def compare(found: Any, wanted: Any, where: str) -> Iterator[str]:
    """Yields how two values differ: tensors in type, shape, dtype and elements, the rest part by part."""
    if isinstance(wanted, torch.Tensor):
        yield from _compare_tensors(found, wanted, where)
    elif isinstance(wanted, dict | list | tuple):
        keys, others = (
            list(value) if isinstance(value, dict) else [*range(len(value))] for value in (wanted, found)
        )
        if keys != others:
            yield f"{where} has {others}, by hand {keys}"
        else:
            for key in keys:
                yield from compare(found[key], wanted[key], f"{where}[{key!r}]")
    elif isinstance(wanted, float):
        both = isinstance(found, float) and math.isnan(found) and math.isnan(wanted)
        if not both and not math.isclose(found, wanted, rel_tol=1e-3, abs_tol=1e-3):
            yield f"{where} is {found}, by hand {wanted}"
    elif type(found) is not type(wanted) or found != wanted:
        yield f"{where} is {found!r}, by hand {wanted!r}"


def _compare_tensors(found: Any, wanted: torch.Tensor, where: str) -> Iterator[str]:
    if type(found) is not torch.Tensor:
        yield f"{where} is a {type(found).__name__}, by hand a tensor"
    elif (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        yield f"{where} is {list(found.shape)} {found.dtype}, by hand {list(wanted.shape)} {wanted.dtype}"
    elif not torch.allclose(found.double(), wanted.double(), rtol=1e-3, atol=1e-3, equal_nan=True):
        worst = (found.double() - wanted.double()).abs().nan_to_num(torch.inf).max().item()
        yield f"{where} differs by up to {worst:.3g}: {found.tolist()}, by hand {wanted.tolist()}"

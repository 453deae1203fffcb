"""Building the program of a region for one combination of sizes: exported, compiled, and compared with eager results.

It runs in a process forked for it, as the build of any artifact: what the compiler changes or leaves behind ends there.
What torch cannot export, or may not compile, is an answer as well, and is kept like one: nobody asks again. A compiler
that fails is an error.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.difference import difference
from orchestrator.errors import CompileError
from orchestrator.plan.compute_runs import ComputeRun
from orchestrator.program import Application
from orchestrator.runner.codegen.codegen import Code
from orchestrator.runner.compiled.package import (
    CONSTANTS,
    PACKAGE,
    BuildReport,
    load_program,
    write_report,
)
from orchestrator.runner.compiled.source import RegionModule, without_sizes

__all__ = ["RegionBuilder"]

_OPERATION = re.compile(r"\b(?:aten|prims|torch\.ops)[.:]+[A-Za-z_0-9.:]*[A-Za-z_0-9]")


class _Refusal(Exception):  # noqa: N818 - it is an answer, and leaves this file as one
    """The region cannot be compiled, whatever the compiler."""

    def __init__(self, reason: str, call: str = "", operation: str = "") -> None:
        super().__init__(reason)
        self.report = BuildReport(reason, call, operation)


@dataclass(frozen=True)
class RegionBuilder:
    """Builds one program.

    Attributes:
        device: The device.
        run: The run of the region.
        code: Its function.
        modules: The modules whose weights it uses.
        values: What it is compiled for and compared on, in the order of the run's inputs.
        threads: Threads that a request may use; 1: the program has none of its own.
        scratch: A folder for the compiler's own files, which all builds share.
        shares_headers: Many are built: the headers of torch are compiled once, for all.
    """

    device: str
    run: ComputeRun
    code: Code
    modules: Mapping[str, nn.Module]
    values: Sequence[Tensor]
    threads: int
    scratch: Path
    shares_headers: bool

    def warm_up(self) -> None:
        """Imports torch's compiler before processes are forked."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch._inductor.compile_fx
            import torch.export  # noqa: F401

    def build(self, application: Application, folder: Path) -> None:
        """Fills a folder.

        Raises:
            CompileError: The compiler failed.
            OSError: The disk is full.
        """
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.scratch)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = RegionModule(without_sizes(self.code), self.modules)
                report = self._compile(module, folder, application.name)
            except _Refusal as refusal:
                report = refusal.report
        write_report(folder, report)

    def _compile(self, module: RegionModule, folder: Path, name: str) -> BuildReport:
        program = self._export(module)
        self._check_random(module, program)
        weights = module.tensors()
        torch.save(
            {key: value for key, value in program.constants.items() if key not in weights}, folder / CONSTANTS
        )
        options: dict[str, Any] = {
            "aot_inductor.package_constants_in_so": False,
            "aot_inductor.precompile_headers": self.shares_headers,
            "aot_inductor.enable_line_tables": False,
            "aot_inductor.enable_frame_pointer": False,
            "compile_threads": 1,
        }
        # The number of threads is part of a program unless it asks for it as it runs.
        options |= {"cpp.threads": 1} if self.threads == 1 else {"cpp.dynamic_threads": True}
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / PACKAGE), inductor_configs=options
            )
        except Exception as error:
            raise self._compiler_error(error, name) from error
        return self._compare(module, weights, folder)

    def _export(self, module: RegionModule) -> Any:
        try:
            return torch.export.export(module, tuple(_clones(self.values)), strict=False)
        except Exception as error:
            raise _Refusal(_first_line(error), self._call_of(error), _operation_of(error)) from error

    def _check_random(self, module: RegionModule, program: Any) -> None:
        """Refuses what draws random numbers: a compiled program draws others than eager stages do."""
        states = self._random_states()
        module(*_clones(self.values))
        if all(one.equal(other) for one, other in zip(states, self._random_states(), strict=True)):
            return
        nodes = [
            node
            for part in program.graph_module.modules()
            if isinstance(part, torch.fx.GraphModule)
            for node in part.graph.nodes
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        ]
        # Attention may drop elements, and says so even where it drops none: it is named if nothing else is there.
        nodes.sort(key=lambda node: "attention" in str(node.target))
        call, operation = "", ""
        if nodes:
            call, operation = self._call_at(str(nodes[0].meta.get("stack_trace", ""))), str(nodes[0].target)
        raise _Refusal("it draws random numbers, and a program would draw others", call, operation)

    def _random_states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.startswith("cuda"):
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _compare(self, module: RegionModule, weights: Mapping[str, Tensor], folder: Path) -> BuildReport:
        """Runs the program and the stages on equal values, and compares what they give and what they update."""
        program, tensors = load_program(folder, weights, self.device)
        mine, theirs = _clones(self.values), _clones(self.values)
        versions = {name: tensor._version for name, tensor in weights.items()}
        reference = list(module(*theirs))
        changed = [name for name, tensor in weights.items() if tensor._version != versions[name]]
        if changed:
            raise _Refusal(f"it writes into {changed[0].partition('.')[2]!r}, which it keeps")
        results = program(list(mine))
        # What no stage updates is compared too: a program may write into nothing else.
        pairs = zip([*results, *mine], [*reference, *theirs], strict=True)
        outcomes = [difference(one, other, None) for one, other in pairs]
        copies = _sharing(results, [*mine, *tensors.values()]) - _sharing(
            reference, [*theirs, *weights.values()]
        )
        return BuildReport(
            error=max((error for _, error in outcomes), default=0.0),
            is_close=all(is_close for is_close, _ in outcomes),
            copies=tuple(sorted(copies)),
        )

    def _call_of(self, error: BaseException) -> str:
        """The call whose line in the region's function an error passed through."""
        cause: BaseException | None = error
        for _ in range(16):
            if cause is None:
                break
            for frame, line in traceback.walk_tb(cause.__traceback__):
                if frame.f_code is self.code.code and line in self.code.lines:
                    return self.code.lines[line].label
            cause = cause.__cause__ or cause.__context__
        return self._call_at(str(error))

    def _call_at(self, stack: str) -> str:
        """The call whose line in the region's function a printed stack names."""
        filename = re.escape(self.code.code.co_filename)
        for match in re.finditer(rf'File "{filename}", line (\d+)', stack):
            if int(match.group(1)) in self.code.lines:
                return self.code.lines[int(match.group(1))].label
        calls = self.run.calls
        return calls[0] if len(calls) == 1 else ""

    def _compiler_error(self, error: Exception, name: str) -> Exception:
        text = str(error)
        if "No space left on device" in text:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        operation, call = _operation_of(error), self._call_of(error)
        what = f" ({f'call {call!r}' if call else ''}{', ' if call and operation else ''}{operation})"
        return CompileError(
            f"The compiled region {name!r} cannot be compiled{what if call or operation else ''}: "
            f"{_first_line(error)}",
            stage=name,
            call=call,
            operation=operation,
        )


def _clones(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


def _sharing(results: Sequence[Tensor], others: Sequence[Tensor]) -> set[int]:
    """Positions of results that lie in the memory of others, or of results before them."""
    places = {tensor.untyped_storage().data_ptr() for tensor in others if tensor.numel()}
    positions = set()
    for at, result in enumerate(results):
        place = result.untyped_storage().data_ptr()
        if place in places:
            positions.add(at)
        places.add(place)
    return positions


def _first_line(error: BaseException) -> str:
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')[:300]}"


def _operation_of(error: BaseException) -> str:
    match = _OPERATION.search(str(error))
    return match.group(0) if match else ""

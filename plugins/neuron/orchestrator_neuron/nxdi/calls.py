"""Running a loaded program on ranked values."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from orchestrator.errors import StageError
from orchestrator.program import Program
from orchestrator_neuron.ranked import is_ranked, split_outputs

__all__ = ["ProgramCall"]

#: Held while a program runs: the cores of a process run one at a time, and NxD Inference's own code says nothing of
#: threads. Requests of several threads meet here; what a program gave is kept apart by the locks of their plan.
_CORE = threading.RLock()


class ProgramCall:
    """A loaded program: takes ranked values, returns a tuple with one handle for each output.

    A program whose output is read on the host only gives a host tensor, of rank 0, in that tuple.

    Args:
        program: The program.
        wrapper: The NxD Inference wrapper whose flags decide where its output goes.
        run: What is called: the wrapper's ``forward``, or that of a user's application.
        extra: What follows the inputs: the routing input, if there is one.
    """

    __slots__ = ("_count", "_extra", "_run", "_wrapper", "name")

    def __init__(
        self, program: Program, wrapper: Any, run: Callable[..., Any], extra: tuple[Any, ...] = ()
    ) -> None:
        self.name = program.name
        self._count = len(program.results)
        self._wrapper, self._run, self._extra = wrapper, run, extra

    def __call__(self, *handles: Any) -> tuple[Any, ...]:
        """Runs the program once.

        Raises:
            StageError: What came back is neither ranked nor, where it goes to the host, a tensor.
        """
        with _CORE:
            result = self._run(*handles, *self._extra)
        if self._wrapper.return_ranked_to_cpu and isinstance(result, torch.Tensor):
            return (result,)
        if is_ranked(result) and len(result[0]) == self._count:
            return split_outputs(result)
        raise StageError(
            f"The program {self.name!r} has {self._count} output(s) and keeps them on the device, [rank][output]; "
            f"its wrapper's forward gave {_describe(result)}. Return what self._forward(...) returns, as it is.",
            program=self.name,
        )

    def on_all_ranks(self, *handles: Any) -> tuple[Any, ...]:
        """Runs the program once, and leaves what it gives on all ranks, whoever reads it in requests.

        Raises:
            StageError: What came back is not ranked.
        """
        to_host = self._wrapper.return_ranked_to_cpu
        self._wrapper.return_ranked_to_cpu = False
        try:
            return self(*handles)
        finally:
            self._wrapper.return_ranked_to_cpu = to_host


def _describe(result: Any) -> str:
    if is_ranked(result):
        return f"{len(result[0])} of them"
    if isinstance(result, torch.Tensor):
        return f"a tensor {list(result.shape)} on {result.device}"
    return f"a {type(result).__name__}"

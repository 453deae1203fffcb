"""The text of one generated function: its lines, the globals they use, and what they still owe.

What is owed: a wait for each download that is not there yet, and a free for each handle whose last name dies.
:class:`CodeWriter` keeps these accounts; what the lines of a step are is said by who writes steps.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestrator.plan.steps import HOST, Step
from orchestrator.runner.copies import own_copy
from orchestrator.runner.load.load import Executable
from orchestrator.runner.sharing import Sharing

__all__ = ["CodeWriter"]


class CodeWriter(abc.ABC):
    """Lines of one function, with the globals they use.

    Args:
        executable: The loaded plan.
        sharing: Which values share memory.
        never_freed: Values that no line frees.
        progress_hook: Called after each iteration of a loop, or None.

    Attributes:
        lines: The lines so far.
        steps: The step of each line, up to the last mark.
        scope: The globals of the function.
        takes_sizes: Whether a line reads ``R`` or ``B``.
        depth: How far the next line is indented.
        iteration: The variable that counts the iterations of the loop around; empty outside of loops.
        guards: Values that are freed under a condition only, each with the ``if`` before its free.
        loop_owned: Values that a loop's account frees, not their last reader.
        pending: Values whose download may be under way, each with the device that has to be waited for.
        roots: For each second name of a value the value.
        holders: How many names of a value are alive, where it had more than one.
    """

    def __init__(
        self,
        executable: Executable,
        sharing: Sharing,
        never_freed: frozenset[int],
        progress_hook: Callable[..., None] | None,
    ) -> None:
        self.executable = executable
        self.plan = executable.plan
        self.values = executable.plan.values
        self.sharing = sharing
        self.never_freed = never_freed
        self.progress_hook = progress_hook
        # A constant has the name of its value, as what a step makes has: who reads it need not know which it is.
        self.lines: list[str] = []
        self.steps: list[Step] = []
        self.scope: dict[str, Any] = {f"v{index}": value for index, value in executable.constants.items()}
        self.scope["own_copy"] = own_copy
        self.takes_sizes = False
        self.depth = 1
        self.iteration = ""
        self.guards: dict[int, str] = {}
        self.loop_owned: set[int] = set()
        self.pending: dict[int, str] = {}
        self.roots: dict[int, int] = {}
        self.holders: dict[int, int] = {}

    @abc.abstractmethod
    def write_steps(self, steps: Sequence[Step]) -> None:
        """Writes steps in order, and the frees after each."""

    def mark(self, step: Step) -> None:
        """Notes that the lines written since the last mark are of this step."""
        self.steps += [step] * (len(self.lines) - len(self.steps))

    def line(self, text: str) -> None:
        """Writes one line."""
        self.lines.append("    " * self.depth + text)

    def name(self, kind: str, value: Any) -> str:
        """Makes a value a global of the function and returns its name."""
        name = f"{kind}{len(self.scope)}"
        self.scope[name] = value
        return name

    def tell_early(self, loop: str, values: Sequence[tuple[str, int]]) -> None:
        """Tells who watches of values that are there before a loop; as copies, since later steps may read them."""
        if values:
            texts = ", ".join(f"{name!a}: own_copy(v{index})" for name, index in values)
            self.line(f"{self.name('watch', self.progress_hook)}({loop!a}, 0, 0, {{{texts}}})")

    def alias(self, source: int, target: int) -> None:
        """Gives a value a second name; its handle is freed with the last one."""
        self.line(f"v{target} = v{source}")
        root = self.roots[target] = self.roots.get(source, source)
        self.holders[root] = self.holders.get(root, 1) + 1
        if source in self.pending:
            self.pending[target] = self.pending[source]

    def unname(self, indices: Iterable[int]) -> None:
        """Takes back second names that no step reads last: what a branch hands on as it came, or leaves unread."""
        for index in indices:
            self.holders[self.roots[index]] -= 1

    def _is_last(self, index: int) -> bool:
        """Tells whether a value that dies takes its handle with it."""
        root = self.roots.get(index, index)
        self.holders[root] = self.holders.get(root, 1) - 1
        return not self.holders[root]

    def sync(self, indices: Iterable[int]) -> None:
        """Waits for the downloads among the values that are about to be read on the host."""
        for device in sorted({self.pending[index] for index in indices if index in self.pending}):
            self._wait(device)

    def _wait(self, device: str) -> None:
        self.line(f"{self.name('wait', self.executable.backends[device].synchronize)}()")
        self.pending = {index: other for index, other in self.pending.items() if other != device}

    def final_waits(self) -> list[str]:
        """Lines that wait for all downloads still under way."""
        before = len(self.lines)
        for device in sorted(set(self.pending.values())):
            self._wait(device)
        lines, self.lines = self.lines[before:], self.lines[:before]
        return lines

    def free(self, step: Step, dead: Sequence[int] = ()) -> None:
        """Writes what frees the values that die after a step, but those that are dead already."""
        skip = {*self.never_freed, *self.loop_owned, *dead}
        indices = [index for index in step.frees if index not in skip]
        # A handle goes with its last name, and only where no reference count does it; each name goes at once, so that
        # what a frame holds is what is alive: a request that fails frees that.
        for index in indices:
            if self._is_last(index) and not self.is_refcounted(index):
                only = self.guards.get(self.roots.get(index, index), "")
                backend = self.executable.backend_of(self.values[index].memory)
                self.line(f"{only}{self.name('free', backend.free)}(v{index})")
        if indices:
            self.line(f"del {', '.join(f'v{index}' for index in indices)}")

    def is_refcounted(self, index: int) -> bool:
        """Tells whether a value's memory is freed with its last reference."""
        memory = self.values[index].memory
        return memory == HOST or self.executable.backend_of(memory).capabilities.refcounted

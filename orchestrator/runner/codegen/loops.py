"""The code of a loop: ``for`` around the lines of its body.

A carry is one local variable: the body reads it, and gives the next value its name. So a value dies when the last
reader of its iteration is done, as everywhere. What is collected goes into a list and is stacked at the end.

Where handles are freed by call, the value that a carry starts with stays the property of the code around the loop: the
first iteration leaves it alone, and a loop that did not run at all hands on a copy. Where that does not do, see
:mod:`~orchestrator.runner.codegen.carry_ownership`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from orchestrator.plan.records import PlannedValue
from orchestrator.plan.steps import HOST, AdaptStep, BranchStep, Carry, LoopStep, dead_initials
from orchestrator.runner.codegen.carry_ownership import CarryOwnership
from orchestrator.runner.codegen.writer import CodeWriter
from orchestrator.runner.load.load import Executable
from orchestrator.specs import TensorSpec, plain_dim, size_of

__all__ = ["LoopWriter"]


class LoopWriter:
    """Writes one loop.

    Args:
        writer: Where.
        step: The loop.
    """

    def __init__(self, writer: CodeWriter, step: LoopStep | BranchStep) -> None:
        self.writer = writer
        self.step = step
        number = len(writer.scope) + len(writer.lines)
        self.at, self.count = f"i{number}", f"n{number}"
        self.lists = {at: f"c{number}_{at}" for at in range(len(step.collects))}
        self.until, self.steps_dim, check_every = None, "", 1
        match step:
            case LoopStep():
                self.until, self.steps_dim, check_every = step.until, step.steps_dim, step.check_every
        self.check_every = check_every
        self.flags = f"f{number}" if self.until is not None and check_every > 1 else ""
        self.strict_carries = [carry for carry in step.carries if not writer.is_refcounted(carry.argument)]
        self.ownership = "" if self._is_fresh() else f"o{number}"

    def write(self) -> None:
        """Writes the lines."""
        writer = self.writer
        writer.sync(self.step.inputs)
        match self.step:
            case LoopStep(name=name, progress_starts=starts):
                writer.tell_early(name, starts)
        self._begin()
        writer.line(f"for {self.at} in range({self.count}):")
        # The body has an indentation, a counter of iterations, and downloads of its own: one that is waited for inside
        # may not be waited for where the loop does not run. Only what is collected leaves the body under way.
        iteration, depth, pending = writer.iteration, writer.depth, writer.pending
        writer.iteration, writer.depth, writer.pending = self.at, depth + 1, dict(pending)
        self._iteration()
        late = {index: writer.pending[index] for index in self.step.collects if index in writer.pending}
        writer.iteration, writer.depth, writer.pending = iteration, depth, {**pending, **late}
        self._end()

    def _begin(self) -> None:
        writer = self.writer
        # In the first iteration an argument is what the code around the loop owns: it is freed from the second on.
        for carry in self.step.carries:
            writer.line(f"v{carry.argument} = v{carry.initial}")
            if not writer.is_refcounted(carry.argument):
                writer.guards[carry.argument] = f"if {self.at}: "
        if self.ownership:
            backends = [
                writer.executable.backend_of(writer.values[carry.argument].memory)
                for carry in self.strict_carries
            ]
            frees = [backend.free for backend in backends]
            account = partial(CarryOwnership, frees, [_copier(backend) for backend in backends])
            writer.line(f"{self.ownership} = {writer.name('owned', account)}()")
            writer.loop_owned |= {carry.argument for carry in self.strict_carries}
        # The most iterations there are. How many ran (``k``) is told apart, where something depends on it.
        writer.line(f"{self.count} = {self._bound()}")
        if self.steps_dim:
            writer.takes_sizes = True
            writer.line(f"k{self.count} = {self.count}")
        for name in (*self.lists.values(), *([self.flags] if self.flags else [])):
            writer.line(f"{name} = []")
        # An initial value that nobody else reads dies now, not after the loop: the first iteration may free its memory.
        self.dead = [index for index in dead_initials(self.step) if writer.is_refcounted(index)]
        if self.dead:
            writer.line(f"del {', '.join(f'v{index}' for index in self.dead)}")

    def _is_fresh(self) -> bool:
        """Tells whether every carry freed by call is made in each iteration, for itself alone."""
        yields = [carry.yielded for carry in self.strict_carries]
        aliases = {index for step in self.step.body if isinstance(step, AdaptStep) for index in step.outputs}
        return len(set(yields)) == len(yields) and set(yields) <= self._body_values() - aliases

    def _body_values(self) -> set[int]:
        """Values that an iteration makes."""
        own = {index for step in self.step.body for index in step.outputs}
        match self.step:
            case LoopStep(slices=slices):
                own |= {entry.part for entry in slices}
        return own

    def _bound(self) -> str:
        """The expression for the number of iterations, or the most of them."""
        match self.step:
            case BranchStep():
                return self._decision(self.step)
            case LoopStep(slices=slices, max_steps=max_steps):
                bounds = [self._slices(slices[0].whole)] if slices else []
                bounds += [] if max_steps is None else [str(max_steps)]
                bound = bounds[0] if len(bounds) == 1 else f"min({', '.join(bounds)})"
                return bound if self.step.condition is None else f"{bound} if v{self.step.condition} else 0"

    def _decision(self, branch: BranchStep) -> str:
        """The expression for whether a branch runs: all that may be missing is there, and its condition holds."""
        plan = self.writer.plan
        optional = {index for index, (name, _) in enumerate(plan.inputs) if name in plan.optional}
        terms = [f"v{entry.whole} is not None" for entry in branch.slices if entry.whole in optional]
        terms += [] if branch.condition is None else [f"v{branch.condition}"]
        return f"1 if {' and '.join(terms)} else 0"

    def _slices(self, index: int) -> str:
        """The expression for the number of slices; a handle does not tell, its size does."""
        writer, value = self.writer, self.writer.values[index]
        if value.memory == HOST or not isinstance(value.spec, TensorSpec):
            return f"len(v{index})"
        writer.takes_sizes = True
        count = writer.name("count", partial(size_of, plain_dim(value.spec.dims[0])))
        return f"{count}({'R.sizes' if value.unpadded else 'B'})"

    def _iteration(self) -> None:
        writer, loop = self.writer, self.step
        first = len(writer.lines)
        self._cut()
        writer.mark(self.step)
        writer.write_steps(self.step.body)
        for at, index in enumerate(loop.collects):
            writer.line(f"{self.lists[at]}.append(v{index})")
        self._report()
        writer.sync(carry.yielded for carry in loop.carries)
        # All carries move at once: what is yielded for one may be the argument of another.
        arguments = ", ".join(f"v{carry.argument}" for carry in loop.carries)
        yields = ", ".join(f"v{carry.yielded}" for carry in loop.carries)
        if arguments != yields:
            writer.line(f"{arguments} = {yields}")
        if self.ownership:
            self._hand_over()
        # What is carried or collected has another holder now; a second name here would keep it alive an iteration long.
        own = {index for step in self.step.body for index in step.outputs}
        dead = sorted(
            own & ({carry.yielded for carry in loop.carries} | set(loop.collects)) - self._until_values()
        )
        if dead:
            writer.line(f"del {', '.join(f'v{index}' for index in dead)}")
        if self.until is not None:
            self._check(self.until)
        if len(writer.lines) == first:
            writer.line("pass")

    def _cut(self) -> None:
        """Writes what the iteration gets its slice of."""
        writer = self.writer
        for entry in self.step.slices:
            match self.step:
                case BranchStep():
                    writer.alias(entry.whole, entry.part)
                case LoopStep():
                    writer.line(f"v{entry.part} = {self._slice(entry.whole)}")

    def _slice(self, whole: int) -> str:
        """The expression for the slice of this iteration."""
        writer = self.writer
        memory = writer.values[whole].memory
        if memory == HOST:
            return f"v{whole}[{self.at}]"
        select = writer.name("select", writer.executable.eager_backend_of(memory).select)
        return f"{select}(v{whole}, {self.at})"

    def _hand_over(self) -> None:
        own = self._body_values()
        roots = [self.writer.roots.get(carry.yielded, carry.yielded) for carry in self.strict_carries]
        pairs = "".join(
            f"({at}, v{self.strict_carries[at].argument}), " for at, root in enumerate(roots) if root in own
        )
        carries = "".join(f"v{carry.argument}, " for carry in self.strict_carries)
        self.writer.line(f"{self.ownership}.hand_over(({pairs}), ({carries}))")

    def _report(self) -> None:
        """Tells who watches of the iteration; see :class:`~orchestrator.runner.stream.progress.ProgressHook`."""
        match self.step:
            case LoopStep() if self.writer.progress_hook is not None:
                self._report_values(self.step, self.writer.progress_hook)

    def _report_values(self, loop: LoopStep, progress_hook: Callable[..., None]) -> None:
        writer, outputs = self.writer, loop.progress_outputs
        writer.sync(index for _, index in outputs)
        # What the loop goes on with, or somebody else holds, is told as a copy: who watches may keep it.
        copies = {index for _, index in outputs if writer.sharing.needs_copy(index, loop.yields)}
        texts = {index: f"own_copy(v{index})" if index in copies else f"v{index}" for _, index in outputs}
        values = ", ".join(f"{name!a}: {texts[index]}" for name, index in outputs)
        hook = writer.name("watch", progress_hook)
        writer.line(f"{hook}({loop.name!a}, {self.at} + 1, {self.count}, {{{values}}})")
        dead = {index for _, index in outputs} - set(loop.yields)
        if dead:
            writer.line(f"del {', '.join(f'v{index}' for index in sorted(dead))}")

    def _until_values(self) -> set[int]:
        return set() if self.until is None else {self.until}

    def _check(self, until: int) -> None:
        writer, count = self.writer, self.count
        if not self.flags:
            writer.sync((until,))
            writer.line(f"if v{until}:")
            writer.line(f"    {count} = k{count} = {self.at} + 1")
            writer.line("    break")
            return
        # A look at a flag waits for its device, so flags are gathered and looked at together; the first true one says
        # how many iterations count, and what was collected after it is cut off.
        every = self.check_every
        writer.line(f"{self.flags}.append(v{until})")
        writer.line(f"if not ({self.at} + 1) % {every} or {self.at} + 1 == {count}:")
        writer.depth += 1
        writer.sync((until,))
        writer.line(f"k{count} = {writer.name('first', _first)}({self.flags}, {self.at} + 1)")
        writer.line(f"if k{count}:")
        writer.line(f"    {count} = {self.at} + 1")
        writer.line("    break")
        writer.line(f"k{count} = {count}")
        writer.line(f"{self.flags}.clear()")
        writer.depth -= 1

    def _end(self) -> None:
        writer, loop = self.writer, self.step
        # The count is a size from here on, and in the record: a request is counted by it.
        if self.steps_dim:
            writer.line(f"R.sizes[{writer.name('dim', self.steps_dim)}] = k{self.count}")
        if self.steps_dim or isinstance(loop, BranchStep):
            writer.takes_sizes = True
            name = writer.name("loop", loop.name)
            writer.line(f"R.iterations[{name}] = (*R.iterations.get({name}, ()), {self.count})")
        for carry, result in zip(loop.carries, loop.results, strict=True):
            writer.line(f"v{result} = {self._result(carry)}")
        writer.sync(loop.collects)
        for at, index in enumerate(loop.stacks):
            self._stack(at, index)
        # Names of the body die here, those that a branch gave to what entered it among them.
        names = [f"v{index}" for index in loop.arguments]
        names += [*self.lists.values(), *(name for name in (self.flags, self.ownership) if name)]
        writer.line("; ".join(f"{name} = None" for name in names) or "pass")
        match loop:
            case BranchStep(body=body, slices=slices):
                frees = {index for step in body for index in step.frees}
                writer.unname(entry.part for entry in slices if entry.part not in frees)
        writer.free(loop, self.dead)

    def _result(self, carry: Carry) -> str:
        """The expression for the last value of a carry."""
        if carry not in self.strict_carries:
            return f"v{carry.argument}"
        if self.ownership:
            return f"{self.ownership}.final({self.strict_carries.index(carry)}, v{carry.argument})"
        copy = _copier(self.writer.executable.backend_of(self.writer.values[carry.argument].memory))
        name = self.writer.name("copy", copy)
        return f"v{carry.argument} if {self.count} else {name}(v{carry.initial})"

    def _stack(self, at: int, index: int) -> None:
        writer = self.writer
        stack = writer.name("stack", make_stack(writer.executable, writer.values[index]))
        cut = f"[:k{self.count}]" if self.flags else ""
        writer.takes_sizes = True
        writer.line(
            f"v{index} = {stack}({self.lists[at]}{cut}, {'R.sizes' if writer.values[index].unpadded else 'B'})"
        )


def _copier(backend: Any) -> Callable[[Any], Any]:
    return lambda handle: backend.copy(handle, backend.device)


def _first(flags: list[Any], iterations: int) -> int:
    """Returns the iteration that ended the loop, counted from one; 0: none of these did.

    Args:
        flags: The flags of the last iterations.
        iterations: How many ran so far.
    """
    return next((iterations - len(flags) + at + 1 for at, flag in enumerate(flags) if flag), 0)


def make_stack(executable: Executable, value: PlannedValue) -> Callable[[list[Any], Mapping[str, int]], Any]:
    """Returns the function ``(parts, sizes) -> stacked``; no parts give an empty tensor."""
    spec = value.spec
    if not isinstance(spec, TensorSpec):
        return lambda parts, _: parts
    # With no part nothing tells the shape but the plan.
    rest = TensorSpec(spec.dims[1:], spec.dtype)
    if value.memory == HOST:
        return lambda parts, sizes: (
            torch.stack(parts)
            if parts
            else torch.empty((0, *rest.shape(sizes)), dtype=rest.dtype, device="cpu")
        )
    backend = executable.eager_backend_of(value.memory)
    return lambda parts, sizes: (
        backend.stack(parts) if parts else backend.empty((0, *rest.shape(sizes)), rest.dtype)
    )

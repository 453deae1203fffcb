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
from orchestrator.plan.steps import HOST, PlannedLoop, Step, spent_starts
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

    def __init__(self, writer: CodeWriter, step: Step) -> None:
        assert step.loop is not None
        self.writer = writer
        self.step = step
        self.loop: PlannedLoop = step.loop
        number = len(writer.scope) + len(writer.lines)
        self.at, self.count = f"i{number}", f"n{number}"
        self.lists = {at: f"c{number}_{at}" for at in range(len(self.loop.collects))}
        self.flags = f"f{number}" if self.loop.until is not None and self.loop.check_every > 1 else ""
        self.strict = [carry for carry in self.loop.carries if not writer.counts(carry[1])]
        self.owned = "" if self._is_made_anew() else f"o{number}"

    def write(self) -> None:
        """Writes the lines."""
        writer = self.writer
        writer.sync(self.step.inputs)
        self._begin()
        writer.line(f"for {self.at} in range({self.count}):")
        around = writer.turn, writer.depth, writer.pending
        writer.turn, writer.depth, writer.pending = self.at, writer.depth + 1, dict(writer.pending)
        self._iteration()
        late = {index: writer.pending[index] for index in self.loop.collects if index in writer.pending}
        writer.turn, writer.depth, writer.pending = around[0], around[1], {**around[2], **late}
        self._end()

    def _begin(self) -> None:
        writer, loop = self.writer, self.loop
        for start, head, _ in loop.carries:
            writer.line(f"v{head} = v{start}")
            if not writer.counts(head):
                writer.guards[head] = f"if {self.at}: "
        if self.owned:
            backends = [
                writer.executable.backend_of(writer.values[head].memory) for _, head, _ in self.strict
            ]
            frees = [backend.free for backend in backends]
            account = partial(CarryOwnership, frees, [_copier(backend) for backend in backends])
            writer.line(f"{self.owned} = {writer.name('owned', account)}()")
            writer.kept |= {head for _, head, _ in self.strict}
        writer.line(f"{self.count} = {self._bound()}")
        if loop.dim:
            writer.sized = True
            writer.line(f"k{self.count} = {self.count}")
        for name in (*self.lists.values(), *([self.flags] if self.flags else [])):
            writer.line(f"{name} = []")
        self.early = [index for index in spent_starts(self.step) if writer.counts(index)]
        if self.early:
            writer.line(f"del {', '.join(f'v{index}' for index in self.early)}")

    def _is_made_anew(self) -> bool:
        """Tells whether every carry freed by call is made in each iteration, for itself alone."""
        given = [following for _, _, following in self.strict]
        named = {index for step in self.step.body if step.op == "adapt" for index in step.outputs}
        return len(set(given)) == len(given) and set(given) <= self._made() - named

    def _made(self) -> set[int]:
        """Values that an iteration makes."""
        parts = {part for _, part in self.loop.slices if self.loop.kind == "loop"}
        return parts | {index for step in self.step.body for index in step.outputs}

    def _bound(self) -> str:
        """The expression for the number of iterations, or the most of them."""
        loop, writer = self.loop, self.writer
        if loop.kind == "when":
            maybe = {name: index for index, (name, _) in enumerate(writer.plan.inputs)}
            missing = {maybe[name] for name in writer.plan.optional}
            terms = [f"v{whole} is not None" for whole, _ in loop.slices if whole in missing]
            terms += [] if loop.condition is None else [f"v{loop.condition}"]
            return f"1 if {' and '.join(terms)} else 0"
        bounds = [self._slices(loop.slices[0][0])] if loop.slices else []
        bounds += [] if loop.max_steps is None else [str(loop.max_steps)]
        return bounds[0] if len(bounds) == 1 else f"min({', '.join(bounds)})"

    def _slices(self, index: int) -> str:
        """The expression for the number of slices; a handle does not tell, its size does."""
        writer, value = self.writer, self.writer.values[index]
        if value.memory == HOST or not isinstance(value.spec, TensorSpec):
            return f"len(v{index})"
        writer.sized = True
        count = writer.name("count", partial(size_of, plain_dim(value.spec.dims[0])))
        return f"{count}({'R.sizes' if value.real else 'B'})"

    def _iteration(self) -> None:
        writer, loop = self.writer, self.loop
        first = len(writer.lines)
        self._cut()
        writer.mark(self.step)
        for step in self.step.body:
            writer.step(step)
        for at, index in enumerate(loop.collects):
            writer.line(f"{self.lists[at]}.append(v{index})")
        self._tell()
        writer.sync(following for _, _, following in loop.carries)
        heads = ", ".join(f"v{head}" for _, head, _ in loop.carries)
        moved = ", ".join(f"v{following}" for _, _, following in loop.carries)
        if heads != moved:
            writer.line(f"{heads} = {moved}")
        if self.owned:
            self._hand_over()
        own = {index for step in self.step.body for index in step.outputs}
        spent = sorted(
            own & ({following for *_, following in loop.carries} | set(loop.collects)) - self._until()
        )
        if spent:
            writer.line(f"del {', '.join(f'v{index}' for index in spent)}")
        if loop.until is not None:
            self._check(loop.until)
        if len(writer.lines) == first:
            writer.line("pass")

    def _cut(self) -> None:
        """Writes what the iteration gets its slice of."""
        writer, loop = self.writer, self.loop
        for whole, part in loop.slices:
            if loop.kind == "when":
                writer.alias(whole, part)
                continue
            memory = writer.values[whole].memory
            cut = f"v{whole}[{self.at}]"
            if memory != HOST:
                select = writer.name("select", writer.executable.eager_backend_of(memory).select)
                cut = f"{select}(v{whole}, {self.at})"
            writer.line(f"v{part} = {cut}")

    def _hand_over(self) -> None:
        made = self._made()
        roots = [self.writer.roots.get(following, following) for _, _, following in self.strict]
        pairs = "".join(f"({at}, v{self.strict[at][1]}), " for at, root in enumerate(roots) if root in made)
        carried = "".join(f"v{head}, " for _, head, _ in self.strict)
        self.writer.line(f"{self.owned}.hand_over(({pairs}), ({carried}))")

    def _tell(self) -> None:
        """Tells who watches of the iteration; see :class:`~orchestrator.runner.stream.progress.ProgressHook`."""
        writer, loop = self.writer, self.loop
        if writer.watch is None or loop.kind != "loop":
            return
        writer.sync(index for _, index in loop.watched)
        held = [index for _, index in loop.watched if writer.sharing.needs_copy(index, loop.ends)]
        told = ", ".join(
            f"{name!a}: {f'own(v{index})' if index in held else f'v{index}'}" for name, index in loop.watched
        )
        watch = writer.name("watch", writer.watch)
        writer.line(f"{watch}({loop.name!a}, {self.at} + 1, {self.count}, {{{told}}})")
        spent = {index for _, index in loop.watched} - set(loop.ends)
        if spent:
            writer.line(f"del {', '.join(f'v{index}' for index in sorted(spent))}")

    def _until(self) -> set[int]:
        return set() if self.loop.until is None else {self.loop.until}

    def _check(self, until: int) -> None:
        writer, count = self.writer, self.count
        if not self.flags:
            writer.sync((until,))
            writer.line(f"if v{until}:")
            writer.line(f"    {count} = k{count} = {self.at} + 1")
            writer.line("    break")
            return
        every = self.loop.check_every
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
        writer, loop = self.writer, self.loop
        if loop.dim:
            writer.line(f"R.sizes[{writer.name('dim', loop.dim)}] = k{self.count}")
        if loop.dim or loop.kind == "when":
            writer.sized = True
            name = writer.name("loop", loop.name)
            writer.line(f"R.iterations[{name}] = (*R.iterations.get({name}, ()), {self.count})")
        for carry, final in zip(loop.carries, self.step.outputs, strict=False):
            writer.line(f"v{final} = {self._final(carry)}")
        writer.sync(loop.collects)
        for at, index in enumerate(self.step.outputs[len(loop.carries) :]):
            self._stack(at, index)
        gone = [f"v{index}" for index in loop.heads]
        gone += [*self.lists.values(), *(name for name in (self.flags, self.owned) if name)]
        writer.line("; ".join(f"{name} = None" for name in gone) or "pass")
        if loop.kind == "when":
            freed = {index for step in self.step.body for index in step.frees}
            writer.unname(part for _, part in loop.slices if part not in freed)
        writer.free(self.step, self.early)

    def _final(self, carry: tuple[int, int, int]) -> str:
        """The expression for the last value of a carry."""
        start, head, _ = carry
        if carry not in self.strict:
            return f"v{head}"
        if self.owned:
            return f"{self.owned}.final({self.strict.index(carry)}, v{head})"
        copy = _copier(self.writer.executable.backend_of(self.writer.values[head].memory))
        return f"v{head} if {self.count} else {self.writer.name('copy', copy)}(v{start})"

    def _stack(self, at: int, index: int) -> None:
        writer = self.writer
        stack = writer.name("stack", make_stack(writer.executable, writer.values[index]))
        kept = f"[:k{self.count}]" if self.flags else ""
        writer.sized = True
        writer.line(
            f"v{index} = {stack}({self.lists[at]}{kept}, {'R.sizes' if writer.values[index].real else 'B'})"
        )


def _copier(backend: Any) -> Callable[[Any], Any]:
    return lambda handle: backend.copy(handle, backend.device)


def _first(flags: list[Any], done: int) -> int:
    """Returns the iteration that ended the loop, counted from one; 0: none of these did.

    Args:
        flags: What the last iterations gave.
        done: Iterations so far.
    """
    return next((done - len(flags) + at + 1 for at, flag in enumerate(flags) if flag), 0)


def make_stack(executable: Executable, value: PlannedValue) -> Callable[[list[Any], Mapping[str, int]], Any]:
    """Returns the function ``(parts, sizes) -> stacked``; no parts give an empty tensor."""
    spec = value.spec
    if not isinstance(spec, TensorSpec):
        return lambda parts, _: parts
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

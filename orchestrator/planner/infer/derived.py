"""How sizes follow from names: from the sizes that a stage gives in trials, back to dims.

A stage is run at every combination of buckets and at trial sizes (:mod:`orchestrator.planner.infer.trials`). A dim that
never changes is an int; one that always equals a name is that name; any other is
:class:`~orchestrator.specs.Derived`, a table of the trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from orchestrator.specs import Derived

__all__ = ["Sample", "symbol_for"]

#: Sizes of names, and the size of the dim at these.
Sample = tuple[Mapping[str, int], int]


def symbol_for(samples: Sequence[Sample], names: Sequence[str]) -> int | str | Derived:
    """Returns the dim that explains the samples.

    Args:
        samples: The trials; at least one.
        names: The names that may explain it, most likely first.
    """
    sizes = {size for _, size in samples}
    if len(sizes) == 1:
        same = [name for name in names if all(at[name] == size for at, size in samples)]
        variables = {name for name in names if len({at[name] for at, _ in samples}) > 1}
        return next((name for name in same if name in variables), next(iter(sizes)))
    for name in names:
        if all(at[name] == size for at, size in samples):
            return name
    causes = tuple(name for name in names if _matters(name, samples, names))
    if not _decide(causes, samples):
        causes = tuple(names)  # no two samples differ in one name alone where it matters
    table = {tuple(at[name] for name in causes): size for at, size in samples}
    return Derived(_text(causes, table), causes, tuple(table.items()))


def _decide(names: Sequence[str], samples: Sequence[Sample]) -> bool:
    """Tells whether the size was the same wherever the sizes of these names were."""
    sizes: dict[tuple[int, ...], int] = {}
    return all(sizes.setdefault(tuple(at[name] for name in names), size) == size for at, size in samples)


def _matters(name: str, samples: Sequence[Sample], names: Sequence[str]) -> bool:
    """Tells whether the size changes between two samples that differ in this name alone."""
    sizes_by_rest: dict[tuple[int, ...], set[int]] = {}
    for at, size in samples:
        sizes_by_rest.setdefault(tuple(at[other] for other in names if other != name), set()).add(size)
    return any(len(sizes) > 1 for sizes in sizes_by_rest.values())


def _text(names: tuple[str, ...], table: Mapping[tuple[int, ...], int]) -> str:
    if len(names) == 1:
        return _single(names[0], [(at[0], size) for at, size in table.items()])
    factor = {Fraction(size, _product(at)) for at, size in table.items() if _product(at)}
    if len(factor) == 1 and (only := factor.pop()).denominator == 1:
        return "*".join([*([str(only)] if only != 1 else []), *names])
    return f"f({', '.join(names)})"


def _product(at: tuple[int, ...]) -> int:
    result = 1
    for size in at:
        result *= size
    return result


def _single(name: str, points: list[tuple[int, int]]) -> str:
    """Writes a size of one name as ``a*name+b`` or ``(name+b)//k``, if one of them explains every point."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = Fraction(y1 - y0, x1 - x0)
    if slope.denominator == 1:
        offset = y0 - slope.numerator * x0
        if all(slope.numerator * x + offset == y for x, y in points):
            return f"{'' if slope == 1 else f'{slope}*'}{name}{f'{offset:+d}' if offset else ''}"
    for divisor in range(2, 65):
        for offset in range(-divisor, divisor + 1):
            if all((x + offset) // divisor == y for x, y in points):
                return f"{f'({name}{offset:+d})' if offset else name}//{divisor}"
    return f"f({name})"

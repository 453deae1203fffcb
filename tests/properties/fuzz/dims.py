"""Named dims of random pipelines, and what may be done along them without breaking a promise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

__all__ = [
    "BUCKETS",
    "NASTY",
    "Derived",
    "NamedDim",
    "Names",
    "Size",
    "Value",
    "code_of",
    "names_of",
    "spec_code",
    "text_of",
]

BUCKETS = ((2,), (4,), (2, 4), (1, 3, 5), (4, 8), (3, 6), (2, 4, 8))

#: Names that code, dicts, regular expressions and people stumble over.
NASTY = (
    *("KeyError", "TypeError", "Exception", "BaseException", "self", "run", "inputs", "None", "class", "def"),
    *("print", "len", "dict", "torch", "type", "real", "bucket", "start", "steps", "time", "_", "__class__"),
    *("v0", "x0", "R", "B", "state", "session", "output", "batch", "0", "1a", "a b", "a'b", 'a"b', "a\\b"),
    *(
        "{x}",
        "%s",
        "a,b",
        "a:b",
        "a=b",
        "(x)",
        "$x",
        "-",
        "µ",
        "\ufb01n",
        "e\u0301",
        "名前",
        "🙂",
        "steps of loop",
    ),
    *(
        "requests",
        "uploads",
        "keep_on_device",
        "n of m",
        "rank",
        "device",
        "host",
        "name",
        "tensor",
        "lambda",
    ),
)


@dataclass(frozen=True)
class Derived:
    """A size that follows from named ones.

    Attributes:
        text: What tells it from others.
        dims: The names it follows from.
        prefix: Whether what belongs to a smaller request is the first part of it, so that padding lies behind.
    """

    text: str
    dims: tuple[NamedDim, ...]
    prefix: bool = True


@dataclass(frozen=True)
class NamedDim:
    """A named dim.

    Attributes:
        name: Its name.
        buckets: Its compiled sizes; none: any size.
        padded: Inputs with it have a pad rule, so that nothing may mix along it.
        strict: No input has a pad rule, and yet nothing mixes along it: a port may bring one.
        batch: It is promised to be a batch.
        bare: It is declared by its name alone; ``plan(sizes=...)`` brings the buckets.
        items: It counts the items of a map, which are a batch whatever is promised.
        exact: It is declared so: pad rules beside it do not speak of it.
    """

    name: str
    buckets: tuple[int, ...]
    padded: bool = False
    strict: bool = False
    batch: bool = False
    bare: bool = False
    items: bool = False
    exact: bool = False

    @property
    def mixes(self) -> bool:
        """Tells whether stages may mix along it."""
        return not (self.padded or self.strict or self.batch or self.items)

    @property
    def follows(self) -> bool:
        """Tells whether what is before may change what comes after, along it."""
        return not (self.batch or self.items)

    @property
    def code(self) -> str:
        """The dim as code of a spec."""
        if self.bare:
            return repr(self.name)
        promises = "".join(f", {name}=True" for name in ("batch", "exact") if getattr(self, name))
        if not self.buckets:
            return f"Dim.dynamic({self.name!r}{promises})"
        return f"Dim({self.name!r}, {self.buckets!r}{promises})"


Size = int | NamedDim | Derived


@dataclass(frozen=True)
class Value:
    """A variable with its form; Python values have no dims.

    Attributes:
        kind: A dtype, or a Python type, by name.
        raw: An input of the pipeline as it came.
        ones: It holds ones, padded with zeros.
        last: Only an output may read it.
    """

    var: str
    dims: tuple[Size, ...]
    kind: str = "float32"
    raw: bool = False
    ones: bool = False
    last: bool = False

    @property
    def tensor(self) -> bool:
        return self.kind not in ("int", "bool", "list", "object", "str")

    @property
    def form(self) -> tuple[Any, ...]:
        return self.dims, self.kind

    @property
    def plain(self) -> bool:
        """Tells whether a spec can say what it is."""
        return not any(isinstance(size, Derived) for size in self.dims)

    @property
    def names(self) -> tuple[NamedDim, ...]:
        """Named dims that it has or follows from."""
        found: dict[NamedDim, None] = {}
        for size in self.dims:
            found |= dict.fromkeys(
                size.dims if isinstance(size, Derived) else (size,) if isinstance(size, NamedDim) else ()
            )
        return tuple(found)


def spec_code(dims: tuple[Size, ...], kind: str, **more: Any) -> str:
    """Returns a ``TensorSpec``, or a Python type, as code."""
    if kind in ("int", "bool", "list", "object", "str") and not dims:
        return kind
    shown = [size.code if isinstance(size, NamedDim) else repr(size) for size in dims]
    rest = "".join(f", {name}={code_of(value)}" for name, value in more.items() if value is not None)
    dtype = kind.replace("mask", "bool")
    return f"TensorSpec(({', '.join(shown)}{',' if len(shown) == 1 else ''}), torch.{dtype}{rest})"


def code_of(value: Any) -> str:
    return f"float({str(value)!r})" if isinstance(value, float) and math.isinf(value) else repr(value)


class Names:
    """Gives names: plain ones, or now and then one that is nasty, each once for its kind."""

    def __init__(self, rng: Random, nasty: float) -> None:
        self._rng, self._nasty = rng, nasty
        self._taken: dict[str, set[str]] = {}
        self._count = 0

    def __call__(self, kind: str, plain: str) -> str:
        taken = self._taken.setdefault(kind, set())
        free = [name for name in NASTY if name not in taken]
        if free and self._rng.random() < self._nasty:
            name = self._rng.choice(free)
        else:
            self._count += 1
            name = f"{plain}{self._count}"
        taken.add(name)
        return name


def names_of(size: Size) -> tuple[NamedDim, ...]:
    return size.dims if isinstance(size, Derived) else (size,) if isinstance(size, NamedDim) else ()


def text_of(size: Size) -> str:
    return size.text if isinstance(size, Derived) else size.name if isinstance(size, NamedDim) else str(size)

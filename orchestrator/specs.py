"""What a value looks like before it exists: dtype, dims, and what may be done to it on the way.

A *dim* of a tensor is one of

- an int: always that size;
- a name (``"batch"``) or a :class:`Dim`: a size that a request decides, compiled for a set of *buckets*;
- a :class:`Derived` size (``2*batch``): what the planner found for a value inside the graph. Users never
  write one.

Sizes of names come in two flavours: the *real* size of a request and the *bucket* it runs in. A mapping
from names to ints, here called ``sizes``, turns dims into a shape.
"""

from __future__ import annotations

import builtins
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from orchestrator.errors import GraphError

__all__ = [
    "Derived",
    "Dim",
    "Pad",
    "PortSpec",
    "StepsDim",
    "TensorSpec",
    "dim_names",
    "dtype_name",
    "is_dense",
    "show_spec",
    "size_of",
    "type_name",
]

#: What fills the space when a value is smaller than its port: a number, or the value's own first slice.
Pad: TypeAlias = int | float | str | None

_FORBIDDEN = (".", "/", "#", "[", "->")


#: Control characters, and halves of surrogate pairs, which no file and no JSON can hold.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def check_name(kind: str, name: object) -> str:
    """Returns ``name`` if it may name a thing of this kind.

    Any script will do, in any Unicode form; two forms of one word are two names.

    Raises:
        GraphError: It is no string, empty, has outer blanks, or holds a mark of edges and calls or a control character.
    """
    # What no name may be, then what no file can hold, then what edges and calls are written with.
    if not isinstance(name, str) or not name or name != name.strip():
        raise GraphError(
            f"A {kind} is named by a non-empty string without outer blanks, not {name!r}.", name=name
        )
    if unwritable := _UNWRITABLE.search(name):
        raise GraphError(
            f"The {kind} name {name!r} holds {unwritable[0]!r}, a control character or half of a surrogate pair, which "
            f"plans and files cannot hold; leave it out.",
            name=name,
        )
    for mark in _FORBIDDEN:
        if mark in name:
            raise GraphError(
                f"The {kind} name {name!r} holds {mark!r}, which edges and calls use; leave it out.",
                name=name,
            )
    return name


class StepsDim(str):
    """The dim that is the number of iterations of a loop that decides it: equal to no name that a user can write."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepsDim) and str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((StepsDim, str.__hash__(self)))


@dataclass(frozen=True)
class Dim:
    """A named dim with its compiled sizes.

    Args:
        name: The name; one name has one set of buckets in the whole graph.
        buckets: Sizes it is compiled for, in elements; kept sorted.
        any: True for a dim of any size, which :meth:`dynamic` makes.
        batch: The author's promise that items along it are computed independently of one another: a request above
            the largest bucket may be cut into chunks, and requests of several users may be joined. One declaration
            of the name gives the promise for the whole graph; ``pipeline.check`` tests it.
        exact: Only compiled sizes run: nothing is padded along it, whatever rule a port has for its other dims. One
            declaration of the name holds for the whole graph.

    Raises:
        GraphError: For a size that is no positive int, buckets together with ``any``, or a ``batch`` or ``exact``
            that is no bool.
    """

    name: str
    buckets: tuple[int, ...] = ()
    any: bool = False
    batch: bool = False
    exact: bool = False

    def __init__(
        self,
        name: str,
        buckets: Iterable[int] | int = (),
        any: bool = False,
        *,
        batch: bool = False,
        exact: bool = False,
    ) -> None:
        # Everything is checked here, since the class is frozen: what exists can be planned with.
        check_name("dim", name)
        sizes = (buckets,) if isinstance(buckets, int) else tuple(buckets)
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise GraphError(
                    f"A bucket of dim {name!r} is a positive int, not {size!r}.", dim=name, size=size
                )
        if any and sizes:
            raise GraphError(
                f"Dim {name!r} has buckets and any=True; give one of the two: Dim.dynamic({name!r}) has none.",
                dim=name,
            )
        for option, value in (("batch", batch), ("exact", exact)):
            if not isinstance(value, bool):
                raise GraphError(f"{option} of dim {name!r} is True or False, not {value!r}.", dim=name)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "buckets", tuple(sorted(set(sizes))))
        object.__setattr__(self, "any", any)
        object.__setattr__(self, "batch", batch)
        object.__setattr__(self, "exact", exact)

    @classmethod
    def dynamic(cls, name: str, *, batch: bool = False, exact: bool = False) -> Dim:
        """Makes a dim of any size: it has no buckets, and is legal only where no backend with static shapes sees it.

        Args:
            name: The name; all declarations of it in a graph are dynamic.
            batch: As for any other dim.
            exact: As for any other dim.
        """
        return cls(name, any=True, batch=batch, exact=exact)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Derived:
    """A size the planner found to follow from named sizes, proven at each compiled combination.

    Attributes:
        text: For a person, e.g. ``2*batch``.
        names: The names it follows from.
        table: Sizes of ``names`` (in order) to the size of this dim, one row for each combination.
    """

    text: str
    names: tuple[str, ...]
    table: tuple[tuple[tuple[int, ...], int], ...] = field(repr=False)

    def __str__(self) -> str:
        return self.text

    def is_proven(self, sizes: Mapping[str, int]) -> bool:
        """Tells whether the size was proven at these sizes of names."""
        at = tuple(sizes[name] for name in self.names)
        return any(row == at for row, _ in self.table)

    def near(self, sizes: Mapping[str, int]) -> int:
        """Returns the size, estimated where it is not proven: at sizes of dims of any size.

        A straight line through two proven sizes of one name; in proportion to the product of several names.
        """
        if self.is_proven(sizes):
            return size_of(self, sizes)
        at = tuple(sizes[name] for name in self.names)
        if len(self.names) == 1 and len(self.table) > 1:
            ((x0,), y0), ((x1,), y1) = self.table[0], self.table[-1]
            return max(0, y0 + (at[0] - x0) * (y1 - y0) // (x1 - x0))
        row, size = self.table[-1]
        return size * math.prod(at) // max(1, math.prod(row))


AnyDim: TypeAlias = int | str | Dim | Derived


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and dims of a tensor, and what an adapter may do to a value that differs.

    Args:
        dims: Ints, names and :class:`Dim` objects, outermost first.
        dtype: The element type.
        pad: What fills the space when a value is smaller than the port: a number, or ``"repeat_first"``
            (the value's first slice along that dim, again and again). It is the author's promise that
            padding does not change the elements that are kept. ``None``: padding here is an error.
        allow_slice: A larger value may be cut to this size, from its end.
        allow_cast: A value of another dtype may be converted.

    Raises:
        GraphError: For a dim, dtype or pad rule that is none.
    """

    dims: tuple[AnyDim, ...]
    dtype: torch.dtype = torch.float32
    pad: Pad = field(default=None, kw_only=True)
    allow_slice: bool = field(default=False, kw_only=True)
    allow_cast: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.dims, (int, str, Dim)):
            raise GraphError(f"TensorSpec takes a tuple of dims; write ({self.dims!r},).", dims=self.dims)
        object.__setattr__(self, "dims", tuple(_checked_dim(dim) for dim in self.dims))
        if not isinstance(self.dtype, torch.dtype):
            raise GraphError(
                f"The dtype of a TensorSpec is a torch.dtype, not {self.dtype!r}.", dtype=self.dtype
            )
        number = isinstance(self.pad, (int, float)) and not isinstance(self.pad, bool)
        if number and self.pad != self.pad:
            object.__setattr__(self, "pad", math.nan)  # the one NaN, so that equal specs compare equal
        if self.pad is not None and self.pad != "repeat_first" and not number:
            raise GraphError(f"pad is a number, 'repeat_first' or None, not {self.pad!r}.", pad=self.pad)
        if number and not holds(self.dtype, self.pad):
            raise GraphError(
                f"pad={self.pad!r} is no value of {dtype_name(self.dtype)}.", pad=self.pad, dtype=self.dtype
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names its dims depend on, in order of appearance."""
        return tuple(dict.fromkeys(name for dim in self.dims for name in dim_names(dim)))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Returns the shape at these sizes of names.

        Raises:
            KeyError: A name has no size, or a derived size was not proven there.
        """
        return tuple(size_of(dim, sizes) for dim in self.dims)

    def numel(self, sizes: Mapping[str, int]) -> int:
        """Returns the number of elements at these sizes of names; estimated where a derived size is unproven."""
        count = 1
        for dim in self.dims:
            count *= dim.near(sizes) if isinstance(dim, Derived) else size_of(dim, sizes)
        return count

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        """Returns the bytes it takes at these sizes of names."""
        return self.numel(sizes) * self.dtype.itemsize

    def same_form(self, other: TensorSpec) -> bool:
        """Tells whether two specs agree in dims (a name equals the Dim of that name) and dtype."""
        return self.dtype == other.dtype and plain_dims(self.dims) == plain_dims(other.dims)

    def __str__(self) -> str:
        return show_spec(self)


#: What a port carries: a tensor, or (between host stages) a Python type.
PortSpec: TypeAlias = TensorSpec | type


def holds(dtype: torch.dtype, number: object) -> bool:
    """Tells whether a dtype has a number: in range, whole for integers, 0 or 1 for bool."""
    if dtype.is_floating_point or dtype.is_complex:
        finite = isinstance(number, (int, float)) and math.isfinite(number)
        return not finite or abs(number) <= torch.finfo(dtype).max  # type: ignore[arg-type]
    if not isinstance(number, int):
        return isinstance(number, float) and number.is_integer() and holds(dtype, int(number))
    if dtype is torch.bool:
        return number in (0, 1)
    return torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max


def _checked_dim(dim: object) -> AnyDim:
    if isinstance(dim, (Dim, Derived)):
        return dim
    if isinstance(dim, StepsDim):
        return dim
    if isinstance(dim, str):
        return check_name("dim", dim)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise GraphError(f"A dim is an int, a name or a Dim, not {dim!r}.", dim=dim)
    if dim < 0:
        raise GraphError(f"A dim cannot be {dim}; give a name or a Dim to a size that varies.", dim=dim)
    return dim


def plain_dim(dim: AnyDim) -> int | str | Derived:
    """Returns the dim with a :class:`Dim` replaced by its name."""
    return dim.name if isinstance(dim, Dim) else dim


def plain_dims(dims: tuple[AnyDim, ...]) -> tuple[int | str | Derived, ...]:
    """Returns the dims with every :class:`Dim` replaced by its name."""
    return tuple(plain_dim(dim) for dim in dims)


def dim_names(dim: AnyDim) -> tuple[str, ...]:
    """Returns the names a dim depends on."""
    if isinstance(dim, int):
        return ()
    if isinstance(dim, Derived):
        return dim.names
    return (dim if isinstance(dim, str) else dim.name,)


def size_of(dim: AnyDim, sizes: Mapping[str, int]) -> int:
    """Returns the size of one dim at these sizes of names.

    Raises:
        KeyError: A name has no size, or a derived size was not proven at these sizes.
    """
    if isinstance(dim, int):
        return dim
    if isinstance(dim, Derived):
        at = tuple(sizes[name] for name in dim.names)
        for row, size in dim.table:
            if row == at:
                return size
        raise KeyError(f"{dim.text} at {dict(zip(dim.names, at, strict=True))}")
    return sizes[dim if isinstance(dim, str) else dim.name]


def combinations(names: Iterable[str], buckets: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, int]]:
    """Yields every combination of the names' compiled sizes, the largest ones last."""
    order = list(names)
    for sizes in itertools.product(*(buckets[name] for name in order)):
        yield dict(zip(order, sizes, strict=True))


def dtype_name(dtype: torch.dtype) -> str:
    """Returns ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def show_spec(spec: PortSpec) -> str:
    """Returns ``[batch, 3, 224, 224] float32``, or the name of a Python type."""
    if isinstance(spec, TensorSpec):
        return f"[{', '.join(str(dim) for dim in spec.dims)}] {dtype_name(spec.dtype)}"
    return type_name(spec)


def show_tensor(value: object) -> str:
    """Returns shape, dtype and device of a tensor, or the type of anything else, for a message."""
    if not isinstance(value, torch.Tensor):
        return f"a {type_name(type(value))}"
    kind = "" if type(value) in _TENSORS else f" ({type_name(type(value))})"
    try:
        what = "nested" if value.is_nested else str(list(value.shape))
        layout = "" if value.layout is torch.strided else f" {str(value.layout).removeprefix('torch.')}"
        return f"{what} {dtype_name(value.dtype)}{layout} on {value.device}{kind}"
    except Exception:  # a subclass may refuse to tell
        return f"a {type_name(type(value))}"


def is_dense(value: torch.Tensor) -> bool:
    """Tells whether a tensor has content of its own that lies element by element: not sparse, nested or fake."""
    strided = not value.is_nested and value.layout is torch.strided
    return strided and (type(value) in _TENSORS or not hasattr(value, "fake_mode"))


#: Classes of tensors that are not worth a word.
_TENSORS = (torch.Tensor, torch.nn.Parameter)


def type_name(kind: type) -> str:
    """Returns what a type is called: with its module where it is none of Python's, so that two of one name differ."""
    own = getattr(builtins, kind.__name__, None)
    return f"{kind.__module__}.{kind.__qualname__}" if own is not None and own is not kind else kind.__name__

"""A mode of fake tensors that remembers what each operation gives, so that trials of one model cost little.

Torch's own mode remembers results too, but it takes longer to look one up than to make the tensor, and leaves out
views whose storage it cannot name (``_unsafe_view``, which each linear layer of three dims ends with). Here a lookup
compares the plain facts of the arguments; whatever is not plain goes to torch's mode, which also makes each result the
first time. A result is metadata alone, so it holds for all modes of a process, and for other processes with this torch
(:mod:`orchestrator.isolation.result_file`).
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import torch
from torch._higher_order_ops.utils import registered_hop_fake_fns
from torch._subclasses import fake_tensor

from orchestrator.isolation.result_file import ResultFile, digest_of

__all__ = ["CachedFakeMode", "fake_mode", "save_results"]

#: Results that are remembered; when they are more, all are forgotten.
LIMIT = 50_000

_PLAIN_TYPES = frozenset(
    {int, float, bool, str, type(None), torch.dtype, torch.layout, torch.memory_format, torch.device}
)

#: Questions that torch answers from the tensor itself: two in five of what it asks the mode.
_QUERIES: Mapping[Any, Any] = getattr(fake_tensor, "_DISPATCH_META_HANDLERS", {})

#: What these give hangs on more than the metadata of their arguments: on values, or on the size of the memory.
_UNCERTAIN_TAGS = frozenset(
    {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
)
_UNCERTAIN_NAMES = ("aten::as_strided", "aten::lift", "aten::set", "aten::resize", "aten::_resize")


class _Form(NamedTuple):
    """The metadata of one tensor that an operation gives.

    Attributes:
        shape: Its sizes.
        strides: Its strides, in elements.
        offset: Where it begins in its memory, in elements.
        dtype: Its dtype.
        requires_grad: Whether it takes part in a graph of gradients.
        source: Position among the tensor arguments of the one whose memory it has; None: memory of its own.
        attributes: What torch notes on the fake tensor, without its mode.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    requires_grad: bool
    source: int | None
    attributes: Mapping[str, Any]


class _Result(NamedTuple):
    """What an operation gives: a tensor each, in a container of a type, or one tensor alone (None)."""

    container: type | None
    forms: tuple[_Form, ...]

    def to_text(self) -> str:
        """Returns it as a line of JSON."""
        container = None if self.container is None else self.container.__name__
        rows = [
            [
                form.shape,
                form.strides,
                form.offset,
                _DTYPE_NAMES[form.dtype],
                form.requires_grad,
                form.source,
                {name: str(value) for name, value in form.attributes.items() if value is not None},
            ]
            for form in self.forms
        ]
        return json.dumps([container, rows], separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str, source_count: int, attributes: Mapping[str, Any]) -> _Result | None:
        """Reads what :meth:`to_text` gave; None: it is something else.

        Args:
            text: The text.
            source_count: How many tensors the operation was given.
            attributes: What torch notes on a fake tensor of which nothing is known.
        """
        try:
            container, rows = json.loads(text)
            forms = tuple(_read_form(attributes, *row) for row in rows)
            is_sound = all(form.source is None or 0 <= form.source < source_count for form in forms)
            return cls(_CONTAINERS[container], forms) if is_sound else None
        except (ValueError, TypeError, KeyError, RuntimeError, RecursionError):
            return None


_CONTAINERS: Mapping[str | None, type | None] = {None: None, "list": list, "tuple": tuple}
_DTYPES: Mapping[str, torch.dtype] = {
    name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_DTYPE_NAMES: Mapping[torch.dtype, str] = {value: name for name, value in _DTYPES.items()}

_device = functools.lru_cache(maxsize=64)(torch.device)


def _read_form(
    attributes: Mapping[str, Any],
    shape: list[int],
    strides: list[int],
    offset: int,
    dtype: str,
    requires_grad: bool,
    source: int | None,
    devices: dict[str, str],
) -> _Form:
    numbers = (*shape, *strides, offset, *(() if source is None else (source,)))
    if len(shape) != len(strides) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a size, a stride or a place is no number")
    if not devices.keys() <= attributes.keys():
        raise ValueError("torch notes no such thing")
    noted = {**attributes, **{name: _device(value) for name, value in devices.items()}}
    return _Form(tuple(shape), tuple(strides), offset, _DTYPES[dtype], requires_grad is True, source, noted)


class CachedFakeMode(fake_tensor.FakeTensorMode):  # type: ignore[no-untyped-call]
    """Torch's mode of fake tensors, with a cheaper memory of results."""

    supports_higher_order_operators = True

    _results: ClassVar[dict[Hashable, _Result]] = {}
    _result_file: ClassVar[ResultFile] = ResultFile()
    _is_certain: ClassVar[dict[Any, bool]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled while a stage is tried, and torch's guard against it would take a third of a lookup.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        """Runs one operation on fake tensors, from memory where it was seen before."""
        kwargs = kwargs or {}
        query = _QUERIES.get(func)
        if query is not None:
            return query(args)
        if not isinstance(func, torch._ops.OpOverload):
            # Torch looks for what an operator that takes functions does on fake tensors under its own mode alone; the
            # newer kind of these rules leads back here, and torch's mode has them.
            rule = getattr(func, "python_key_table", {}).get(fake_tensor.FakeTensorMode)
            if rule is not None and func not in registered_hop_fake_fns:
                return rule(self, *args, **kwargs)
            return super().__torch_dispatch__(func, types, args, kwargs)
        is_certain = self._is_certain.get(func)
        if is_certain is None:
            is_certain = self._is_certain[func] = _is_certain(func)
        tensors: list[Any] = []
        facts: list[Any] = [func, torch.get_default_dtype(), torch._C._get_default_device()]
        # A mode of inference gives tensors of another kind.
        if (
            not is_certain
            or torch.is_inference_mode_enabled()
            or not self._is_plain(args, facts, tensors)
            or not self._is_plain(itertools.chain.from_iterable(kwargs.items()), facts, tensors)
        ):
            return super().__torch_dispatch__(func, types, args, kwargs)
        key = tuple(facts)
        result = self._results.get(key)
        if result is not None:
            return self._make(result, tensors)
        digest = digest_of(key)
        result = self._stored_result(digest, len(tensors))
        if result is not None:
            self._remember(key, result)
            return self._make(result, tensors)
        output = super().__torch_dispatch__(func, types, args, kwargs)
        result = self._describe(output, tensors)
        if result is not None:
            self._remember(key, result)
            self._result_file.put(digest, result.to_text())
        return output

    @functools.cached_property
    def _blank_attributes(self) -> Mapping[str, Any]:
        """What torch notes on a fake tensor, all of it empty."""
        with torch._C._DisableTorchDispatch():
            tensor = fake_tensor.FakeTensor(self, torch.empty((), device="meta"), torch.device("cpu"))
        return dict.fromkeys(name for name in vars(tensor) if name != "fake_mode")

    def _remember(self, key: Hashable, result: _Result) -> None:
        if len(self._results) >= LIMIT:
            self._results.clear()
        self._results[key] = result

    def _stored_result(self, digest: str, tensor_count: int) -> _Result | None:
        """The result that another process kept; None: there is none that can be read."""
        text = self._result_file.get(digest)
        return None if text is None else _Result.from_text(text, tensor_count, self._blank_attributes)

    def _is_plain(self, values: Any, facts: list[Any], tensors: list[Any]) -> bool:
        """Adds to the facts what an operation can see of its arguments; False where that is not plain.

        Args:
            values: The arguments, or the items of one that is a list.
            facts: Takes the facts.
            tensors: Takes the tensors, in their order.
        """
        for value in values:
            kind = type(value)
            if kind is fake_tensor.FakeTensor:
                if not self._has_plain_memory(value):
                    return False
                facts += (
                    value.shape,
                    value.stride(),
                    value.storage_offset(),
                    value.dtype,
                    value.fake_device,
                    value.requires_grad,
                )
                tensors.append(value)
            elif kind in _PLAIN_TYPES:
                # 1, 1.0 and True are equal, and make different dtypes.
                facts += (kind, value)
            elif kind is list or kind is tuple:
                facts += (kind, len(value))
                if not self._is_plain(value, facts, tensors):
                    return False
            else:
                return False
        return True

    def _has_plain_memory(self, value: Any) -> bool:
        """Tells whether a fake tensor of this mode is strided, has no symbols as sizes, and stands for no constant."""
        return (
            value.fake_mode is self
            and value.constant is None
            and value.layout is torch.strided
            and not value.dtype.is_complex
            and not value.is_neg()
            and not value._has_symbolic_sizes_strides
        )

    def _describe(self, output: Any, tensors: list[Any]) -> _Result | None:
        """Returns what a result is like; None where it is more than metadata.

        Args:
            output: What torch's mode gave.
            tensors: Tensors among the arguments.
        """
        # A decomposition gives a tuple with names, and who calls the operation gets what torch makes of a plain one.
        container = next((kind for kind in (list, tuple) if isinstance(output, kind)), None)
        parts = [output] if container is None else output
        # From here on each part is a plain tensor of this mode, in memory of an argument or in memory of its own, which
        # it shares with no other part and begins at its first element.
        places = [value.untyped_storage()._cdata for value in tensors]
        forms: list[_Form] = []
        own_places: set[int] = set()
        for part in parts:
            if type(part) is not fake_tensor.FakeTensor or any(part is value for value in tensors):
                return None
            attributes = {name: value for name, value in vars(part).items() if name != "fake_mode"}
            is_plain = all(value is None or isinstance(value, torch.device) for value in attributes.values())
            if not is_plain or not self._has_plain_memory(part) or part.is_inference():
                return None
            place = part.untyped_storage()._cdata
            source = places.index(place) if place in places else None
            if source is None and place in own_places:
                return None
            own_places.add(place)
            if source is None and part.storage_offset():
                return None
            forms.append(
                _Form(
                    tuple(part.shape),
                    part.stride(),
                    int(part.storage_offset()),
                    part.dtype,
                    part.requires_grad,
                    source,
                    attributes,
                )
            )
        return _Result(container, tuple(forms))

    def _make(self, result: _Result, tensors: list[Any]) -> Any:
        """Makes the tensors of a result.

        Args:
            result: What they are like.
            tensors: Tensors among the arguments.
        """
        parts: list[Any] = []
        with torch._C._DisableTorchDispatch():
            for form in result.forms:
                meta = torch.empty_strided(form.shape, form.strides, dtype=form.dtype, device="meta")
                if form.source is not None:
                    storage = tensors[form.source].untyped_storage()
                    meta.set_(storage, form.offset, form.shape, form.strides)
                part: Any = torch.Tensor._make_subclass(
                    fake_tensor.FakeTensor,
                    meta,
                    form.requires_grad,
                    dispatch_device=True,
                    device_for_backend_keys=form.attributes["_fake_device"],
                )
                if not self._allow_unsafe_data_ptr_access:
                    torch._C._set_throw_on_mutable_data_ptr(part)
                vars(part).update(form.attributes, fake_mode=self)
                parts.append(part)
        return parts[0] if result.container is None else result.container(parts)


def _is_certain(func: Any) -> bool:
    """Tells whether an operation gives new tensors whose metadata follows from that of its arguments."""
    return (
        isinstance(func, torch._ops.OpOverload)
        and func.namespace in ("aten", "prims")
        and not func._schema.is_mutable
        and _UNCERTAIN_TAGS.isdisjoint(func.tags)
        and not func._schema.name.startswith(_UNCERTAIN_NAMES)
    )


def save_results() -> None:
    """Keeps what was learned since the last time for other processes."""
    CachedFakeMode._result_file.save()


def fake_mode() -> CachedFakeMode:
    """Makes a mode; the first one in a thread of its own.

    Torch imports much for it, and exceptions that it catches meanwhile would hold the frames of the caller, and with
    them the modules that are planned, until the cyclic collector runs.
    """
    if "torch._dynamo" in sys.modules:
        return _new_mode()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_new_mode).result()


def _new_mode() -> CachedFakeMode:
    """A mode in which sizes are numbers; ``while_loop`` asks for an environment of symbols even so."""
    # It imports sympy, which takes as long as all else that building and loading a pipeline needs.
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    symbols = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    mode = CachedFakeMode(allow_non_fake_inputs=True, shape_env=symbols, static_shapes=True)
    # What is asked a second time does not get as far as torch's own memory, which costs a fifth of a plan.
    mode.cache_enabled = False
    return mode

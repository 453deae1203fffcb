"""Dtypes that must agree: what torch's fake kernels let pass and its real ones refuse.

On fake tensors a matrix product of ``int64`` and ``float32`` gives a shape without complaint, and fails with the first
request. This mode looks at the operations that take tensors of one dtype only, and raises while planning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SameDtypes"]

_aten = torch.ops.aten

_PRODUCTS = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.addbmm.default,
        _aten.mv.default,
        _aten.addmv.default,
        _aten.dot.default,
        _aten.linear.default,
        _aten.convolution.default,
    }
)

_NORMS = frozenset({_aten.native_layer_norm.default, _aten.native_group_norm.default})

_HALVES = (torch.float16, torch.bfloat16)


class SameDtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises ``RuntimeError`` where an operation that takes one dtype gets two.

    Operators that take functions (``cond``, ``while_loop``, ``scan``, ``flex_attention``) are run as they are.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled while a stage is tried, and torch's guard against it would take a tenth of a trial.
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Checks one operation, then runs it."""
        if func in _PRODUCTS or func in _NORMS:
            _check(func, args)
        return func(*args, **(kwargs or {}))


def _check(func: Any, args: Sequence[Any]) -> None:
    dtypes = [value.dtype for value in args if isinstance(value, torch.Tensor)]
    if len(set(dtypes)) < 2 or (func in _NORMS and _is_mixed(dtypes)):
        return
    text = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    raise RuntimeError(f"{func.overloadpacket} takes tensors of one dtype, but got {text}")


def _is_mixed(dtypes: Sequence[torch.dtype]) -> bool:
    """Tells whether a norm gets half precision values and full precision weights, which torch permits."""
    return dtypes[0] in _HALVES and set(dtypes[1:]) == {torch.float32}

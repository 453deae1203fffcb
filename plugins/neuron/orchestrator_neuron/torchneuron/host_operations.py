"""The operations that TorchNeuron hands to the host, by what is registered with torch, and by what it tells afterwards.

An operation runs on the device if it has a kernel there, or is made of others that torch then looks up in turn. All
else goes to the fallback, which copies tensors to the host and results back. A kernel may still give up on some
arguments; that shows when a stage is called at load, since the device keeps a list of what fell back.
"""

from __future__ import annotations

import sys

import torch

from orchestrator.backend import Operation

__all__ = ["clear_fallbacks", "fallbacks", "runs_on_host"]

#: Forms that only the processor has, since it chose them: another device has these operations in a form of its own.
_OF_THE_PROCESSOR = ("aten::mkldnn_", "aten::_scaled_dot_product_flash_attention_for_cpu")

_COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


def runs_on_host(operation: Operation) -> bool:
    """Tells whether an operation has no kernel on the device."""
    if operation.name.startswith(_OF_THE_PROCESSOR):
        return False
    name = f"{operation.name}.{operation.overload}" if operation.overload else operation.name
    if not _exists(name) or any(_has_kernel(name, key) for key in ("PrivateUse1", *_COMPOSITE)):
        return False
    # A structured operation without a kernel runs the form of it that writes into a given tensor.
    out = f"{operation.name}.{operation.overload}_out" if operation.overload else f"{operation.name}.out"
    is_structured = _has_kernel(name, "CompositeExplicitAutogradNonFunctional")
    return not (is_structured and _exists(out) and _has_kernel(out, "PrivateUse1"))


def clear_fallbacks() -> None:
    """Forgets what fell back so far, where the package keeps a list."""
    clear = getattr(sys.modules.get("torch_neuronx"), "clear_op_tracking", None)
    if clear is not None:
        clear()


def fallbacks() -> list[str]:
    """Returns the names of operations that fell back since :func:`clear_fallbacks`, each once, overloads left out."""
    listing = getattr(sys.modules.get("torch_neuronx"), "get_fallback_ops", tuple)
    return list(dict.fromkeys(str(name).partition(".")[0] for name in listing()))


def _exists(name: str) -> bool:
    return bool(torch._C._dispatch_has_kernel(name))


def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))

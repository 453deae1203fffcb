"""Which operators a compiled program may hold: they compute on tensors, and reach nothing else.

A program in a store is somebody's word. So it names operators only, never Python functions: those of torch that
compute, those of torch that run one of the program's own graphs, and those that this process itself has registered
(``torch.library``), as the code of a pipeline does for its own use.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

__all__ = ["name_of", "operator_of"]

#: Namespaces of torch whose operators compute.
_COMPUTE = frozenset({"aten", "prims", "quantized", "quantized_decomposed", "_quantized", "mkldnn"})
#: Namespaces of torch whose operators talk to other processes, to compilers and profilers, or to the interpreter.
_OTHERS = frozenset(
    {
        "_c10d_functional",
        "_c10d_functional_autograd",
        "_dtensor",
        "_inductor_test",
        "_native",
        "_test",
        "aoti",
        "aot_inductor",
        "c10d",
        "cuda",
        "debug_mode_ops",
        "debugprims",
        "export",
        "higher_order",
        "inductor",
        "inductor_prims",
        "mkl",
        "mkldnn_prepacked",
        "onednn",
        "onnx",
        "prim",
        "profiler",
        "quantization",
        "rngprims",
        "sparse",
        "static_runtime",
        "symm_mem",
        "tensorexpr",
        "tensorrt",
        "torch_tensorrt",
        "triton",
        "xnnpack",
    }
)
#: Operators of ``aten`` that read or write files or the console, or put a tensor over memory that is not its own.
_REACH_OUT = frozenset(
    {
        "_copy_from_and_resize",
        "_print",
        "_resize_output",
        "_resize_output_",
        "from_file",
        "load",
        "resize",
        "resize_",
        "resize_as",
        "resize_as_",
        "resize_as_sparse",
        "resize_as_sparse_",
        "save",
        "set",
        "set_",
        "set_data",
        "sparse_resize",
        "sparse_resize_",
        "sparse_resize_and_clear",
        "sparse_resize_and_clear_",
        "warn",
    }
)
#: Operators that run graphs; what they run is part of the program.
_HIGHER = frozenset(
    {
        "associative_scan",
        "cond",
        "flex_attention",
        "map_impl",
        "scan",
        "while_loop",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    }
)


def name_of(target: Any) -> str | None:
    """Returns the name of an operator in a file; None: it is none, or may not be in one."""
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.namespace}.{target._opname}.{target._overloadname}"
    elif isinstance(target, torch._ops.HigherOrderOperator):
        name = f"higher_order.{target._name}"
    else:
        return None
    return name if _is_allowed(name) else None


def operator_of(name: str) -> Any:
    """Returns the operator of a name.

    Raises:
        ValueError: There is none in this process, or it may not be in a file.
    """
    if not _is_allowed(name):
        raise ValueError(f"{name!r} is no operator that a program may hold")
    namespace, operation, *overload = name.split(".")
    if namespace == "higher_order":
        return _higher(operation)
    # Asked of the dispatcher: reading attributes of torch.ops can run code, and gives more than operators.
    schema = f"{namespace}::{operation}"
    schemas = torch._C._jit_get_schemas_for_operator(schema)
    overload_name = "" if overload[0] == "default" else overload[0]
    if overload_name not in {item.overload_name for item in schemas}:
        raise ValueError(f"there is no operator {name!r} in this process: import what registers it")
    operation_overload = getattr(getattr(getattr(torch.ops, namespace), operation), overload[0])
    if not isinstance(operation_overload, torch._ops.OpOverload):
        raise ValueError(f"{name!r} is no operator")
    return operation_overload


def _higher(name: str) -> Any:
    importlib.import_module("torch._higher_order_ops")  # registers them
    return torch._ops._higher_order_ops[name]


def _is_allowed(name: str) -> bool:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    if parts[0] == "higher_order":
        return len(parts) == 2 and parts[1] in _HIGHER
    if len(parts) != 3 or parts[0] in _OTHERS:
        return False
    is_unchecked = parts[1].endswith("_tensor_unsafe")
    return parts[0] not in _COMPUTE or not (parts[1] in _REACH_OUT or is_unchecked)

"""``host.to("privateuseone:0")`` while an emulated device is open.

torch has a device type for backends written in Python, but needs three things for it: a device module, which stays once
it is set up and does nothing, and the kernels that make an empty tensor, which are there only while a device is open.
Where somebody else has set up that device type in this process, theirs is left alone; uploads of this package's own do
not need it.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from orchestrator_neuron.emulated.device import Device
from orchestrator_neuron.emulated.tensor import EmulatedTensor, allocate

__all__ = ["register", "unregister"]

_lock = threading.Lock()
_open: list[Device] = []
_kernels: list[torch.library.Library] = []


def register(device: Device) -> None:
    """Makes a device the one that ``.to("privateuseone:0")`` goes to; the one opened last if there are several."""
    with _lock:
        _open.append(device)
        if not _kernels:
            _install()


def unregister(device: Device) -> None:
    """Undoes :func:`register`."""
    with _lock:
        _open[:] = [other for other in _open if other is not device]
        if not _open and _kernels:
            _kernels.pop()._destroy()  # type: ignore[no-untyped-call]


def _install() -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key("aten::empty.memory_format", "PrivateUse1")
    if has_kernel or not _set_up():
        return
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("empty.memory_format", _empty, "PrivateUse1")  # type: ignore[no-untyped-call]
    library.impl("empty_strided", _empty_strided, "PrivateUse1")  # type: ignore[no-untyped-call]
    _kernels.append(library)


def _set_up() -> bool:
    """Sets up the device type; tells whether it is there."""
    if hasattr(torch, torch._C._get_privateuse1_backend_name()):
        return True
    set_up = getattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend", None)
    if set_up is None:
        return False
    set_up()
    return True


def _empty(size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> EmulatedTensor:
    element_type = dtype or torch.get_default_dtype()
    return allocate(_open[-1], torch.device(device).index or 0, tuple(size), element_type, "A value")


def _empty_strided(
    size: Any, _stride: Any, *, dtype: Any = None, device: Any = None, **_: Any
) -> EmulatedTensor:
    return _empty(size, dtype=dtype, device=device)

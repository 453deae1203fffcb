"""Outputs that a session left on a device: what tells one from any other object that a request may hold.

A handle is opaque, and the same object as long as somebody holds it. So what is known of it is kept beside it, by its
identity, and goes with it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary

from orchestrator.runner.closing import Closing

__all__ = ["DeviceValue", "device_value_of", "note_device_value"]


@dataclass(frozen=True)
class DeviceValue:
    """What is known of an output that stayed on a device.

    Attributes:
        output: Its name.
        device: Where it is.
        session: The end of the session that left it there; it is of use to that session alone.
    """

    output: str
    device: str
    session: weakref.ref[Closing]


_values: Any = WeakIdKeyDictionary()


def note_device_value(handle: Any, value: DeviceValue) -> None:
    """Notes what a handle is."""
    _values[handle] = value


def device_value_of(handle: Any) -> DeviceValue | None:
    """Returns what is known of a handle; None for all that no session left on a device."""
    try:
        value: DeviceValue | None = _values.get(handle)
    except TypeError:  # a number or a text, which nothing can refer to weakly
        return None
    return value

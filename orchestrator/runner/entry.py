"""The entry of a session, as source: what happens around every request.

It is generated, since it knows the inputs by name: fetching them, looking their form up, and calling take a few
hundred nanoseconds in all. The *form* of a request is the shape, dtype and place of each tensor, and the class of each
Python value; a form that was admitted before needs no other check.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType
from typing import Any

from orchestrator.plan.model import Plan
from orchestrator.specs import PortSpec, TensorSpec

__all__ = ["entry_source", "is_entry", "request_form"]


def is_entry(code: CodeType) -> bool:
    """Tells whether a code object is the generated entry of a session."""
    return code.co_name == "entry" and code.co_filename.startswith("<stage-orchestrator ")


def request_form(plan: Plan, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the form of a request that was admitted, equal to what the generated entry looks up."""
    form: list[Any] = []
    for name, spec in plan.inputs:
        value = inputs[name]
        form += (
            [value.shape, value.dtype, value.is_cpu] if isinstance(spec, TensorSpec) else [value.__class__]
        )
    return tuple(form)


def _form(position: int, spec: PortSpec) -> str:
    if isinstance(spec, TensorSpec):
        return f"a{position}.shape, a{position}.dtype, a{position}.is_cpu, "
    return f"a{position}.__class__, "


def entry_source(plan: Plan, takes_turns: bool) -> str:
    """Returns the source of ``entry(inputs)``.

    Its globals: ``table`` (form to function and tick), ``admit`` (checks a request whose form is new), ``begin`` and
    ``end`` (a request is under way), ``grad`` and ``no_grad``, ``turn`` (a lock), and what becomes of an exception:
    ``release``, ``is_own``, ``explain``.

    Args:
        plan: The plan.
        takes_turns: Requests run one at a time.
    """
    inputs = list(enumerate(plan.inputs))
    fetch = "; ".join(f"a{position} = inputs[{name!r}]" for position, (name, _) in inputs) or "pass"
    form = "".join(_form(position, spec) for position, (_, spec) in inputs)
    run = f"run({', '.join(f'a{position}' for position, _ in inputs)})"
    running = [
        "if grad():",
        "    with no_grad():",
        f"        result = {run}",
        "else:",
        f"    result = {run}",
    ]
    if takes_turns:
        running = ["with turn:", *(f"    {line}" for line in running)]
    lines = [
        "def entry(inputs):",
        "    begin(None)",
        "    try:",
        "        try:",
        f"            {fetch}",
        f"            run, tick = table[({form})]",
        f"            if len(inputs) != {len(inputs)}: raise KeyError",
        "        except (KeyError, AttributeError, TypeError):",
        "            run = None",
        "        if run is None:",
        "            run, tick = admit(inputs)",
        f"            {fetch}",
        *(f"        {line}" for line in running),
        "        tick()",
        "        return result",
        "    except Exception as error:",
        "        release(error)",
        "        if is_own(error): raise",
        "        raise explain(error) from error",
        "    finally:",
        "        end()",
    ]
    return "\n".join(lines) + "\n"

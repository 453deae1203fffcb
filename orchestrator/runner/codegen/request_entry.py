"""The entry of a session, as source: what happens around every request.

It is generated, since it knows the inputs: fetching them, looking their form up, and calling take about a microsecond
in all. The *form* of a request is the class, shape, dtype, layout and place of each tensor, and the class of each
Python value; a form that was admitted before needs no other check. It is compared with the form admitted last, part by
part, which is cheaper than making and hashing a key, and only then looked up among all.

Names of inputs are keys of the request and nothing else: they stand in the source as string constants, so that any
name will do, and none hides a name of the entry's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import CodeType
from typing import Any

from orchestrator.plan.model import Plan
from orchestrator.specs import PortSpec, TensorSpec

__all__ = ["entry_source", "file_name", "is_entry", "request_form"]

#: What tells the form of a tensor; the class comes first, since one of another class may answer in any way.
_PARTS = ("__class__", "shape", "dtype", "layout", "is_cpu")

_ENTRY = "entry"


def file_name(pipeline: str, what: object) -> str:
    """Returns what generated code is called in tracebacks: plain ASCII, whatever the pipeline's name is."""
    return f"<stage-orchestrator {pipeline!a} {what}>"


def is_entry(code: CodeType) -> bool:
    """Tells whether a code object is a generated entry of a session."""
    return code.co_filename.startswith("<stage-orchestrator ") and code.co_filename.endswith(f" {_ENTRY}>")


def request_form(plan: Plan, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the form of a request that was admitted, equal to what the generated entry looks up."""
    form: list[Any] = []
    for name, spec in plan.inputs:
        value: Any = inputs.get(name)
        parts = _PARTS if isinstance(spec, TensorSpec) else _PARTS[:1]
        form += [getattr(value, part, None) for part in parts]
    return tuple(form)


def entry_source(plan: Plan, has_locks: bool, head: str) -> str:
    """Returns the source of the function ``entry``, which takes the dict ``inputs``.

    Its globals: ``table`` (form to function and counter; ``None`` to those of the form admitted last, and that form),
    ``admit`` (checks a request whose form is new), ``begin`` and ``end`` (a request is under way), ``closing`` and
    ``finish`` (somebody waits for the end of requests), ``grad`` and ``no_grad``, ``locks``, and what becomes of
    an exception: ``release``, ``is_own``, ``explain``.

    Args:
        plan: The plan.
        has_locks: Requests wait for one another.
        head: Its parameters; those of a method end with ``*args, **inputs``.
    """
    values = [f"a{position}" for position in range(len(plan.inputs))]
    # Every input by its name, then that there is no other: an optional one that is left out makes the request shorter.
    fetch, length = [], [str(len(values))]
    for value, (name, _) in zip(values, plan.inputs, strict=True):
        is_optional = name in plan.optional
        fetch.append(f"{value} = inputs.get({name!a})" if is_optional else f"{value} = inputs[{name!a}]")
        length += [f"({name!a} not in inputs)"] if is_optional else []
    # What a method gets by position is no part of a request: whatever else it holds, it is refused.
    positional = "args or " if "*args" in head else ""
    fetch.append(f"if {positional}len(inputs) != {' - '.join(length)}: raise KeyError")
    lines = _body(plan, values, fetch, has_locks, "inputs, args" if positional else "inputs")
    return "\n".join([f"def {_ENTRY}({head}):", *lines]) + "\n"


def _form(value: str, spec: PortSpec, optional: bool) -> dict[str, str]:
    """Parts of a value's form, each with how it is compared."""
    parts = {f"{value}.__class__": "is"}
    if isinstance(spec, TensorSpec):
        for part in _PARTS[1:]:
            expression = f"getattr({value}, {part!r}, None)" if optional else f"{value}.{part}"
            parts[expression] = "==" if part == "shape" else "is"
    return parts


def _body(plan: Plan, values: list[str], fetch: list[str], has_locks: bool, request: str) -> list[str]:
    form: dict[str, str] = {}
    for value, (name, spec) in zip(values, plan.inputs, strict=True):
        form |= _form(value, spec, name in plan.optional)
    # The form admitted last is compared part by part with local variables; only another one is made into a key.
    last_form = "".join(f", k{number}" for number in range(len(form)))
    is_same = (
        " and ".join(f"{part} {how} k{number}" for number, (part, how) in enumerate(form.items())) or "True"
    )
    call = f"run({', '.join(values)})"
    # Results leave with no history. A context manager costs, so it is entered only where gradients are on.
    run_lines = [
        "if grad():",
        "    with no_grad():",
        f"        result = {call}",
        "else:",
        f"    result = {call}",
    ]
    if has_locks:
        run_lines = ["with locks:", *(f"    {line}" for line in run_lines)]
    # The request counts as under way from within the ``try``: an interrupt cannot come between.
    return [
        "    try:",
        "        begin(None)",
        "        try:",
        *(f"            {line}" for line in fetch),
        f"            run, count{last_form} = table[None]",
        f"            if not ({is_same}):",
        f"                run, count = table[({''.join(f'{part}, ' for part in form)})]",
        "        except Exception:",
        "            run = None",
        "        if run is None:",
        f"            run, count = admit({request})",
        *(f"            {line}" for line in fetch),
        *(f"        {line}" for line in run_lines),
        "        count()",
        "        return result",
        "    except Exception as error:",
        "        release(error)",
        "        if is_own(error): raise",
        "        raise explain(error) from error",
        "    except BaseException as error:",
        "        release(error)",
        "        raise",
        "    finally:",
        "        end()",
        "        if closing: finish()",
    ]

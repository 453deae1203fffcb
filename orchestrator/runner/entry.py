"""The entry of a session, as source: what happens around every request.

It is generated, since it knows the inputs by name: fetching them, looking their form up, and calling take about a
microsecond in all. The *form* of a request is the shape, dtype and place of each tensor, and the class of each Python
value; a form that was admitted before needs no other check. It is compared with the form admitted last, part by part,
which is cheaper than making and hashing a key, and only then looked up among all.

There are two entries. One takes a dict. The other takes inputs as keyword arguments, without a dict in between; it
exists where every input's name can be a parameter.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from types import CodeType
from typing import Any

from orchestrator.plan.model import Plan
from orchestrator.specs import PortSpec, TensorSpec

__all__ = ["call_source", "entry_source", "is_callable_by_name", "is_entry", "request_form"]


#: Names of the generated functions; no step's function is called so.
_ENTRIES = ("entry", "__call__")


def is_entry(code: CodeType) -> bool:
    """Tells whether a code object is a generated entry of a session."""
    return code.co_name in _ENTRIES and code.co_filename.startswith("<stage-orchestrator ")


def request_form(plan: Plan, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the form of a request that was admitted, equal to what the generated entry looks up."""
    form: list[Any] = []
    for name, spec in plan.inputs:
        value: Any = inputs.get(name)
        if value is None and isinstance(spec, TensorSpec):
            form += [None, None, None]
        else:
            form += (
                [value.shape, value.dtype, value.is_cpu]
                if isinstance(spec, TensorSpec)
                else [value.__class__]
            )
    return tuple(form)


def is_callable_by_name(plan: Plan) -> bool:
    """Tells whether inputs can be parameters: identifiers that are neither keywords nor names of the entry's own."""
    return all(
        name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
        for name, _ in plan.inputs
    )


def entry_source(plan: Plan, takes_turns: bool) -> str:
    """Returns the source of ``entry(inputs)``.

    Its globals: ``_table`` (form to function and tick; ``None`` to those of the form admitted last, and that form),
    ``_admit`` (checks a request whose form is new), ``_begin`` and ``_end`` (a request is under way), ``_grad`` and
    ``_no_grad``, ``_turn`` (a lock), and what becomes of an exception: ``_release``, ``_is_own``, ``_explain``.

    Args:
        plan: The plan.
        takes_turns: Requests run one at a time.
    """
    values = [f"_a{position}" for position in range(len(plan.inputs))]
    fetch, given = [], [str(len(values))]
    for value, (name, _) in zip(values, plan.inputs, strict=True):
        maybe = name in plan.optional
        fetch.append(f"{value} = _inputs.get({name!r})" if maybe else f"{value} = _inputs[{name!r}]")
        given += [f"({name!r} not in _inputs)"] if maybe else []
    fetch.append(f"if len(_inputs) != {' - '.join(given)}: raise KeyError")
    lines = _body(plan, values, fetch, ["_run, _tick = _admit(_inputs)", *fetch], takes_turns)
    return "\n".join(["def entry(_inputs):", *lines]) + "\n"


def call_source(plan: Plan, takes_turns: bool) -> str:
    """Returns the source of ``__call__``, with the inputs as keyword parameters; globals as in :func:`entry_source`.

    An input that is not given is ``_missing``, an optional one None.
    """
    names = [name for name, _ in plan.inputs]
    head = "".join(f", {name}={'None' if name in plan.optional else '_missing'}" for name in names)
    given = "".join(f"({name!r}, {name}), " for name in names)
    slow = [
        f"_inputs = {{_name: _value for _name, _value in ({given}) if _value is not _missing}}",
        "_run, _tick = _admit({**_inputs, **_more})",
    ]
    lines = _body(plan, names, ["if _more: raise KeyError"], slow, takes_turns)
    star = ", *" if names else ""
    return "\n".join([f"def __call__(_self, /{star}{head}, **_more):", *lines]) + "\n"


def _form(value: str, spec: PortSpec, optional: bool) -> dict[str, str]:
    """Parts of a value's form, each with how it is compared."""
    if isinstance(spec, TensorSpec) and optional:
        parts = {"shape": "==", "dtype": "is", "is_cpu": "is"}
        return {f"getattr({value}, {part!r}, None)": how for part, how in parts.items()}
    if isinstance(spec, TensorSpec):
        return {f"{value}.shape": "==", f"{value}.dtype": "is", f"{value}.is_cpu": "is"}
    return {f"{value}.__class__": "is"}


def _body(plan: Plan, values: list[str], fetch: list[str], slow: list[str], takes_turns: bool) -> list[str]:
    form: dict[str, str] = {}
    for value, (name, spec) in zip(values, plan.inputs, strict=True):
        form |= _form(value, spec, name in plan.optional)
    known = "".join(f", _k{number}" for number in range(len(form)))
    same = (
        " and ".join(f"{part} {how} _k{number}" for number, (part, how) in enumerate(form.items())) or "True"
    )
    run = f"_run({', '.join(values)})"
    running = [
        "if _grad():",
        "    with _no_grad():",
        f"        _result = {run}",
        "else:",
        f"    _result = {run}",
    ]
    if takes_turns:
        running = ["with _turn:", *(f"    {line}" for line in running)]
    return [
        "    _begin(None)",
        "    try:",
        "        try:",
        *(f"            {line}" for line in fetch),
        f"            _run, _tick{known} = _table[None]",
        f"            if not ({same}):",
        f"                _run, _tick = _table[({''.join(f'{part}, ' for part in form)})]",
        "        except (KeyError, AttributeError, TypeError):",
        "            _run = None",
        "        if _run is None:",
        *(f"            {line}" for line in slow),
        *(f"        {line}" for line in running),
        "        _tick()",
        "        return _result",
        "    except Exception as error:",
        "        _release(error)",
        "        if _is_own(error): raise",
        "        raise _explain(error) from error",
        "    except BaseException as error:",
        "        _release(error)",
        "        raise",
        "    finally:",
        "        _end()",
    ]

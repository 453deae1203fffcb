"""Check a plugin before it is registered: its hooks exist, are marked, and take their parameters.

pluggy alone would accept a misspelt hook, a hook without its marker and a plugin without any hook, and
would then never call them. Here each is a :class:`PluginError` that names the plugin, its
distribution, the real signature and the fix.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping

from orchestrator.errors import PluginError, nearest
from orchestrator.plugin.hookspecs import HOOKS, REGISTERING
from orchestrator.plugin.marker import PROJECT
from orchestrator.registry import Owner

__all__ = ["check_plugin", "is_function"]

_PREFIX = f"{PROJECT}_"
_FUNCTIONS = (types.FunctionType, types.MethodType, staticmethod, classmethod)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_plugin(plugin: object, owner: Owner, marks: Mapping[str, Mapping[str, object]]) -> None:
    """Raises unless every hook of a plugin can be called.

    Args:
        plugin: The module or object.
        owner: Who it is, for the errors.
        marks: The options of its marked functions, by attribute name.

    Raises:
        PluginError: A hook is unknown, lacks its marker or has a wrong signature, or there is no hook.
    """
    for name in dir(plugin):
        if name.startswith(_PREFIX) and name not in marks and is_function(plugin, name):
            raise _missing_marker(name, owner)
    if not marks:
        raise PluginError(
            f"{owner} has no hook: {_describe(plugin)} holds no function marked with @hookimpl."
            f" Mark its hooks, or point the entry point at the module that has them.",
            plugin=owner.plugin,
            distribution=owner.distribution,
        )
    for name, options in marks.items():
        _check_hook(plugin, name, options, owner)


def is_function(plugin: object, name: str) -> bool:
    """Tells whether an attribute is a function or method; runs no property to find out."""
    value = inspect.getattr_static(plugin, name, None)
    return isinstance(value, _FUNCTIONS)


def _missing_marker(name: str, owner: Owner) -> PluginError:
    if name in HOOKS:
        return PluginError(
            f"{owner} defines the hook {_signature(name)} without its marker, so it would never be called."
            " Put @hookimpl above it.",
            plugin=owner.plugin,
            distribution=owner.distribution,
            hook=name,
        )
    return _unknown_hook(name, name, owner)


def _unknown_hook(function: str, hook: str, owner: Owner) -> PluginError:
    subject = repr(function) if function == hook else f"{function!r} (specname={hook!r})"
    return PluginError(
        f"{owner} implements {subject}, which is no hook.{nearest(hook, HOOKS)} Rename the function;"
        f" names that begin with {_PREFIX!r} are kept for hooks.",
        plugin=owner.plugin,
        distribution=owner.distribution,
        hook=hook,
        known=tuple(HOOKS),
    )


def _check_hook(plugin: object, name: str, options: Mapping[str, object], owner: Owner) -> None:
    # A hook that is optional may be of a release to come; every other one has to be known, and callable by name.
    hook = str(options.get("specname") or name)
    if hook not in HOOKS:
        if options.get("optionalhook"):
            return
        raise _unknown_hook(name, hook, owner)
    function = getattr(plugin, name)
    fault = _kind_fault(function, options) or _signature_fault(plugin, function, hook)
    if fault is not None:
        raise PluginError(
            f"{owner} implements {name}{inspect.signature(function)}, but the hook is"
            f" {_signature(hook)}: {fault}",
            plugin=owner.plugin,
            distribution=owner.distribution,
            hook=hook,
            signature=_signature(hook),
        )


def _kind_fault(function: Callable[..., object], options: Mapping[str, object]) -> str | None:
    if options.get("wrapper") or options.get("hookwrapper") or inspect.isgeneratorfunction(function):
        return "a hook is called by itself and cannot wrap others; drop the wrapper option and the yield."
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return "hooks are called, not awaited; write 'def' in place of 'async def'."
    return None


def _signature_fault(plugin: object, function: Callable[..., object], hook: str) -> str | None:
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        if parameter.name == "self" and inspect.isclass(plugin):
            return f"{plugin.__name__!r} is a class; register an instance, or make it a staticmethod."
        if parameter.kind not in _BY_NAME:
            return f"{str(parameter)!r} cannot be passed by name; name each parameter, without '*' and '/'."
        # One with a default may come from a later version of the hook.
        if parameter.name not in HOOKS[hook] and parameter.default is parameter.empty:
            return f"there is no {parameter.name!r}.{nearest(parameter.name, HOOKS[hook])}"
    if hook in REGISTERING and "registry" not in parameters:
        return "without 'registry' it can register nothing; add that parameter."
    return None


def _signature(hook: str) -> str:
    return f"{hook}({', '.join(HOOKS[hook])})"


def _describe(plugin: object) -> str:
    if inspect.ismodule(plugin):
        return f"module {plugin.__name__!r}"
    return f"{type(plugin).__name__} object"

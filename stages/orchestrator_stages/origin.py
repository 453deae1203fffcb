"""Whether an object of another library is what that library made it: the precondition of every importer.

An importer calls some methods of a library's classes and writes others anew. Both give the library's result only
while nothing stands between: no subclass or instance that replaces a method, no class that merely has the same name,
no hook, cache or offload, no module that keeps something from one call to the next. What these functions cannot
vouch for they refuse, with the part's name and a way out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn

from orchestrator import GraphError

__all__ = ["check_config", "check_modules", "check_unchanged", "library_class", "unwrap"]

LIBRARIES = frozenset({"torch", "diffusers", "transformers", "peft"})
"""Packages whose modules keep nothing between two calls, but for what :func:`check_modules` looks for."""

HOOKS = ("torch.nn.utils.", "transformers.utils.output_capturing")
"""Modules whose forward hooks compute a weight or hand out hidden states; they change no result."""

FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})

FREE = frozenset(
    {
        *("__init__", "__new__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__"),
        *("__annotations__", "__annotate__", "__annotations_cache__", "__abstractmethods__", "_abc_impl"),
        *(
            "__init_subclass__",
            "__subclasshook__",
            "__static_attributes__",
            "__firstlineno__",
            "__parameters__",
        ),
        *("__orig_bases__", "__hash__", "__eq__", "__repr__", "__str__", "__reduce__", "__reduce_ex__"),
    }
)
"""Attributes of a class that a subclass may replace: none is looked at while a model or pipeline runs."""


def library_class(value: object, paths: Iterable[str]) -> type | None:
    """Returns the first class in the ancestry of an object that is one of those named, by identity.

    Args:
        value: The object.
        paths: ``module:name`` of each class. None of their modules is imported: an object of theirs has done that.
    """
    names = [_imported_class(path) for path in paths]
    return next((cls for cls in type(value).__mro__ if cls in names), None)


def _imported_class(path: str) -> object:
    module, _, name = path.partition(":")
    return getattr(sys.modules.get(module), name, None)


def unwrap(model: Any) -> Any:
    """Returns the model that ``torch.compile`` was given, or the model itself."""
    while isinstance(model, nn.Module) and "_orig_mod" in model._modules:
        model = model._orig_mod
    return model


def check_unchanged(value: object, base: type, name: str) -> None:
    """Refuses an object whose class, or who itself, replaces anything of a library's class.

    Args:
        value: The object.
        base: The class of the library.
        name: What the object is called, for messages.

    Raises:
        GraphError: Something is replaced; it is named.
    """
    replacement = _replacement(value, base)
    if replacement is not None:
        owner, attribute = replacement
        raise GraphError(
            f"{owner} replaces {attribute!r} of {base.__module__}.{base.__qualname__}, so {name} may give something "
            f"else than what is taken over here. Use a {base.__qualname__} as it is, or draw what you changed as a "
            "stage of your own.",
            part=name,
            option=attribute,
        )


def _replacement(value: object, base: type) -> tuple[str, str] | None:
    """Who replaces which attribute of a class: a subclass, the object, or somebody in the class itself."""
    cls = type(value)
    own = vars(value) if hasattr(value, "__dict__") else {}
    for attribute in sorted({*dir(base), "__getattr__"} - FREE):
        original = inspect.getattr_static(base, attribute, None)
        if inspect.getattr_static(cls, attribute, None) is not original:
            return cls.__qualname__, attribute
        if attribute in own and _is_code(original) and not _is_own_method(own[attribute], value, original):
            return f"The {cls.__qualname__} itself", attribute
        if isinstance(original, FunctionType) and not _is_of_library(original.__module__, base.__module__):
            return str(original.__module__), attribute
    return None


def _is_code(attribute: object) -> bool:
    return callable(attribute) or isinstance(attribute, (property, staticmethod, classmethod))


def _is_own_method(method: object, value: object, original: object) -> bool:
    """Whether an attribute is the method that the class has anyway, as hooks leave it behind once they are removed."""
    return getattr(method, "__func__", None) is original and getattr(method, "__self__", None) is value


def _is_of_library(module: str | None, home: str) -> bool:
    root = (module or "").partition(".")[0]
    return root in LIBRARIES or root == home.partition(".")[0] or root in sys.stdlib_module_names


def check_modules(model: nn.Module, name: str) -> None:
    """Refuses a model that may give another result the next time, or is not computed by its modules alone.

    Args:
        model: A model of diffusers or transformers, or of one built of their modules.
        name: What it is called, for messages.

    Raises:
        GraphError: Some module of it has a hook, a cache, a foreign attention processor, a replaced forward, weights
            that are quantised, or is of a class that no known library made.
    """
    model = unwrap(model)
    if getattr(model, "is_cache_enabled", False) is True:
        raise _error(
            name,
            "has a cache enabled, which skips work by what earlier steps gave",
            f"Call {name}.disable_cache()",
        )
    if getattr(model, "hf_quantizer", None) is not None or _quantisation(model) is not None:
        raise _error(name, "is quantised", "Load it without quantization_config")
    for path, module in model.named_modules():
        place = f"{name}.{path}" if path else name
        for reason, way_out in _obstacles(module):
            raise _error(place, reason, way_out)
        # The class of the model itself is what check_unchanged looks at.
        for reason, way_out in _foreign(module) if path else _weights(module):
            raise _error(place, reason, way_out)


def _quantisation(model: nn.Module) -> object:
    config = getattr(model, "config", None)
    return (
        config.get("quantization_config")
        if isinstance(config, Mapping)
        else getattr(config, "quantization_config", None)
    )


def _error(place: str, reason: str, way_out: str) -> GraphError:
    return GraphError(
        f"{place} {reason}; whether a pipeline of stages would give the same cannot be told. {way_out}.",
        part=place,
    )


def _obstacles(module: nn.Module) -> Iterator[tuple[str, str]]:
    """What stands in the way of one module, and what to do about it."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None and (hooks := list(getattr(registry, "hooks", ("?",)))):
        yield (
            f"has the hook {hooks[0]!r} of diffusers (a cache, offload or casting)",
            "Load the pipeline anew and enable none",
        )
    if hasattr(module, "_hf_hook"):
        kind = type(module._hf_hook).__name__
        yield (
            f"has the hook {kind} of accelerate (offload, or a device map)",
            "Call pipe.remove_all_hooks(), or load it whole",
        )
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not _module_of(hook).startswith(HOOKS):
            yield (
                f"has the forward hook {_qualified_name(hook)}",
                "Remove it, or draw what it does as a stage",
            )
    forward = vars(module).get("forward")
    if "_orig_mod" in module._modules:  # of torch.compile
        forward = None
    if forward is not None and not _is_own_method(forward, module, type(module).forward):
        yield (
            f"has a forward of its own, {_qualified_name(forward)}",
            "Delete it, or draw what it does as a stage",
        )


def _foreign(module: nn.Module) -> Iterator[tuple[str, str]]:
    # Only what is not the model itself: a part may be of any known library, but not of the user's own code.
    kind = type(module)
    if "quantized" in kind.__module__:
        yield f"is a quantised {kind.__name__}", "Load the model without quantisation"
    if kind.__module__.partition(".")[0] not in LIBRARIES:
        yield (
            f"is a {kind.__module__}.{kind.__qualname__}, which is of none of the known libraries",
            ("Use the module it stands for"),
        )
    processor = vars(module).get("processor")
    if processor is not None and _module_of(processor).partition(".")[0] not in LIBRARIES:
        yield (
            f"has the attention processor {_qualified_name(processor)}",
            "Call set_default_attn_processor() on the model",
        )
    yield from _weights(module)


def _weights(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, weight in module._parameters.items():
        if weight is None:
            continue
        if (
            type(weight) is not nn.Parameter
            or type(weight.data) is not torch.Tensor
            or weight.dtype not in FLOATS
        ):
            yield (
                f"has quantised weights: {name!r} is a {type(weight.data).__name__} of {weight.dtype}",
                ("Load the model without quantisation or casting"),
            )


def _module_of(value: object) -> str:
    function = getattr(value, "__func__", value)
    if isinstance(function, FunctionType):
        return str(function.__module__)
    return type(function).__module__


def _qualified_name(value: object) -> str:
    function = getattr(value, "__func__", value)
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def check_config(
    config: Mapping[str, Any], defaults: Mapping[str, Any], names: Collection[str], name: str
) -> None:
    """Refuses an option that the library knows, the importer does not, and that is not as it is by default.

    A newer version of a library may have options that nobody thought of here. What the library itself knows nothing
    of is an annotation in a file, and changes nothing.

    Args:
        config: The options.
        defaults: Those that the library knows, with their defaults.
        names: Those that the importer follows, or that change no result.
        name: What they are options of, for messages.

    Raises:
        GraphError: There is such an option; it is named.
    """
    for option in sorted(defaults.keys() - set(names)):
        if option in config and config[option] != defaults[option]:
            raise GraphError(
                f"{name} has the option {option}={config[option]!r}, which is not known here; only "
                f"{option}={defaults[option]!r} is sure to change nothing.",
                option=option,
            )

"""Describing any object by what it holds, alike in every process: no addresses, no set order, no hash order.

Objects are visited breadth first and numbered in that order; a *record* describes one of them, and speaks of others
by their number. So cycles end, depth does not matter, and whether two places hold one object is part of the result.
Plain values stand in a record themselves.

A tensor counts by its content, unless it is a *weight*, one that a checkpoint fills: then by shape and dtype. Code
counts as :mod:`orchestrator.fingerprint.code` says. What belongs to a release counts by its name and the release's
version.

A wrapper may say which objects count in place of its attributes:
:meth:`ModelWrapper.key_parts <orchestrator.ModelWrapper.key_parts>`.

What cannot be read in any way (a generator, an open file, an object of somebody's own code in C, a tensor without
content) makes the description *unique to this process*: nothing else is ever equal to it, so nothing stale is taken for
it, and another process compiles again. A lock and a standard stream hold nothing that a program depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from orchestrator.fingerprint.code import constant_parts, release_of
from orchestrator.fingerprint.describer import Describer
from orchestrator.fingerprint.functions import ModuleUse, name_of
from orchestrator.fingerprint.opaque import process_unique_token
from orchestrator.fingerprint.paths import CodeFolders
from orchestrator.fingerprint.records import BY_BASE, BY_KIND
from orchestrator.fingerprint.state import attributes, buffer_parts, hides_state, pickle_parts, plain_text
from orchestrator.fingerprint.tensors import ContentlessError, content_parts
from orchestrator.stage import ModelWrapper

__all__ = ["LIMIT", "ObjectWalk"]

#: Objects that are looked into; with more, the description is unique to this process. A large model has some thousands.
LIMIT = 500_000
#: Sets in sets that are looked into; beyond, only constants are.
_DEPTH = 2

_PLAIN = {str, int, float, complex, bool, bytes, type(None), type(...), type(NotImplemented)}
_PLAIN |= {torch.dtype, torch.device, torch.layout, torch.memory_format}
#: What every module has; of these only parameters, buffers, modules and hooks say what it computes.
_MODULE_PARTS = frozenset(vars(torch.nn.Module()))
#: What a traced module has besides its code, which says it all but what it calls.
_TRACED_PARTS = frozenset({"_graph", "_code", "_tracer_cls", "_tracer_extras", "meta"})


class ObjectWalk(Describer):
    """One description.

    Args:
        weights: Tensors that count by shape and dtype.
        replacements: Attributes that stand for an object's own, by identity of the object.
        strict: Whether a tensor without content is an error.
        depth: How many sets are around what it describes.
    """

    def __init__(
        self,
        weights: Iterable[torch.Tensor] = (),
        replacements: Mapping[int, Mapping[str, Any]] | None = None,
        strict: bool = False,
        depth: int = 0,
    ) -> None:
        self._weights = {id(tensor): tensor for tensor in weights}
        self._replacements = replacements or {}
        self._strict = strict
        self._depth = depth
        self._numbers: dict[int, int] = {}
        # What was numbered stays alive until the end, so that no identity is used again.
        self._objects: list[Any] = []
        self._folders = CodeFolders()
        self._uses: dict[tuple[int, frozenset[str]], ModuleUse] = {}

    @property
    def objects(self) -> Sequence[Any]:
        """What was described so far, each object once; elements of sets are described apart, and are not among them."""
        return self._objects

    def digest(self, *roots: Any) -> str:
        """Returns the SHA-256 of the description of some objects.

        Raises:
            ContentlessError: A tensor that counts by its content has none, and it is strict.
        """
        digest = hashlib.sha256(json.dumps(self.all(roots)).encode())
        position = 0
        while position < min(len(self._objects), LIMIT):
            digest.update(json.dumps(self._record_or_token(self._objects[position])).encode())
            position += 1
        if position < len(self._objects):
            digest.update(process_unique_token(self._objects[0]).encode())
        return digest.hexdigest()

    def _record_or_token(self, value: Any) -> Any:
        """The record of an object; a token where its own attributes raise."""
        try:
            return self._record(value)
        except ContentlessError:
            raise
        except Exception:
            return [name_of(type(value)), process_unique_token(value)]

    def of(self, value: Any) -> Any:
        """Returns the text of a plain value, the number of an object."""
        kind = type(value)
        if kind is str:
            return repr(self._folders.relative(value))
        if kind in _PLAIN:
            return repr(value)
        if kind is tuple and all(type(item) in _PLAIN for item in value):
            return [self.of(item) for item in value]  # constants: whether two places hold one is chance
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
            self._folders.note(kind.__module__)
        return number

    def all(self, values: Iterable[Any]) -> list[Any]:
        """Describes values in order."""
        return [self.of(value) for value in values]

    def pairs(self, pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
        """Describes pairs in order."""
        return [[self.of(name), self.of(value)] for name, value in pairs]

    def elements(self, values: Iterable[Any]) -> list[str]:
        """Describes values that have no order, each apart from all else."""
        return sorted(self._element(value) for value in values)

    def state(self, value: Any, excluded_names: Iterable[str] = ()) -> list[Any]:
        """Describes attributes and slots, by name."""
        own = attributes(value)
        if _says_its_key(value):
            own = {"_model": own.get("_model"), "key_parts": list(value.key_parts())}
        items = (own | {**self._replacements.get(id(value), {})}).items()
        return self.pairs(sorted((name, item) for name, item in items if name not in excluded_names))

    def module_use(self, module: ModuleType, names: frozenset[str]) -> Any:
        """Returns the number of what code with these names uses of a module, one for all code that uses the same."""
        use = ModuleUse(module, names)
        return self.of(self._uses.setdefault(use.key(), use))

    def note_module(self, name: object) -> None:
        """Notes the name of a module that code comes from: paths into its folder count from there."""
        self._folders.note(name)

    def _record(self, value: Any) -> list[Any]:
        kind = type(value)
        # 1. Containers of exactly these kinds: of a kind below them, attributes count as well, so that is an object.
        if kind in (list, tuple):
            return [kind.__name__, *self.all(value)]
        if kind is dict:
            return ["dict", *self.pairs(value.items())]
        if kind in (set, frozenset):
            return ["set", *self.elements(value)]
        # 2. What torch computes with, before tables that know Python's own kinds only.
        if isinstance(value, torch.Tensor):
            return ["Tensor", *self._tensor(value)]
        if isinstance(value, torch.nn.Module):
            return ["Module", *self._module(value)]
        # 3. Kinds whose attributes do not tell what they hold; an exact kind says more than a base.
        if kind in BY_KIND:
            return [name_of(kind), *BY_KIND[kind](self, value)]
        for base, name, describe in BY_BASE:
            if isinstance(value, base):
                return [name, *describe(self, value)]
        # 4. Everybody's own objects: what they hold says what they are.
        return ["object", *self.parts(value)]

    def _element(self, item: Any) -> str:
        """An element of a set; in sets too deep within sets an object has no description, so that cycles end."""
        if _is_constant(item):
            return repr(constant_parts(item))
        if self._depth == _DEPTH:
            return process_unique_token(item)
        weights, depth = self._weights.values(), self._depth + 1
        inner = ObjectWalk(weights, self._replacements, self._strict, depth)
        inner._folders = self._folders
        return inner.digest(item)

    def _tensor(self, value: torch.Tensor) -> list[Any]:
        form = [[str(size) for size in value.shape], str(value.dtype)]
        if id(value) in self._weights:
            return ["weight", *form]
        try:
            parts = content_parts(value)
        except ContentlessError:
            if self._strict:
                raise
            parts = [process_unique_token(value)]
        return [*form, *(part if isinstance(part, str) else self.of(part) for part in parts)]

    def _module(self, value: torch.nn.Module) -> list[Any]:
        # torch.compile wraps a module, which counts as what it wraps: compiling changes nothing that it computes.
        if isinstance(vars(value).get("_modules", {}).get("_orig_mod"), torch.nn.Module):
            return ["compiled", self.of(value._orig_mod)]
        # What a traced or scripted module computes is in its code; its class is torch's, and says nothing of it.
        excluded_names = _MODULE_PARTS
        code: list[Any] = []
        if isinstance(value, torch.fx.GraphModule):
            call_targets = (node.target for node in value.graph.nodes if node.op == "call_function")
            excluded_names, code = _MODULE_PARTS | _TRACED_PARTS, [value.code, *self.all(call_targets)]
        elif isinstance(value, torch.jit.ScriptModule):
            code = [str(getattr(value, "code", ""))]
        # Of the rest, parameters, buffers, modules and hooks count by name; other attributes as those of any object.
        return [
            self.of(type(value)),
            code,
            self.pairs(value._modules.items()),
            self.pairs(value._parameters.items()),
            self.pairs(value._buffers.items()),
            self._hooks(value),
            self.state(value, excluded_names),
        ]

    def _hooks(self, value: torch.nn.Module) -> list[Any]:
        before = [
            [self.of(hook), name in value._forward_pre_hooks_with_kwargs]
            for name, hook in value._forward_pre_hooks.items()
        ]
        after = [
            [self.of(hook), name in value._forward_hooks_with_kwargs]
            for name, hook in value._forward_hooks.items()
        ]
        return [before, after]

    def parts(self, value: Any) -> list[Any]:
        """Returns what an object holds; of a release, what pickling it would store."""
        kind = type(value)
        own = release_of(kind.__module__) is None or id(value) in self._replacements or _says_its_key(value)
        if own and not hides_state(kind):
            return [self.of(kind), self.state(value), *self._items(value)]
        hidden_parts = self._hidden_parts(value)
        if hidden_parts is not None and not own:
            return [self.of(kind), *hidden_parts]
        if hidden_parts is None and hides_state(kind):
            hidden_parts = [process_unique_token(value)]
        return [self.of(kind), self.state(value), *self._items(value), *(hidden_parts or ())]

    def _hidden_parts(self, value: Any) -> list[Any] | None:
        """What an object holds out of sight, in a block of memory or as pickling tells it; None: nobody can tell."""
        parts = buffer_parts(value)
        if parts is not None:
            return parts
        parts = pickle_parts(value)
        return None if parts is None else self.all(parts)

    def _items(self, value: Any) -> Iterator[Any]:
        """What an object that is also a container holds."""
        if isinstance(value, dict):
            yield self.pairs(dict.items(value))
        elif isinstance(value, (list, tuple)):
            yield self.all(value)
        elif isinstance(value, (set, frozenset)):
            yield self.elements(value)
        else:
            yield plain_text(value)


def _says_its_key(value: Any) -> bool:
    return isinstance(value, ModelWrapper) and value.key_parts() is not None


def _is_constant(value: Any) -> bool:
    if type(value) in (tuple, frozenset):
        return all(_is_constant(item) for item in value)
    return type(value) in _PLAIN

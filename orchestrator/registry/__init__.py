"""Names for stages, backends and pipelines, so that a graph, a device string or a command can use them.

A plugin knows a class, a user knows a name; a registry joins the two. Three words:

entry
    A name and its *target*: an import path ``"package.module:Attribute"`` that is imported when the
    entry is loaded, or the object itself. Adding an entry imports nothing, so a hundred names are free.
owner
    The plugin that added an entry, with its distribution and version. Every error names it, because
    the reader of the error is seldom the author of the plugin.
staging
    A plugin fills registries of its own, which are adopted as one: either all of its names become
    known or none does, and a plugin that fails half-way leaves nothing behind.

There is one registry for each kind of name, all typed; :class:`Registry` holds the three.
"""

from __future__ import annotations

from orchestrator.registry.entry import DISABLE_VARIABLE, BrokenPlugin, Owner, RegistryEntry
from orchestrator.registry.names import (
    BackendRegistry,
    NameRegistry,
    PipelineRegistry,
    Registry,
    StageRegistry,
)

__all__ = [
    "DISABLE_VARIABLE",
    "BackendRegistry",
    "BrokenPlugin",
    "NameRegistry",
    "Owner",
    "PipelineRegistry",
    "Registry",
    "RegistryEntry",
    "StageRegistry",
]

"""How to write a plugin.

A plugin is a module (or any object) with functions marked :data:`hookimpl`. Each is named like one of
the hooks in :mod:`orchestrator.plugin.hookspecs` and takes that hook's parameters, or fewer of them::

    # my_stages/plugin.py
    from orchestrator import hookimpl

    @hookimpl
    def orchestrator_register_stages(registry):
        registry.add("whisper.encoder", "my_stages.whisper:Encoder", summary="Log-mel frames to features")

    @hookimpl
    def orchestrator_register_pipelines(registry):
        registry.add("whisper", "my_stages.whisper:build", summary="Speech to text")

The plugin is found through an entry point of its distribution, in the group ``orchestrator``. The
entry point's name is the plugin's name::

    # pyproject.toml
    [project.entry-points.orchestrator]
    my-stages = "my_stages.plugin"

Once that distribution is installed, ``orchestrator list`` shows the names, ``pipeline.add("encode",
"whisper.encoder")`` uses the stage, and ``orchestrator run whisper`` runs the pipeline.

Rules that keep every command fast and one plugin's faults away from the others:

1. The plugin's module is imported whenever names are looked up, so it imports nothing heavy. Targets
   are import paths for that reason: ``my_stages.whisper`` is imported when the stage is used.
2. Names are unique over all plugins. Begin yours with a word of your own.
3. Functions whose name begins with ``orchestrator_`` are taken for hooks: one that is misspelt, or
   that lacks the marker, is an error and never silently ignored.
4. A plugin that fails, at import or in a hook that registers, is left out whole; ``orchestrator list``
   shows why. Others work on. ``ORCHESTRATOR_DISABLE_PLUGINS=a,b`` leaves out plugins by name.
5. An observer that raises is logged once (logger ``orchestrator``) and never breaks a request.

To register in a running program, e.g. in a notebook: ``default_manager().register(plugin, "name")``.
"""

from __future__ import annotations

import pluggy

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "orchestrator"
"""The entry-point group, and the prefix of every hook's name."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as the implementation of the hook it is named after."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks the declaration of a hook; for :mod:`orchestrator.plugin.hookspecs` only."""

"""Plugins: how stages, backends and pipelines that others ship are found, checked and kept apart.

Authors read :mod:`orchestrator.plugin.marker`, which is the tutorial, and
:mod:`orchestrator.plugin.hookspecs`, which declares the hooks.
"""

from __future__ import annotations

from orchestrator.plugin.manager import PluginManager, default_manager
from orchestrator.plugin.marker import hookimpl
from orchestrator.plugin.observer import Observer

__all__ = ["Observer", "PluginManager", "default_manager", "hookimpl"]

"""Fixtures for tests of stages, backends and pipelines; pytest loads this module where the core is installed.

    null_record        a :class:`~orchestrator.testing.Record` of all that null devices do during the test
    isolated_plugins   a plugin manager with the core's backends and the testing kit, and nothing that is installed
    assert_same        compares results, see :func:`~orchestrator.testing.assert_same`

Nothing heavy is imported before a test asks for it, since every pytest run of an environment loads this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from orchestrator.plugin import PluginManager
    from orchestrator.testing.record import Record

pytest.register_assert_rewrite(
    "orchestrator.testing.backend_contract",
    "orchestrator.testing.compare",
    "orchestrator.testing.stage_contract",
)


def make_plugins() -> PluginManager:
    """Makes a plugin manager with the core's backends and the testing kit, and nothing that is installed."""
    import orchestrator.backends
    import orchestrator.testing.plugin
    from orchestrator.plugin import PluginManager

    manager = PluginManager(load_entry_points=False)
    manager.register(orchestrator.backends, "core")
    manager.register(orchestrator.testing.plugin, "testing")
    return manager


@pytest.fixture
def null_record() -> Iterator[Record]:
    """All that null devices do during the test, as a :class:`~orchestrator.testing.Record`."""
    from orchestrator.testing.record import recording

    with recording() as record:
        yield record


@pytest.fixture
def isolated_plugins() -> PluginManager:
    """A plugin manager with the core's backends and the testing kit; register others with ``.register(module)``."""
    return make_plugins()


@pytest.fixture(name="assert_same")
def _assert_same() -> Callable[..., None]:
    """The function :func:`orchestrator.testing.assert_same`."""
    from orchestrator.testing.compare import assert_same

    return assert_same

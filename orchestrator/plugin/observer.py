"""Call observers, and let none of them harm the request that it observes.

The runner asks for observers when a session is loaded; if nobody listens, the path it then takes holds
no trace of them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

from orchestrator.plugin.hookspecs import HOOKS
from orchestrator.registry import Owner

__all__ = ["Observer"]

_log = logging.getLogger("orchestrator")


class Observer:
    """One plugin's implementation of an observing hook; call it with the hook's parameters by name.

    An exception of the plugin is logged the first time, with its traceback, and dropped; the observer
    goes on being called. There is no lock: when two threads fail at once, both may be logged.

    Args:
        hook: The hook's name.
        owner: The plugin.
        function: Its implementation.
        logged_failures: The ``(plugin, hook)`` pairs whose failure was logged, shared by a manager's observers.
    """

    __slots__ = ("_function", "_logged_failures", "_parameters", "hook", "owner")

    def __init__(
        self,
        hook: str,
        owner: Owner,
        function: Callable[..., object],
        logged_failures: set[tuple[Owner, str]],
    ) -> None:
        self.hook = hook
        self.owner = owner
        self._function = function
        parameters = inspect.signature(function).parameters
        self._parameters = tuple(name for name in HOOKS[hook] if name in parameters)
        self._logged_failures = logged_failures

    def __call__(self, **objects: object) -> None:
        """Passes on those of the hook's parameters that the implementation takes."""
        try:
            self._function(**{name: objects[name] for name in self._parameters})
        except Exception:
            if (self.owner, self.hook) not in self._logged_failures:
                self._logged_failures.add((self.owner, self.hook))
                _log.exception(
                    "%s failed in %s; further failures of it are not logged. The request goes on.",
                    self.owner,
                    self.hook,
                )

    def __repr__(self) -> str:
        """Returns hook and owner, for a debugger."""
        return f"<Observer {self.hook} of {self.owner}>"

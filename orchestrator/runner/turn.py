"""Taking turns: one request at a time, on devices with one output buffer for each program."""

from __future__ import annotations

import threading

from orchestrator.errors import InputError

__all__ = ["Turn"]


class Turn:
    """A lock for whole requests.

    Other threads wait. The thread that holds it, in a stage or a listener that runs a request of the same session,
    would wait for itself, or overwrite what the outer request is still to read; it is refused.

    Args:
        name: The pipeline.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._holder = 0

    def __enter__(self) -> None:
        """Waits for the other threads' requests.

        Raises:
            InputError: This thread is in a request already.
        """
        own = threading.get_ident()
        if self._holder == own:
            raise InputError(
                f"A request of {self._name!r} runs in this thread already, and another one inside it would overwrite "
                f"what it reads: each program has one output buffer. Run it afterwards, or load the plan twice.",
                pipeline=self._name,
            )
        self._lock.acquire()
        self._holder = own

    def __exit__(self, *_: object) -> None:
        self._holder = 0
        self._lock.release()

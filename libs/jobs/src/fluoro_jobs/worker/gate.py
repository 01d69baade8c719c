"""Closes while a store that tasks need does not answer, so that none is taken only to fail."""

import threading
from collections.abc import Callable
from typing import Final

import structlog
from fluoro_telemetry import metrics
from fluoro_telemetry.http import Health

log = structlog.get_logger(__name__)

OPEN_SECONDS: Final = 5
"""From one look to the next while all is well.

An attempt that a store fails, or a missed heartbeat, asks for one at once.
"""
CLOSED_SECONDS: Final = 1
"""The same while something is wrong, or has just been reported to be."""


class Gate(threading.Thread):
    """Whether this process takes tasks."""

    def __init__(
        self, health: Health, needs: tuple[str, ...], on_change: Callable[[], None]
    ) -> None:
        """needs: the checks of `health` that must pass.

        on_change: called in this thread after it opened or closed.
        """
        super().__init__(name="gate", daemon=True)
        self.is_open = True
        self._health = health
        self._needs = needs
        self._on_change = on_change
        self._woken = threading.Event()
        self._closing = False

    def look(self) -> None:
        """Something may be wrong. Never blocks."""
        self._woken.set()

    def close(self) -> None:
        """Ends the thread."""
        self._closing = True
        self._woken.set()

    def run(self) -> None:
        """Looks until closed."""
        while not self._closing:
            self._health.beat()
            suspicious = self._woken.is_set()
            self._woken.clear()
            _, told = self._health.readiness()
            missing = [name for name in self._needs if not told["checks"][name]["ok"]]
            if self.is_open == bool(missing):
                self._turn(missing)
            # A check may be a second old: what was reported to be wrong is looked at again after
            # that.
            self._woken.wait(OPEN_SECONDS if self.is_open and not suspicious else CLOSED_SECONDS)

    def _turn(self, missing: list[str]) -> None:
        self.is_open = not missing
        metrics.WORKER_PAUSED.set(bool(missing))
        if missing:
            log.warning("worker_paused", missing=missing)
        else:
            log.info("worker_resumed")
        self._on_change()

"""Tells the ledger which models this process has, so that others can ask for them."""

import threading
import time
from collections.abc import Iterable
from functools import cached_property
from typing import Final, Protocol
from uuid import UUID

from fluoro.v1.model_pb2 import Model

from fluoro_jobs.ledger import models
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.worker.body import load

REPEAT_SECONDS: Final = 60
"""How often all are announced, changed or not: the ledger forgets workers that were away long."""


class Inventory(Protocol):
    """The models of a process."""

    changed: threading.Event
    """Set whenever one has come, gone or changed its state."""

    def told(self) -> Iterable[Model]:
        """Each model, with one deployment: that of this process."""


class InventoryReports:
    """What one worker process announces. Used by its keeper alone."""

    def __init__(self, worker: UUID, inventory: str) -> None:
        """inventory: as in `fluoro_jobs.worker.body.Plan`."""
        self._worker = worker
        self._path = inventory
        self._due = 0.0

    @cached_property
    def _inventory(self) -> Inventory | None:
        """Asked for when it is first needed: by then the models are open."""
        found: Inventory | None = load(self._path)() if self._path else None
        return found

    def tell(self, connection: LedgerConnection) -> None:
        """Tells the ledger what it does not know. After a beat, which lists the worker."""
        inventory = self._inventory
        if inventory is None:
            return
        # Announcing costs a statement, and mostly nothing has changed.
        if not inventory.changed.is_set() and time.monotonic() < self._due:
            return
        # Before it is read: what changes from here on is announced at the next beat.
        inventory.changed.clear()
        self._due = 0.0  # again at the next beat, if this one fails
        # False if the ledger does not list this worker (yet): told again at the next beat.
        if models.announce(connection, self._worker, inventory.told()):
            self._due = time.monotonic() + REPEAT_SECONDS

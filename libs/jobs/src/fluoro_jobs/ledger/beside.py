"""A statement that goes to the ledger along with another one: one transaction, one exchange."""

from collections.abc import Mapping
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from fluoro_jobs.ledger.connection import LedgerConnection, cursors_of, fetch_one


class Beside:
    """Goes along once at most.

    It must wait for no row: it runs while the other one holds a job's row, and two that waited
    for each other's rows would wait for ever.

    sent: it may have been done. in_doubt: whether it was is not known.
    """

    def __init__(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Sends nothing yet."""
        self._own = statement, parameters
        self.sent = False
        self._row: TupleRow | None = None
        self.in_doubt = False

    @property
    def row(self) -> TupleRow | None:
        """What it returned, once that is durable."""
        return None if self.in_doubt else self._row

    def fetch(
        self, connection: LedgerConnection, statement: str, parameters: Mapping[str, Any]
    ) -> TupleRow | None:
        """What `fetch_one` does with this statement, and its own beside it.

        In a transaction that the caller has begun it is in doubt until `settle`.
        """
        if self.sent:
            return fetch_one(connection, statement, parameters)
        self.sent = self.in_doubt = True
        first, second = cursors_of(connection)
        # In autocommit, what a pipeline sends before it synchronizes is one transaction.
        with connection.pipeline():
            first.execute(statement, parameters)
            second.execute(*self._own)
        self._row = second.fetchone()
        if connection.info.transaction_status is TransactionStatus.IDLE:
            self.settle()
        return first.fetchone()

    def settle(self) -> None:
        """Its transaction is over, and what it did durable."""
        self.in_doubt = False

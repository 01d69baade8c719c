"""A statement that goes to the ledger along with another one: one transaction, one exchange."""

from collections.abc import Mapping
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from fluoro_jobs.ledger.connection import LedgerConnection, Statement, fetch_together


class Beside:
    """Goes along once at most.

    It must wait for no row: it runs while the other one holds a job's row, and two that waited
    for each other's rows would wait for ever.

    sent: it may have been done. in_doubt: whether it was is not known.
    """

    def __init__(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Sends nothing yet."""
        self._own: Statement = statement, parameters
        self.sent = False
        self._row: TupleRow | None = None
        self.in_doubt = False

    @property
    def row(self) -> TupleRow | None:
        """What it returned, once that is durable."""
        return None if self.in_doubt else self._row

    def fetch(self, connection: LedgerConnection, *statements: Statement) -> list[TupleRow | None]:
        """What `fetch_together` does with these statements, and its own after them.

        In a transaction that the caller has begun it is in doubt until `settle`.
        """
        # A transition that loses its first try fetches again. This statement may be durable by
        # then, and must not run twice.
        if self.sent:
            return fetch_together(connection, *statements)
        # In doubt before it is sent: an error from here on does not say whether the server carried
        # it out.
        self.sent = self.in_doubt = True
        *rows, self._row = fetch_together(connection, *statements, self._own)
        # In autocommit the exchange was the whole transaction, so whatever it returned is durable.
        if connection.info.transaction_status is TransactionStatus.IDLE:
            self.settle()
        return rows

    def settle(self) -> None:
        """Its transaction is over, and what it did durable."""
        self.in_doubt = False

"""A statement that goes to the ledger along with another one: one transaction, one exchange."""

from collections.abc import Mapping
from typing import Any

from psycopg.rows import TupleRow

from fluoro_jobs.ledger.connection import LedgerConnection, cursors_of, fetch_one


class Beside:
    """Goes along once at most.

    It must wait for no row: it runs while the other one holds a job's row, and two that waited
    for each other's rows would wait for ever.

    row: what it returned. sent: it may have been done. in_doubt: whether it was is not known.
    """

    def __init__(self, statement: str, parameters: Mapping[str, Any]) -> None:
        """Sends nothing yet."""
        self._own = statement, parameters
        self.sent = False
        self.row: TupleRow | None = None
        self.in_doubt = False

    def fetch(
        self, connection: LedgerConnection, statement: str, parameters: Mapping[str, Any]
    ) -> TupleRow | None:
        """What `fetch_one` does with this statement, and its own beside it."""
        if self.sent:
            return fetch_one(connection, statement, parameters)
        self.sent = self.in_doubt = True
        first, second = cursors_of(connection)
        # In autocommit, what a pipeline sends before it synchronizes is one transaction.
        with connection.pipeline():
            first.execute(statement, parameters)
            second.execute(*self._own)
        self.row, self.in_doubt = second.fetchone(), False
        return first.fetchone()

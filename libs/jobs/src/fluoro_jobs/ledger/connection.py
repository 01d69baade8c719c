"""Connections to the ledger, and what to say when there is none."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from fluoro_jobs.errors import FluoroError, Reason

log = structlog.get_logger(__name__)


LedgerConnection = Connection[TupleRow]
"""What the ledger's functions take, in autocommit."""


def _configure(connection: LedgerConnection) -> None:
    """Every statement of the ledger is made for an index, and has the same best plan whatever its arguments.

    A plan is made once a connection: planning costs more than running. It never is a walk through a whole table, which PostgreSQL
    prefers while tables are small and would keep on doing while they grow. And it is not compiled, which pays for long queries alone and
    would befall the few that have no index to go by: PostgreSQL before 18 takes those for endless.
    """
    connection.execute("SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off")


class Ledger:
    """A pool of connections in autocommit. Broken ones are replaced; a restart of PostgreSQL needs none here."""

    def __init__(self, database_url: str, *, max_connections: int = 4, wait_seconds: float = 5) -> None:
        """wait_seconds: how long `connection()` waits for a free or a new connection before it gives up."""
        self._wait_seconds = wait_seconds
        self._pool: ConnectionPool[LedgerConnection] = ConnectionPool(
            database_url,
            min_size=0,
            max_size=max_connections,
            open=False,
            kwargs={"autocommit": True, "connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3},
            reconnect_timeout=wait_seconds,
            configure=_configure,
        )
        self._pool.open()

    @contextmanager
    def connection(self) -> Iterator[LedgerConnection]:
        """A connection in autocommit for the duration of the block. FluoroError LEDGER_UNAVAILABLE when PostgreSQL cannot be reached."""
        try:
            connection = self._pool.getconn(self._wait_seconds)
            try:
                yield connection
            finally:
                self._pool.putconn(connection)
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            log.warning("ledger_unavailable", exception=type(error).__qualname__)
            self._pool.check()  # the others are likely broken too; found now, they do not cost a call each
            raise FluoroError(Reason.LEDGER_UNAVAILABLE, "PostgreSQL cannot be reached. Try again.") from error

    def check(self) -> None:
        """Raises FluoroError LEDGER_UNAVAILABLE unless the ledger answers and has been migrated."""
        try:
            with self.connection() as connection:
                connection.execute("SELECT FROM jobs LIMIT 0")
        except psycopg.Error as error:
            log.error("ledger_unusable", exception=type(error).__qualname__)
            raise FluoroError(Reason.LEDGER_UNAVAILABLE, "The database cannot be used; has it been migrated?") from error

    def close(self) -> None:
        """Closes all connections."""
        self._pool.close()

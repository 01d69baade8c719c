"""Connections to the ledger, the time they may take, and what to say when there is none.

A store that is slow is worse than one that is dead, so nothing here waits without an end:

- A statement has a deadline in the server (`statement_timeout`) and, for servers that do not answer
  at all, a later one here.
- A transaction that idles, because its process was stopped, is ended by the server; what waited for
  its locks goes on.
- Once PostgreSQL does not answer, callers are refused at once. One thread asks it until it answers
  again, and starts a new pool.

A transaction pooler may stand in between. It is found out, and has to set up its sessions itself.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

import psycopg
import structlog
from psycopg import Connection, Cursor, Pipeline
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.outages import outage, reason_of

log = structlog.get_logger(__name__)
# A pool that is given up is not waited for; its threads end by themselves when what they try to
# connect to lets them.
logging.getLogger("psycopg.pool").addFilter(
    lambda record: not str(record.msg).startswith("couldn't stop thread")
)


LedgerConnection = Connection[TupleRow]
"""What the ledger's functions take, in autocommit."""
Statement = tuple[str, Mapping[str, Any]]
"""Text and parameters."""
MOST_TOGETHER: Final = 3
"""Most statements that `fetch_together` takes."""

STATEMENT_SECONDS: Final = 10.0
"""How long a statement may take before its connection is given up.

The server ends it a little sooner.
"""
IDLE_SECONDS: Final = 2
"""A connection that was used within this time is taken to work."""
ASK_SECONDS: Final = 3
"""How long a connection that idled may take to answer before it is used.

One that was cut off meanwhile costs this, and not a statement's deadline.
"""
CONNECT_SECONDS: Final = 4
"""How long a connection to one host may take."""
LOCK_SECONDS: Final = 5
"""How long a statement waits for a locked row. Longer than a transaction may idle."""
IDLE_IN_TRANSACTION_SECONDS: Final = 3
"""A process decides within milliseconds what to write.

One that takes this long inside a transaction was stopped or cut off.
"""
PROBE_SECONDS: Final = 0.5
"""Pause between two tries at a PostgreSQL that did not answer; jittered, because many ask."""
DEFAULT_PORT: Final = "5432"
REPLACE_SECONDS: Final = 1.0
"""Least time between two pools, lest each refused write makes a new connection."""

SESSION: Final[Mapping[str, str | int]] = {
    # Elsewhere the first and the last hours that a caller may name lie outside the years that
    # Python knows.
    "timezone": "UTC",
    # A plan is made once a connection: planning costs more than running.
    "plan_cache_mode": "force_generic_plan",
    # PostgreSQL prefers a walk through a whole table while tables are small, and would keep on
    # walking while they grow.
    "enable_seqscan": "off",
    # It would rather read an index up to the row that is wanted than look that up.
    "enable_mergejoin": "off",
    # Compiling pays for long queries alone. It would befall the few that have no index to go by:
    # PostgreSQL before 18 takes those for endless.
    "jit": "off",
    # Nor is starting processes worth it. It would befall statements about one job while PostgreSQL
    # does not know yet how many rows a job has.
    "max_parallel_workers_per_gather": "0",
    "statement_timeout": round(900 * STATEMENT_SECONDS),
    "lock_timeout": 1000 * LOCK_SECONDS,
    "idle_in_transaction_session_timeout": 1000 * IDLE_IN_TRANSACTION_SECONDS,
}
"""Settings of every session; times in milliseconds.

Every statement of the ledger is made for an index, and has the same best plan whatever its
arguments.
"""

_LOOK: Final = "SELECT name, current_setting(name) FROM unnest(%s::text[]) name"


class StalledError(psycopg.OperationalError):
    """PostgreSQL did not answer within the deadline.

    Whether it did what it was asked is unknown.
    """


class _Bounded(LedgerConnection):
    """A connection on which no statement waits for ever."""

    seconds: float = STATEMENT_SECONDS
    used_time: float = 0
    """When it was last given back, by the monotonic clock; 0 for a new one."""

    @cached_property
    def kept_cursors(self) -> tuple[Cursor[TupleRow], ...]:
        """For `_cursors_of`."""
        return tuple(self.cursor() for _ in range(MOST_TOGETHER))

    @contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        """As psycopg has it, and the connection can be used after an error, or is closed."""
        try:
            with super().pipeline() as pipeline:
                yield pipeline
        except psycopg.Error:
            # After a statement that fails PostgreSQL skips the rest. psycopg takes what it was to
            # prepare there for prepared, for ever, unless a rollback makes it forget.
            # Inside a caller's transaction the caller's own rollback does the same.
            if self.info.transaction_status is TransactionStatus.IDLE:
                with self.transaction(force_rollback=True):
                    pass
            raise
        except IndexError as error:
            # psycopg's own: it counts on one answer to each message. Where a commit fails there are
            # two, and poolers tell of the end of a server beside what that said itself.
            self.close()
            raise psycopg.OperationalError("more answers than questions") from error

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        """Drives one exchange with the server.

        StalledError after the deadline; the connection is closed then.
        """
        seconds = self.seconds if timeout is None else timeout
        deadline = time.monotonic() + seconds
        try:
            return super().wait(gen, interval, seconds)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and time.monotonic() >= deadline:
                # An answer that comes later would be taken for that of the next statement.
                self.pgconn.finish()
                raise StalledError(f"no answer within {seconds:g} s") from error
            raise


def fetch_one(
    connection: LedgerConnection, statement: str, parameters: Mapping[str, Any]
) -> TupleRow | None:
    """The first row that a statement returns, on a kept cursor; None if it returns none."""
    return _cursors_of(connection)[0].execute(statement, parameters).fetchone()


def fetch_together(connection: LedgerConnection, *statements: Statement) -> list[TupleRow | None]:
    """The first row that each of up to MOST_TOGETHER statements returns, in one exchange.

    In autocommit they are one transaction, and each sees what was committed before it began.
    """
    cursors = _cursors_of(connection)
    # In autocommit, what a pipeline sends before it synchronizes is one transaction.
    with connection.pipeline():
        done = [
            cursor.execute(*statement)
            for cursor, statement in zip(cursors, statements, strict=False)
        ]
    return [cursor.fetchone() for cursor in done]


def _cursors_of(connection: LedgerConnection) -> tuple[Cursor[TupleRow], ...]:
    """For statements that run with every task: a new cursor costs a third of such a statement."""
    # Tests and tools pass plain connections, which have no cursors to keep.
    if not isinstance(connection, _Bounded):
        return tuple(connection.cursor() for _ in range(MOST_TOGETHER))
    return connection.kept_cursors


class Ledger:
    """A pool of connections in autocommit.

    Broken ones are replaced; a restart of PostgreSQL needs none here. Thread-safe.
    """

    def __init__(
        self,
        database_url: str,
        *,
        max_connections: int = 4,
        wait_seconds: float = 5,
        statement_seconds: float = STATEMENT_SECONDS,
    ) -> None:
        """wait_seconds: how long `connection()` waits for a free or a new connection.

        statement_seconds: deadline of each statement.
        """
        self._database_url = database_url
        self._max_connections = max_connections
        self._wait_seconds = wait_seconds
        self._statement_seconds = statement_seconds
        # Apart from the pool's own wait, which is for PostgreSQL alone.
        self._places = threading.BoundedSemaphore(max_connections)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._away = False
        self._pool = self._new_pool()
        self._pool_since = time.monotonic()

    @contextmanager
    def connection(self) -> Iterator[LedgerConnection]:
        """A connection in autocommit for the duration of the block.

        FluoroError with a reason of LEDGER_OUTAGES: LEDGER_UNAVAILABLE at once while PostgreSQL is
        known not to answer.
        """
        # While PostgreSQL is away nobody queues for a place: a thousand callers would each wait out
        # the timeout, and find it away then.
        if self._away or not self._places.acquire(timeout=self._wait_seconds):
            raise outage(Reason.LEDGER_UNAVAILABLE)
        pool = self._pool
        try:
            pool, connection = self._take()
            try:
                yield connection
            finally:
                # The connection goes back whatever happened. The pool checks its state and drops a
                # broken one.
                connection.used_time = time.monotonic()
                pool.putconn(connection)
        except psycopg.Error as error:
            # Judged in the thread that met the error, before the caller sees it: its next try
            # already finds a new pool, or is refused at once.
            reason = self._judge(pool, error)
            if reason is None:
                raise
            raise outage(reason) from error
        finally:
            self._places.release()

    def check(self) -> None:
        """FluoroError with a reason of LEDGER_OUTAGES unless the ledger can be used.

        It must answer, take writes, and have been migrated.
        """
        try:
            with self.connection() as connection:
                # Only a read of a table shows that the schema is there, and only the setting that
                # this host is not a standby; a plain SELECT would pass on both.
                row = connection.execute(
                    "SELECT current_setting('transaction_read_only')::bool,"
                    " EXISTS (SELECT FROM jobs)"
                ).fetchone()
        except psycopg.Error as error:
            log.error("ledger_unusable", exception=type(error).__qualname__)
            raise FluoroError(
                Reason.LEDGER_UNAVAILABLE, "The database cannot be used; has it been migrated?"
            ) from error
        if row is None or row[0]:
            raise outage(Reason.LEDGER_READ_ONLY)

    def close(self) -> None:
        """Closes all connections."""
        self._closing.set()
        self._pool.close()

    def _take(self) -> "tuple[ConnectionPool[_Bounded], _Bounded]":
        """A connection that works, as far as one can know.

        StalledError if one that idled does not answer; broken ones cost nothing.
        """
        while True:
            pool = self._pool
            if self._away:
                raise PoolClosed
            try:
                connection = pool.getconn(self._wait_seconds)
            except PoolClosed:
                if pool is self._pool:
                    raise
                continue  # it was replaced between the two lines
            # A connection that is new or was just used is trusted: asking first would add a round
            # trip to every call of a busy process.
            if not connection.used_time or time.monotonic() - connection.used_time < IDLE_SECONDS:
                return pool, connection
            try:
                # A connection that was cut off swallows the question too. That costs three seconds
                # instead of ten.
                connection.seconds = ASK_SECONDS
                connection.execute("SELECT")
                connection.seconds = self._statement_seconds
            except StalledError:
                pool.putconn(connection)
                raise
            except psycopg.OperationalError:
                pool.putconn(connection)  # the pool throws it away
            else:
                return pool, connection

    def _judge(self, pool: "ConnectionPool[_Bounded]", error: psycopg.Error) -> Reason | None:
        """The reason to give, and what follows from the error for later callers.

        None for a bug: nothing follows.
        """
        reason = reason_of(error)
        if reason is not None:
            log.warning("ledger_refused", reason=reason, exception=type(error).__qualname__)
        if reason is Reason.LEDGER_READ_ONLY:
            # Another of the URL's hosts may be the one that takes writes by now.
            self._replace(pool)
        # A silent server costs everybody a deadline. A refused connection does not, so the pool may
        # go on trying there.
        elif isinstance(error, (StalledError, PoolTimeout)):
            self._refuse(pool)
        elif reason is Reason.LEDGER_UNAVAILABLE:
            # The others are probably broken too. Replaced now, they do not cost a call each.
            pool.drain()
        return reason

    # --- when PostgreSQL does not answer ---

    def _refuse(self, pool: "ConnectionPool[_Bounded]") -> None:
        """Refuses all callers from now on, until PostgreSQL answers."""
        with self._lock:
            if self._away or pool is not self._pool or self._closing.is_set():
                return  # known already, or news of before
            threading.Thread(
                target=self._probe, name="ledger-probe", daemon=True
            ).start()  # if it cannot start, nobody is refused for good
            self._away = True
        log.error("ledger_away")
        pool.close(timeout=0)  # ends the wait of those who want a connection

    def _probe(self) -> None:
        """Asks until PostgreSQL answers.

        The first time at once: it may have been one connection alone that was cut off.
        """
        while (pool := self._pool_if_it_answers()) is None:
            if self._closing.wait(PROBE_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311 - spreads load, guards nothing
                return
        with self._lock:
            self._pool, self._pool_since, self._away = pool, time.monotonic(), False
        if self._closing.is_set():
            self._pool.close()
        log.info("ledger_back")

    def _pool_if_it_answers(self) -> "ConnectionPool[_Bounded] | None":
        try:
            with _Bounded.connect(self._database_url, **self._options()) as connection:
                connection.seconds = CONNECT_SECONDS
                connection.execute("SELECT")
                self._prefer(connection)
            return self._new_pool()
        except psycopg.Error:
            return None
        except Exception as error:  # noqa: BLE001 - no thread to be had, say: without this one all callers were refused for good
            log.error("ledger_not_asked", exception=type(error).__qualname__)
            return None

    def _replace(self, pool: "ConnectionPool[_Bounded]") -> None:
        with self._lock:
            # Every caller that met the standby comes here. The first has replaced the pool already,
            # and a failover that goes on must not make pools in a loop.
            if pool is not self._pool or time.monotonic() - self._pool_since < REPLACE_SECONDS:
                return
            self._pool, self._pool_since = self._new_pool(), time.monotonic()
        pool.close(timeout=0)

    # --- making connections ---

    def _new_pool(self) -> "ConnectionPool[_Bounded]":
        pool = ConnectionPool(
            lambda: self._database_url,
            connection_class=_Bounded,
            # Connections are made when a caller needs one: a pool that fills itself would go on
            # trying a PostgreSQL that is away.
            min_size=0,
            max_size=self._max_connections,
            open=False,
            kwargs=self._options(),
            reconnect_timeout=self._wait_seconds,
            configure=self._configure,
        )
        pool.open()
        return pool

    def _prefer(self, connection: _Bounded) -> None:
        """Makes new connections try this one's host first.

        A lost host that swallows packets would cost each of them CONNECT_SECONDS.
        """
        self._database_url = _beginning_with(
            connection.info.host, str(connection.info.port), self._database_url
        )

    def _options(self) -> dict[str, Any]:
        return {
            "autocommit": True,
            "connect_timeout": CONNECT_SECONDS,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # What was sent and is not acknowledged: keepalives are silent meanwhile, and TCP alone
            # goes on for a quarter of an hour.
            "tcp_user_timeout": round(self._statement_seconds * 1000),
        }

    def _configure(self, connection: _Bounded) -> None:
        """Gives a new connection the settings of SESSION, or sees that a pooler gave them.

        The server's deadlines are shorter than ours, so that a server that answers says what was
        wrong, and the connection stays.
        """
        connection.seconds = self._statement_seconds
        self._prefer(connection)
        if through_pooler(connection):
            # Each statement may run in another session, which knows nothing of what was prepared.
            connection.prepare_threshold = None
            _look_at_sessions(connection)
            return
        settings = {
            **SESSION,
            "statement_timeout": round(900 * self._statement_seconds),
            "lock_timeout": round(1000 * min(LOCK_SECONDS, self._statement_seconds / 2)),
            # So that the server too lets go of a client that is cut off, and of the locks it may
            # hold.
            "tcp_user_timeout": round(1000 * self._statement_seconds),
            "client_connection_check_interval": 2000,
        }
        connection.execute(_set(settings))


def _set(settings: Mapping[str, str | int]) -> str:
    return "; ".join(f"SET {name} = {value}" for name, value in settings.items())


CONNECT_QUERY: Final = _set(SESSION)
"""What a transaction pooler has to run in each session that it opens."""


def through_pooler(connection: LedgerConnection) -> bool:
    """Whether a pooler answers: the process it calls itself is not the one that runs statements."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row != (connection.info.backend_pid,)


def _look_at_sessions(connection: _Bounded) -> None:
    """OperationalError unless the pooler sets up its sessions.

    What a client sets would hold in whichever session its next statement finds, and bind others.
    """
    # The exception: poolers keep the time zone of each client.
    connection.execute(f"SET timezone = {SESSION['timezone']}")
    rows = connection.execute(_LOOK, (list(SESSION),)).fetchall()
    wrong = sorted(name for name, setting in rows if not _holds(SESSION[name], setting))
    if wrong:
        log.error(
            "pooler_not_set_up",
            settings=wrong,
            meaning="set connect_query as in deploy/k8s/pgbouncer.ini",
        )
        raise psycopg.OperationalError("The pooler does not set up its sessions.")


def _holds(wanted: str | int, setting: str) -> bool:
    """A deadline may be another one, of a release before or after this; but there must be one."""
    return setting != "0" if isinstance(wanted, int) else setting == wanted


def _beginning_with(host: str, port: str, conninfo: str) -> str:
    """The same hosts, in another order."""
    parameters = conninfo_to_dict(conninfo)
    hosts = str(parameters.get("host", "")).split(",")
    ports = str(parameters.get("port", "")).split(",")
    # With one host there is nothing to order. A list of addresses would have to be reordered along
    # with the hosts.
    if len(hosts) == 1 or "hostaddr" in parameters:
        return conninfo
    pairs = list(zip(hosts, ports if len(ports) == len(hosts) else ports * len(hosts), strict=True))
    # Stable: the others stay as they are.
    pairs.sort(key=lambda pair: (pair[0], pair[1] or DEFAULT_PORT) != (host, port))
    return make_conninfo(
        conninfo, host=",".join(h for h, _ in pairs), port=",".join(p for _, p in pairs)
    )

"""A PostgreSQL and its standby, by streaming replication, for tests and drills that fail over."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from fluoro_local.children import Account
from fluoro_local.errors import StartError
from fluoro_local.folders import FolderLock
from fluoro_local.servers import PostgresServer

REPLICATION_SECONDS: Final = 30.0
"""How long a standby may take to follow its primary, or to become one."""


class StandbyServer(PostgresServer):
    """A PostgreSQL that follows `primary` until it is promoted.

    It begins as a copy of the primary, which must run then. The name of its folder is its name in
    the primary's pg_stat_replication, and the name of its slot there.
    """

    def __init__(self, folder: Path, primary: PostgresServer, port: int | None = None) -> None:
        super().__init__(folder, port)
        self._primary = primary

    def promote(self) -> None:
        """Make it a primary; returns once it takes writes.

        The old primary must be gone: see `fence`.
        """
        with psycopg.connect(self.url, autocommit=True) as connection:
            # Copied from a primary that waited for a standby, it would wait for one that it does
            # not have.
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
            row = connection.execute(
                "SELECT pg_promote(true, %s)", (int(REPLICATION_SECONDS),)
            ).fetchone()
        if row != (True,):
            raise StartError(
                f"{self.name} in {self.folder} did not become a primary within "
                f"{REPLICATION_SECONDS:.0f} s."
            )

    def _initialise(self, binaries: Path, account: Account | None) -> None:
        """Copy the primary."""
        # The role `postgres` is copied with its password.
        self._keep_password(self._primary.password, account)
        primary = make_conninfo(self._primary.url, application_name=self.folder.name)
        # With a slot the primary keeps what the standby has not got yet.
        slot = ["--create-slot", f"--slot={self.folder.name}"]
        # Not synced: if a power cut spoils the copy, it is made anew.
        quick = ["--checkpoint=fast", "--no-sync"]
        self._make_data(
            [
                str(binaries / "pg_basebackup"),
                "-d",
                primary,
                "--write-recovery-conf",
                *quick,
                *slot,
            ],
            account,
        )
        with (self._data / "postgresql.auto.conf").open("a") as settings:
            # The pause between looks for its primary. The default is 5 s.
            settings.write("wal_retrieve_retry_interval = '200ms'\n")


def fence(server: PostgresServer) -> None:
    """End a server as the loss of its machine would, with SIGKILL.

    On return none of its processes answers anybody.
    """
    server.kill()
    FolderLock(server.folder).release()  # every process of the server holds it


def wait_for(primary: PostgresServer, standby: StandbyServer) -> None:
    """Make `primary` acknowledge a commit only when `standby` has it on disk too.

    Returns once that is so.
    """
    with psycopg.connect(primary.url, autocommit=True) as connection:
        names = sql.Literal(f'FIRST 1 ("{standby.folder.name}")')
        connection.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(names))
        connection.execute("SELECT pg_reload_conf()")
        query = (
            "SELECT FROM pg_stat_replication"
            " WHERE application_name = %s AND sync_state = 'sync' AND state = 'streaming'"
        )
        _await(
            lambda: connection.execute(query, (standby.folder.name,)).fetchone() is not None,
            f"{standby.folder} did not follow",
        )


def wait_for_none(primary: PostgresServer) -> None:
    """Make `primary` acknowledge commits by itself, also those that wait for a standby."""
    with psycopg.connect(primary.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def read_only(server: PostgresServer) -> Iterator[None]:
    """For the block, the server takes no writes in new transactions, on whichever connection."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        try:
            _reload(connection, "on")
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            _reload(connection, "off")


def _reload(connection: Connection[TupleRow], read_only: str) -> None:
    connection.execute("SELECT pg_reload_conf()")
    _await(
        lambda: connection.execute("SHOW default_transaction_read_only").fetchone() == (read_only,),
        "The setting did not arrive",
    )


def url_of_hosts(*servers: PostgresServer, database: str = "postgres") -> str:
    """One connection URL of several servers, of which the first that takes writes is used.

    They must have run once.
    """
    parameters = [conninfo_to_dict(server.url) for server in servers]
    password = parameters[0].get("password")
    user = "postgres" if password is None else f"postgres:{quote(str(password), safe='')}"
    hosts = {
        "host": ",".join(str(each["host"]) for each in parameters),
        "port": ",".join(str(each.get("port", "5432")) for each in parameters),
        "target_session_attrs": "read-write",
    }
    return f"postgresql://{user}@/{database}?{urlencode(hosts)}"


class PostgresPair:
    """A primary and a synchronous standby. Each keeps its address when they swap roles."""

    def __init__(self, folder: Path) -> None:
        self._folders = folder / "first", folder / "second"
        self.primary = PostgresServer(self._folders[0])
        self.standby = StandbyServer(self._folders[1], self.primary)

    @property
    def url(self) -> str:
        """Connection URL of the database `postgres` on whichever is the primary."""
        return url_of_hosts(*sorted((self.primary, self.standby), key=lambda server: server.folder))

    def start(self) -> None:
        """Start both; returns once commits are on both. A new standby is a copy of the primary."""
        self.primary.start()
        self.standby.start()
        wait_for(self.primary, self.standby)

    def fail_over(self) -> None:
        """Lose the primary, if it is not lost yet, and promote the standby.

        The new primary waits for nobody.
        """
        fence(self.primary)
        self.standby.promote()
        lost, self.primary = self.primary, self.standby
        self.standby = StandbyServer(lost.folder, self.primary)

    def rebuild(self) -> None:
        """Make the lost server a standby of the other: a new copy in its folder, at its address."""
        self.standby.stop()
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            name = self.standby.folder.name
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name)"
                " FROM pg_replication_slots WHERE slot_name = %s",
                (name,),
            )
        shutil.rmtree(self.standby.folder / "data", ignore_errors=True)
        self.standby.start()
        wait_for(self.primary, self.standby)

    def stop(self) -> None:
        """End both in an orderly way."""
        self.primary.stop()  # first: it sends the standby all it has
        self.standby.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _await(probe: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + REPLICATION_SECONDS
    while not probe():
        if time.monotonic() > deadline:
            raise StartError(f"{otherwise} within {REPLICATION_SECONDS:.0f} s.")
        time.sleep(0.02)

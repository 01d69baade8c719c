"""A PostgreSQL and its standby, started for real."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.migrate import migrate
from fluoro_jobs.testing.rig import until
from fluoro_local.folders import free_port
from fluoro_local.replication import PostgresPair, StandbyServer, url_of_hosts
from fluoro_local.servers import PostgresServer


def rows(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [number for (number,) in connection.execute("SELECT n FROM kept ORDER BY n")]


def write(url: str, number: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))


def test_a_synchronous_standby_has_all_that_was_acknowledged_when_its_primary_is_lost_repeatedly(
    server_folder: Path,
) -> None:
    with PostgresPair(server_folder) as pair:
        url = pair.url
        for number in range(1, 3):
            write(url, number)
            pair.fail_over()
            assert rows(url) == list(range(1, number + 1))
            write(url, 0)  # waits for nobody
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DELETE FROM kept WHERE n = 0")
            pair.rebuild()
            assert pair.url == url


def test_a_primary_acknowledges_nothing_while_its_synchronous_standby_is_away(
    server_folder: Path,
) -> None:
    with PostgresPair(server_folder) as pair, ThreadPoolExecutor() as threads:
        write(pair.url, 1)
        pair.standby.kill()
        writing = threads.submit(write, pair.url, 2)
        with psycopg.connect(pair.primary.url, autocommit=True) as connection:
            query = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            until(
                lambda: connection.execute(query).fetchone() is not None, what="a commit that waits"
            )
        assert not writing.done()
        pair.standby.start()
        writing.result(timeout=30)
        assert rows(pair.url) == [1, 2]


@pytest.mark.parametrize("port", [lambda: None, free_port], ids=["sockets", "tcp"])
def test_a_url_of_several_hosts_leads_to_the_one_that_takes_writes(
    server_folder: Path, port: Callable[[], int | None]
) -> None:
    with (
        PostgresServer(server_folder / "first", port()) as primary,
        StandbyServer(server_folder / "second", primary, port()) as standby,
    ):
        for servers in ((primary, standby), (standby, primary)):
            url = url_of_hosts(*servers)
            migrate(url)
            ledger = Ledger(url)
            ledger.check()
            with ledger.connection() as connection:
                assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
            ledger.close()

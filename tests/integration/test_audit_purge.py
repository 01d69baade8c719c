"""Old rows of the audit go, and no others, whoever purges."""

import threading

import psycopg
import pytest
from fluoro_jobs.ledger import purge_audit
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.purge_audit import Purged
from fluoro_jobs.testing.rig import until

A_ROW_A_DAY = """
INSERT INTO audit (id, time, principal, how, owner, method, peer)
SELECT (lpad(to_hex((extract(epoch FROM time) * 1000)::int8), 12, '0')
  || '70008000' || lpad(to_hex(n), 12, '0'))::uuid, time, 'ada', 'jwt', 'ada', 'X', ''
FROM generate_series(0, 99) n, LATERAL (SELECT now() - n * interval '1 day' AS time) t
"""


def test_a_purge_removes_what_is_older_and_says_so(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(A_ROW_A_DAY)
    ledger = Ledger(database_url)
    with ledger.connection() as one:
        assert purge_audit.purge(one, 60, rows=10).rows == 10
        with pytest.raises(ValueError, match="30 days"):
            purge_audit.purge(one, 29)
    ledger.close()
    monkeypatch.setenv("FLUORO_DATABASE_URL", database_url)
    purge_audit.main(["60"])
    assert "30 rows removed" in capsys.readouterr().out
    with psycopg.connect(database_url, autocommit=True) as connection:
        kept = (
            "SELECT count(*), min(time) > now() - interval '61 days' FROM audit WHERE how = 'jwt'"
        )
        assert connection.execute(kept).fetchall() == [(60, True)]
        told = "SELECT calls FROM audit WHERE method = 'fluoro.ledger.PurgeAudit' ORDER BY time"
        assert connection.execute(told).fetchall() == [(10,), (30,)]
        with pytest.raises(psycopg.errors.RaiseException, match="never changed"):
            connection.execute("DELETE FROM audit")
        # Whoever knows what the purge sets gets at old rows alone.
        allow = "SELECT set_config('fluoro.purges_audit', 'on', false)"
        connection.execute(allow)
        with pytest.raises(psycopg.errors.RaiseException, match="30 days"):
            connection.execute("DELETE FROM audit")
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (62,)


def test_purges_at_once_take_turns_and_none_ends_before_all_is_gone(database_url: str) -> None:
    waits = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    purged: list[Purged] = []

    def purge() -> None:
        with ledger.connection() as connection:
            purged.append(purge_audit.purge(connection, 60, rows=10))

    ledger = Ledger(database_url)
    with psycopg.connect(database_url, autocommit=True) as looking:
        looking.execute(A_ROW_A_DAY)
        with psycopg.connect(database_url) as one:
            one.execute("SELECT")  # begins a transaction, which the purge then does not end
            assert purge_audit.purge(one, 60, rows=10).rows == 10
            other = threading.Thread(target=purge)
            other.start()
            until(lambda: looking.execute(waits).fetchone() == (1,))
        other.join()
        (left,) = looking.execute("SELECT count(*) FROM audit WHERE how = 'jwt'").fetchall()
    ledger.close()
    assert [each.rows for each in purged] == [10]
    assert left == (80,)


@pytest.mark.parametrize("days", ["29", "36501", "99999999", "9" * 5000, "-30", "thirty"])
def test_a_purge_says_how_it_is_called(
    database_url: str, monkeypatch: pytest.MonkeyPatch, days: str
) -> None:
    monkeypatch.setenv("FLUORO_DATABASE_URL", database_url)
    with pytest.raises(SystemExit, match="DAYS, 30 to 36500"):
        purge_audit.main([days])


def test_a_purge_of_what_is_older_than_computers_removes_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLUORO_DATABASE_URL", database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(A_ROW_A_DAY)
    purge_audit.main(["36500"])
    assert capsys.readouterr().out == "0 rows removed\n"

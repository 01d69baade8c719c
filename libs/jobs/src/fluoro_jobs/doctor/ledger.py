"""PostgreSQL: whether it keeps what it has confirmed, has room for everybody, and who works."""

import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Final

from fluoro_jobs.doctor.findings import Finding, fault, ok, warning
from fluoro_jobs.ledger.clock import WRONG_SECONDS
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection, through_pooler
from fluoro_jobs.operations import QUEUES

CROWDED: Final = 0.8
"""Share of the connections that PostgreSQL allows above which there is soon no room."""

_DURABLE: Final[Mapping[str, tuple[str, str]]] = {
    "fsync": ("off", "A power failure may lose or damage jobs that were accepted."),
    "full_page_writes": ("off", "A power failure may damage pages that were half written."),
    "synchronous_commit": ("off", "A crash may lose jobs that were accepted."),
}
"""Settings with the value that breaks a promise, and what comes of it."""

_SETTINGS: Final = (
    "SELECT name, setting FROM pg_settings WHERE name = ANY(%s) UNION ALL"
    " SELECT 'read_only', current_setting('transaction_read_only')"
)
_CONNECTIONS: Final = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
  current_setting('max_connections')::int
    - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true), '0')::int
"""
_WORKERS: Final = """
SELECT queue, count(*), sum(slots), array_agg(DISTINCT version ORDER BY version)
FROM workers WHERE expire_time > now() GROUP BY queue
"""


def look(ledger: Ledger, version: str) -> Iterator[Finding]:
    """All that the ledger can tell. version: of this release."""
    with ledger.connection() as connection:
        yield from _server(connection)
        yield from _schema(connection)
        yield _room(connection)
        yield from _workers(connection, version)
        yield clock("clock", time.time, connection, "this machine's clock")


def clock(
    check: str, read: Callable[[], float], connection: LedgerConnection, whose: str
) -> Finding:
    """Compares a clock with the ledger's. read: gives its seconds since 1970."""
    started = time.monotonic()
    ((now,),) = connection.execute(
        "SELECT extract(epoch FROM clock_timestamp())::float8"
    ).fetchall()
    middle = time.monotonic()
    theirs = read()
    # Each was read at about the middle of its own call.
    took = (time.monotonic() - started) / 2
    ahead = theirs - now - took
    found = f"{whose} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} PostgreSQL's"
    # An offset within the time that the reading itself took says nothing.
    if abs(ahead) <= WRONG_SECONDS + (time.monotonic() - middle):
        return ok(check, found)
    return warning(check, found, "Run NTP on both machines: logs no longer tell what came first.")


def _server(connection: LedgerConnection) -> Iterator[Finding]:
    names = [*_DURABLE, "server_version", "synchronous_standby_names"]
    settings: dict[str, str] = dict(connection.execute(_SETTINGS, (names,)).fetchall())
    pooled = ", through a pooler that sets up its sessions" if through_pooler(connection) else ""
    yield ok("postgresql", f"version {settings['server_version']}{pooled}")
    if settings["read_only"] == "on":
        advice = "It is a standby: put target_session_attrs=read-write into FLUORO_DATABASE_URL."
        yield fault("postgresql", "takes no writes", advice)
    for name, (bad, meaning) in _DURABLE.items():
        if settings[name] == bad:
            advice = f"{meaning} ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();"
            yield fault("durability", f"{name} is {bad}", advice)
        else:
            yield ok("durability", f"{name} is {settings[name]}")
    if settings["synchronous_standby_names"] and settings["synchronous_commit"] == "local":
        yield warning(
            "durability",
            "there is a synchronous standby, but synchronous_commit is local",
            "A failover may lose jobs that were accepted. Set synchronous_commit = on.",
        )


def _schema(connection: LedgerConnection) -> Iterator[Finding]:
    from alembic.config import Config  # noqa: PLC0415 - with SQLAlchemy, a fifth of a start
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(files("fluoro_jobs") / "migrations"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head() or ""
    known = {revision.revision for revision in scripts.walk_revisions()}
    rows: list[tuple[str]] = []
    # A database without the table has never been migrated; to read it would end the whole look.
    if _is_there(connection, "alembic_version"):
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    has = rows[0][0] if rows else "none"
    if has == head:
        yield ok("schema", f"{has}, as this release needs it")
    # An empty database counts as an old one: the same command fixes both.
    elif has in known or not rows:
        advice = "Run python -m fluoro_jobs.ledger.migrate."
        yield fault("schema", f"{has}; this release needs {head}", advice)
    else:
        advice = "It is of a later release: update the services of this one."
        yield warning("schema", f"{has}; this release knows {head} and earlier ones", advice)


def _is_there(connection: LedgerConnection, table: str) -> bool:
    return connection.execute("SELECT to_regclass(%s)", (table,)).fetchall() != [(None,)]


def _room(connection: LedgerConnection) -> Finding:
    ((used, limit),) = connection.execute(_CONNECTIONS).fetchall()
    found = f"{used} of {limit} are in use"
    if used < CROWDED * limit:
        return ok("connections", found)
    return warning(
        "connections",
        found,
        "A gateway takes up to 15, a worker one for each slot and one more. Raise max_connections, "
        "or put a pooler in between: deploy/k8s/pgbouncer.ini.",
    )


def _workers(connection: LedgerConnection, version: str) -> Iterator[Finding]:
    if not _is_there(connection, "workers"):
        return  # what is said of the schema says it all
    rows = {queue: rest for queue, *rest in connection.execute(_WORKERS).fetchall()}
    for queue in QUEUES:
        if queue not in rows:
            yield fault(
                f"queue {queue}",
                "no worker is alive",
                f"Start a {queue}-worker: steps of this queue wait. If one runs, look at its log "
                "and its /readyz.",
            )
            continue
        workers, slots, versions = rows[queue]
        found = f"{workers} alive, {slots} slots, version {', '.join(versions)}"
        if versions == [version]:
            yield ok(f"queue {queue}", found)
        else:
            advice = f"This release is {version}. Fine during an update; otherwise finish it."
            yield warning(f"queue {queue}", found, advice)

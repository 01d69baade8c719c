"""Fills a ledger with finished jobs: copies of jobs that really ran, made in SQL.

Whatever columns the tables have, a copy has its own ids and times, and one of many owners. Nothing
here has to know what a finished job leaves behind.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

Connection = psycopg.Connection[TupleRow]

CHUNK_JOBS: Final = 10_000
"""Copies made by one statement."""
WRITERS: Final = 2
SPACING_SECONDS: Final = 1
"""Between the creation of one copy and that of the next."""
OWNERS: Final = 1000
"""Owners besides the one that has every other job."""

OF_JOBS: Final = {
    "jobs": "id = ANY(%(jobs)s)",
    "job_inputs": "job_id = ANY(%(jobs)s)",
    "steps": "job_id = ANY(%(jobs)s)",
    "step_inputs": "job_id = ANY(%(jobs)s)",
    "tasks": "job_id = ANY(%(jobs)s)",
    "attempts": "task_id IN (SELECT id FROM tasks WHERE job_id = ANY(%(jobs)s))",
    "items": "job_id = ANY(%(jobs)s)",
    "artifacts": "job_id = ANY(%(jobs)s)",
    "events": "job_id = ANY(%(jobs)s)",
    "blobs": """id IN (SELECT blob_id FROM artifacts WHERE job_id = ANY(%(jobs)s)
      UNION ALL SELECT blob_id FROM job_inputs WHERE job_id = ANY(%(jobs)s))""",
}
"""Which rows of a table belong to the jobs that are copied."""

_AGE: Final = f"(c.age * interval '{SPACING_SECONDS} s')"
_OWNER: Final = f"CASE c.n %% 2 WHEN 0 THEN t.owner ELSE 'owner-' || c.n / 2 %% {OWNERS} END"
BY_TYPE: Final = {
    # As of version 7: the time first, so that copies stand in order of their age.
    "uuid": f"""(lpad(to_hex((extract(epoch FROM now() - {_AGE}) * 1000)::bigint), 12, '0')
      || '7' || substr(md5(t.{{column}}::text || c.n), 1, 3)
      || '8' || substr(md5(t.{{column}}::text || c.n), 4, 15))::uuid""",
    "timestamp with time zone": f"t.{{column}} - {_AGE}",
    # Spread over all transactions so far: none of theirs is to be one that has not happened yet.
    "xid8": "(3 + c.n * (pg_current_xact_id()::text::bigint - 4) / c.total)::text::xid8",
}
BY_NAME: Final = {
    "owner": _OWNER,
    "sha256": "sha256((t.id::text || c.n)::bytea)",
    "request_id": "t.request_id || c.n",
    "labels": """jsonb_build_object('ward', (c.n / 2 %% 20)::text,
      'rare', (c.n / 2 %% 5000)::text)""",
}
"""What a copy has in a column, by its type or its name; other columns stay as they are."""


def fill(database_url: str, jobs: Sequence[UUID], copies: int) -> None:
    """Copies the jobs in turn. Some hundred bytes a row; without statistics afterwards."""
    chunks = [range(n, min(n + CHUNK_JOBS, copies)) for n in range(0, copies, CHUNK_JOBS)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        statements = list(_statements(connection))

    def write(chunk: range) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute("SET synchronous_commit = off")
            # No triggers: what they check is true of the jobs that are copied.
            connection.execute("SET session_replication_role = replica")
            for place, job in enumerate(jobs):
                numbers = [n for n in chunk if n % len(jobs) == place]
                for statement in statements:
                    connection.execute(
                        statement, {"jobs": [job], "numbers": numbers, "total": copies}
                    )

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(write, chunks))


def _statements(connection: Connection) -> Iterator[sql.Composed]:
    for table, condition in OF_JOBS.items():
        columns = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name = %s",
            (table,),
        ).fetchall()
        names = sql.SQL(", ").join(sql.Identifier(name) for name, _ in columns)
        values = sql.SQL(", ").join(_value(name, kind) for name, kind in columns)
        yield sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {values} FROM (SELECT n, %(total)s - n AS age,"
            " %(total)s::bigint AS total FROM unnest(%(numbers)s::bigint[]) n) c,"
            " (SELECT * FROM {table} WHERE {condition}) t"
        ).format(
            table=sql.Identifier(table), names=names, values=values, condition=sql.SQL(condition)
        )


def _value(name: str, kind: str) -> sql.Composable:
    template = BY_NAME.get(name) or BY_TYPE.get(kind)
    column = sql.Identifier(name)
    return sql.SQL(template).format(column=column) if template else sql.SQL("t.") + column


def sizes(connection: Connection, tables: Iterable[str] = OF_JOBS) -> dict[str, float]:
    """MiB of each table with its indexes."""
    rows = connection.execute(
        "SELECT relname, pg_total_relation_size(oid) / 1048576.0 FROM pg_class"
        " WHERE relname = ANY(%s) AND relkind = 'r'",
        (list(tables),),
    ).fetchall()
    return {name: float(size) for name, size in rows}

"""Deletes jobs that have ended: at once for their owners, and soon from the tables.

A deleted job belongs to nobody, so no call finds it. Whoever sweeps removes its rows, some at a
time, the job's own last: a removal that was interrupted is gone on with.
"""

import time
from typing import Any, Final
from uuid import UUID

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.read import job_head

CHUNK: Final = 2_000
"""Rows of a table that a transaction removes, at most."""
JOBS: Final = 100
"""Deleted jobs that are looked for at a time."""
ROUND_SECONDS: Final = 1.0
"""How long a removal takes at most; the next round goes on."""

# The version moves on, so that whoever read the job before changes nothing in it any more.
# One guarded statement: a retry that comes first clears `end_time`, and then nothing is deleted.
_MARK: Final = """
UPDATE jobs SET owner = '', request_id = NULL, last_sequence = last_sequence + 1
WHERE id = %s AND owner = %s AND end_time IS NOT NULL RETURNING id
"""
_MARKED: Final = "SELECT id FROM jobs WHERE owner = '' ORDER BY id LIMIT %s"
# The newest events go first: whoever still reads them finds no gap.
_EVENTS: Final = """
DELETE FROM events WHERE job_id = %(job)s AND sequence > (
  SELECT coalesce((SELECT sequence FROM events WHERE job_id = %(job)s
    ORDER BY sequence DESC OFFSET %(rows)s LIMIT 1), 0))
"""
# Rows are chosen by ctid because DELETE has no LIMIT, and deleting a big job's rows in one
# statement would exceed the deadline.
_ROWS: Final = """
DELETE FROM {table} WHERE ctid = ANY(ARRAY(
  SELECT ctid FROM {table} WHERE job_id = %(job)s LIMIT %(rows)s))
"""
_PLAIN: Final = [
    _EVENTS,
    *(_ROWS.format(table=table) for table in ("items", "step_inputs")),
]
_INPUTS: Final = f"{_ROWS.format(table='job_inputs')} RETURNING blob_id"
_ARTIFACTS: Final = f"{_ROWS.format(table='artifacts')} RETURNING blob_id"
_TASKS: Final = """
WITH chunk AS (SELECT id FROM tasks WHERE job_id = %(job)s LIMIT %(rows)s),
  gone AS (DELETE FROM attempts a USING chunk WHERE a.task_id = chunk.id)
DELETE FROM tasks t USING chunk WHERE t.id = chunk.id RETURNING t.result_blob
"""
# Waits for submits that take them as inputs. What these committed, only the next statement sees.
_LOCK_BLOBS: Final = """
SELECT FROM blobs WHERE id = ANY(%(blobs)s) AND NOT uploaded ORDER BY id FOR UPDATE
"""
_BLOBS: Final = """
DELETE FROM blobs b WHERE b.id = ANY(%(blobs)s) AND NOT b.uploaded
  AND NOT EXISTS (SELECT FROM artifacts a WHERE a.blob_id = b.id)
  AND NOT EXISTS (SELECT FROM job_inputs i WHERE i.blob_id = b.id)
  AND NOT EXISTS (SELECT FROM tasks t WHERE t.result_blob = b.id)
"""
_JOB: Final = "DELETE FROM jobs WHERE id = %s"


def delete_job(
    connection: LedgerConnection, owner: str, job_id: UUID, *, allow_missing: bool = False
) -> bool:
    """Takes an ended job from its owner. Whether there was one.

    FluoroError JOB_NOT_ENDED, or JOB_NOT_FOUND unless allow_missing.
    """
    if connection.execute(_MARK, (job_id, owner)).fetchone() is not None:
        return True
    try:
        # Nothing was marked. Only then does a second statement find out why.
        job_head(connection, owner, job_id)
    except FluoroError as error:
        if allow_missing and error.reason is Reason.JOB_NOT_FOUND:
            return False
        raise
    raise FluoroError(
        Reason.JOB_NOT_ENDED, "The job has not ended. Wait for its end, or cancel it first."
    )


def remove_deleted(connection: LedgerConnection, seconds: float = ROUND_SECONDS) -> int:
    """Removes rows of deleted jobs, for about a second. How many jobs it got through with."""
    until = time.monotonic() + seconds
    count = 0
    for (job,) in connection.execute(_MARKED, (JOBS,)).fetchall():
        # The deadline is checked between chunks, so that a large job cannot keep the sweeper from
        # its other work.
        while _remove_some(connection, job):
            if time.monotonic() > until:
                return count
        # The job's row goes last: as long as it is there, the next round finds what a crash has
        # left.
        connection.execute(_JOB, (job,))
        count += 1
    return count


def _remove_some(connection: LedgerConnection, job: UUID) -> bool:
    """Removes a chunk of each table. Whether some may have more."""
    parameters: dict[str, Any] = {"job": job, "rows": CHUNK}
    removed = [connection.execute(query, parameters).rowcount for query in _PLAIN]
    # Inputs, too: of what another job left, they may be the last that names it. Artifacts before
    # tasks: a result that is a blob may be an artifact as well.
    for query in (_INPUTS, _ARTIFACTS, _TASKS):
        with connection.transaction():
            rows = connection.execute(query, parameters)
            removed.append(rows.rowcount)
            blobs = [blob for (blob,) in rows.fetchall() if blob is not None]
            if blobs:
                # Two statements, because the second has a new snapshot and sees the inputs of
                # submits that the first waited for.
                connection.execute(_LOCK_BLOBS, {"blobs": blobs})
                connection.execute(_BLOBS, {"blobs": blobs})
    # A table that gave a full chunk may have more. One that gave less is empty of this job's rows.
    return max(removed) >= CHUNK

"""Where a job's results come from: the inputs it was given, and when its steps ran."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from fluoro_jobs.ledger.connection import LedgerConnection


class JobInput(NamedTuple):
    """An input of the job as it was uploaded. sha256: 32 bytes."""

    number: int
    size_bytes: int
    sha256: bytes


class StepRun(NamedTuple):
    """When a finished step ran.

    start_time, end_time: of the attempts that succeeded, the first one's and the last one's.
    attempts: of all its tasks, those that failed or were lost too.
    """

    step: str
    start_time: datetime
    end_time: datetime
    attempts: int


class Origins(NamedTuple):
    """What stays as it is once the steps have ended: every attempt that asks gets the same."""

    inputs: list[JobInput]
    runs: list[StepRun]


_INPUTS: Final = """
SELECT i.number::int, b.size_bytes, b.sha256
FROM job_inputs i JOIN blobs b ON b.id = i.blob_id WHERE i.job_id = %s ORDER BY i.number
"""
_RUNS: Final = """
SELECT s.name, min(a.start_time) FILTER (WHERE a.outcome = 'SUCCEEDED'),
  max(a.end_time) FILTER (WHERE a.outcome = 'SUCCEEDED'), count(*)::int
FROM steps s JOIN tasks t ON t.job_id = s.job_id AND t.step = s.ordinal
JOIN attempts a ON a.task_id = t.id
WHERE s.job_id = %s AND s.ordinal = ANY(%s) GROUP BY s.ordinal, s.name
HAVING bool_or(a.outcome = 'SUCCEEDED') ORDER BY s.ordinal
"""


def origins_of(connection: LedgerConnection, job_id: UUID, ordinals: Iterable[int]) -> Origins:
    """Of a job, and of these finished steps. An input whose blob is gone is left out."""
    inputs = connection.execute(_INPUTS, (job_id,)).fetchall()
    runs = connection.execute(_RUNS, (job_id, list(ordinals))).fetchall()
    return Origins([JobInput(*row) for row in inputs], [StepRun(*row) for row in runs])

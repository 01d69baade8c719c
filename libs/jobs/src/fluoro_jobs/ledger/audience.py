"""Whom a change of a job concerns: its owner's watchers, and workers that ran cancelled tasks."""

from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from fluoro_jobs.ledger.connection import LedgerConnection

_AUDIENCE: Final = """
SELECT j.id, j.owner, array(
  SELECT DISTINCT a.worker FROM tasks t JOIN attempts a ON a.task_id = t.id AND a.number = t.attempt
  WHERE j.end_time IS NOT NULL AND t.job_id = j.id AND t.state = 'CANCELLED'
    AND a.outcome = 'CANCELLED')
FROM jobs j WHERE j.id = ANY(%s)
"""


class Audience(NamedTuple):
    """Whom to tell of one job.

    workers: names of those that ran its tasks when it was cancelled; none while it has not ended.
    """

    job: UUID
    owner: str
    workers: list[str]


def audience(connection: LedgerConnection, jobs: Iterable[UUID]) -> list[Audience]:
    """For each of the jobs that exist, in no order."""
    some = list(jobs)
    return (
        [Audience(*row) for row in connection.execute(_AUDIENCE, (some,)).fetchall()]
        if some
        else []
    )

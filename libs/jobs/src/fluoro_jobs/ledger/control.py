"""What an owner does to a job once it is accepted: cancel it, or have what failed done again."""

from typing import NamedTuple
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro.v1.job_service_pb2 import JOB_VIEW_BASIC

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.audience import audience
from fluoro_jobs.ledger.audit import Entry, job_name, recorded
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.read import get_job, job_not_found
from fluoro_jobs.ledger.store import Tasks, count_end, transition
from fluoro_jobs.states import JobState, is_terminal


class Cancelled(NamedTuple):
    """job: as it is after the cancel, in the view BASIC.

    workers: names of the processes that ran its tasks until then; none if it had ended before.
    """

    job: job_pb2.Job
    workers: list[str]


def cancel_job(
    connection: LedgerConnection,
    owner: str,
    job_id: UUID,
    into: job_pb2.Job | None = None,
    entry: Entry | None = None,
) -> Cancelled:
    """Cancels the job unless it is terminal.

    CANCELLED is durable then, and what still computes is fenced off (I6).

    into: as for `get_job`. entry: what `audit` says of it.
    FluoroError JOB_NOT_FOUND if it is not the owner's.
    """
    with recorded(connection, entry, job_name(job_id)):
        ended = cancel(connection, owner, job_id)
    workers = (
        # Workers have something to stop only if it was this call that ended the job.
        [worker for one in audience(connection, [job_id]) for worker in one.workers]
        if ended
        else []
    )
    return Cancelled(get_job(connection, owner, job_id, into, view=JOB_VIEW_BASIC), workers)


def cancel(connection: LedgerConnection, owner: str, job_id: UUID) -> bool:
    """The same without reading the job afterwards. Whether it was this that ended the job."""

    def act(graph: JobGraph) -> JobState | None:
        # Checked in the transition, because a deletion may take the job from its owner before it.
        if graph.owner != owner:
            raise job_not_found(job_id)
        ends = not is_terminal(graph.state)
        graph.cancel(Reason.JOB_CANCELLED, "Cancelled by its owner.")
        return graph.state if ends else None

    # Reads only open tasks: a cancel changes no others, and a job may have 10,000 that ended.
    ended = transition(connection, job_id, act, Tasks.OPEN)
    count_end(ended)
    return ended is not None


def retry_job(
    connection: LedgerConnection,
    owner: str,
    job_id: UUID,
    into: job_pb2.Job | None = None,
    entry: Entry | None = None,
) -> job_pb2.Job:
    """The job, in the view BASIC, after what failed in it was made to run again.

    into: as for `get_job`. entry: what `audit` says of it. FluoroError as from `retry`.
    """
    with recorded(connection, entry, job_name(job_id)):
        retry(connection, owner, job_id)
    return get_job(connection, owner, job_id, into, view=JOB_VIEW_BASIC)


def retry(connection: LedgerConnection, owner: str, job_id: UUID) -> None:
    """Makes what failed in the job run again. Attempts there were stay on record.

    FluoroError JOB_NOT_FOUND if it is not the owner's, JOB_NOT_ENDED, or NOTHING_TO_RETRY.
    """

    def act(graph: JobGraph) -> None:
        # The same answer as for a job that never was: the caller must not learn that it exists.
        if graph.owner != owner:
            raise job_not_found(job_id)
        # A task that still runs would race with its own retry.
        if not is_terminal(graph.state):
            raise FluoroError(
                Reason.JOB_NOT_ENDED, "The job has not ended. Wait for its end, or cancel it first."
            )
        if not graph.retry():
            raise FluoroError(Reason.NOTHING_TO_RETRY, "Nothing in the job failed.")

    # Reads all tasks, because a retry decides about each and counts them again.
    transition(connection, job_id, act)

"""What an owner does to all jobs that pass a filter: piece by piece, each job by itself.

A piece takes a fraction of a second, so that other owners get their turn between two. Whoever goes
on from its end meets every job once; whoever begins anew does no harm, because a job that was
cancelled or retried no longer passes.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple
from uuid import UUID

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger import control, filters, search
from fluoro_jobs.ledger.audience import Audience, audience
from fluoro_jobs.ledger.audit import Entry, job_name, recorded
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.paging import Key
from fluoro_jobs.ledger.search import OPEN, Search
from fluoro_jobs.states import JobState

PIECE_JOBS: Final = 100
"""Most jobs of a piece."""
PIECE_SECONDS: Final = 0.25
"""After which a piece begins with no further job."""
_UNLESS: Final = {Reason.JOB_NOT_FOUND, Reason.JOB_NOT_ENDED, Reason.NOTHING_TO_RETRY}
"""Others were faster, or there is nothing to do."""


class Piece(NamedTuple):
    """changed: the jobs that it changed, with whom that concerns. following: where it ended.

    None for nowhere: that was the last one.
    """

    changed: list[Audience]
    following: Key | None


def cancellable(owner: str, text: str) -> Search:
    """The jobs that a cancel by filter is about. FluoroError as from `filters.parse`."""
    return Search(owner, _filter(text), states=OPEN)


def retriable(owner: str, text: str) -> Search:
    """The jobs that a retry by filter is about. FluoroError as from `filters.parse`."""
    # The states are part of the search, not of the filter: they choose the index, and jobs that
    # succeeded are never looked at.
    return Search(owner, _filter(text), states=frozenset(JobState) - OPEN - {JobState.SUCCEEDED})


def cancel(
    connection: LedgerConnection, wanted: Search, key: Key | None, entry: Entry | None = None
) -> Piece:
    """Cancels the next jobs. entry: what `audit` says of each."""
    return _each(connection, wanted, key, control.cancel, entry)


def retry(
    connection: LedgerConnection, wanted: Search, key: Key | None, entry: Entry | None = None
) -> Piece:
    """Retries the next jobs. entry: what `audit` says of each."""

    def act(connection: LedgerConnection, owner: str, job: UUID) -> bool:
        try:
            control.retry(connection, owner, job)
        except FluoroError as error:
            # Between the search and this line somebody else may have retried or deleted the job.
            # That is no failure of the batch.
            if error.reason in _UNLESS:
                return False
            raise
        return True

    return _each(connection, wanted, key, act, entry)


def _each(
    connection: LedgerConnection,
    wanted: Search,
    key: Key | None,
    act: Callable[[LedgerConnection, str, UUID], bool],
    entry: Entry | None,
) -> Piece:
    found, following = search.find(connection, wanted, key, PIECE_JOBS)
    until = time.monotonic() + PIECE_SECONDS
    changed: list[UUID] = []
    for job in found:
        # At least one job a piece: otherwise a slow ledger would let a batch go on for ever without
        # a step ahead.
        if changed and time.monotonic() > until:
            return Piece(audience(connection, changed), [str(job)])
        try:
            # A transaction for each job: a failure halfway keeps what was done, and no lock is held
            # for longer than one job takes.
            with recorded(connection, entry) as things:
                if act(connection, wanted.owner, job):
                    things.append(job_name(job))
                    changed.append(job)
        except FluoroError:
            if not changed:
                # Nothing changed, so nobody has to be told, and the caller may simply try again.
                raise
            # The jobs before it were changed, so their audience counts. The next piece begins with
            # this one.
            return Piece(audience(connection, changed), [str(job)])
    return Piece(audience(connection, changed), following)


def _filter(text: str) -> filters.Filter:
    if not text.strip():
        # An empty filter is more often a forgotten one than a wish to cancel everything.
        what = "Say which jobs; * means all."
        violations = [FieldViolation("filter", what)]
        raise FluoroError(Reason.INVALID_ARGUMENT, f"filter: {what}", violations)
    return filters.parse("" if text.strip() == "*" else text)

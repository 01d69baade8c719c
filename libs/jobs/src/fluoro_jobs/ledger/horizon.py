"""Where a reader of all events of an owner stands. ADR 0011 says why this is a transaction id.

Sequences number the events of one job. Over many jobs there is no such number that a late commit
could not slip in below, so a reader keeps a horizon: a snapshot's xmin. Transactions below it are
all finished, so once their events were read, none of them can come any more.

No statement here reads more than a page, the last transaction of which it reads to its end, however
old the horizon.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from psycopg.rows import TupleRow

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.states import JobState, is_terminal

_SWEEP: Final = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_snapshot_xmax(pg_current_snapshot())::text,
  n.owner, n.start, n.events, n.newest::text, n.job_id, n.first, n.last, j.labels, j.state
FROM (VALUES (1)) always(one)
LEFT JOIN (
  SELECT w.owner, w.start, e.job_id, min(e.sequence) AS first, max(e.sequence) AS last,
    count(*) AS events, max(e.transaction_id) AS newest
  FROM unnest(%s::text[], %s::int8[]) w(owner, start)
  CROSS JOIN LATERAL (
    SELECT job_id, sequence, transaction_id FROM events
    WHERE owner = w.owner
      AND transaction_id >= coalesce(w.start::text::xid8, pg_snapshot_xmin(pg_current_snapshot()))
    ORDER BY transaction_id FETCH FIRST (%s::int8) ROWS WITH TIES
  ) e
  GROUP BY w.owner, w.start, e.job_id
) n ON true
LEFT JOIN jobs j ON j.id = n.job_id
"""
_HEADS: Final = "SELECT owner, id, last_sequence, labels, state FROM jobs WHERE id = ANY(%s)"

# What a reader at a horizon has got of a job: nothing if its first event is not below the horizon,
# otherwise all up to the newest that is. The walk back from `before` to that one goes over events
# whose transactions overtook each other, and over no others.
_SEEN: Final = """
SELECT w.job_id, w.horizon, CASE WHEN f.transaction_id >= w.horizon::text::xid8 THEN 0
  ELSE coalesce((
    SELECT e.sequence FROM events e WHERE e.job_id = w.job_id AND e.sequence < w.before
      AND e.transaction_id < w.horizon::text::xid8
    ORDER BY e.sequence DESC LIMIT 1
  ), 0) END
FROM unnest(%s::uuid[], %s::int8[], %s::int8[]) w(job_id, before, horizon)
LEFT JOIN events f ON f.job_id = w.job_id AND f.sequence = 1
"""
_NEWEST: Final = """
SELECT w.job_id, max(e.transaction_id)::text
FROM unnest(%s::uuid[], %s::int8[], %s::int8[]) w(job_id, after, upto)
JOIN events e ON e.job_id = w.job_id AND e.sequence > w.after AND e.sequence <= w.upto
GROUP BY w.job_id
"""

Place = tuple[str, int | None]
"""An owner and a transaction id to read from; None stands for the xmin of the read's snapshot."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bounds of the snapshot that something was read with.

    xmin: all below are finished. xmax: all that was seen is below.
    """

    xmin: int
    xmax: int


@dataclass(frozen=True, slots=True)
class News:
    """A job with events in a page.

    first, last: lowest and highest sequence of these. ended: it is terminal.
    """

    owner: str
    job: UUID
    first: int
    last: int
    labels: dict[str, str]
    ended: bool


@dataclass(frozen=True, slots=True)
class Page:
    """What transactions from a place on wrote.

    following: id of the one that the next page starts at; None if this page is the last.
    """

    news: list[News]
    following: int | None


def sweep(
    connection: LedgerConnection, places: Collection[Place], limit: int
) -> tuple[Span, dict[Place, Page]]:
    """Per place, the jobs of the next `limit` events, and the bounds of the moment of the read.

    A page ends with a whole transaction, so it may hold a few more.
    """
    rows = connection.execute(
        _SWEEP, ([owner for owner, _ in places], [start for _, start in places], limit)
    ).fetchall()
    found: dict[Place, list[TupleRow]] = {place: [] for place in places}
    for row in rows:
        # Without any events there is one row all the same: it has the bounds.
        if row[2] is not None:
            found[row[2], row[3]].append(row[4:])
    return Span(int(rows[0][0]), int(rows[0][1])), {
        place: _page(place[0], some, limit) for place, some in found.items()
    }


def heads(connection: LedgerConnection, jobs: Collection[UUID]) -> list[News]:
    """The jobs as if their next event were all the news."""
    rows = connection.execute(_HEADS, (list(jobs),)).fetchall()
    return [
        News(owner, job, last + 1, last, labels, _is_ended(state))
        for owner, job, last, labels, state in rows
    ]


def seen(
    connection: LedgerConnection, before: Collection[tuple[UUID, int, int]]
) -> dict[tuple[UUID, int], int]:
    """Per job and horizon, the newest sequence of a reader of everything below the horizon.

    before: job, a sequence at or above the horizon, and the horizon.
    """
    rows = connection.execute(_SEEN, _columns(before)).fetchall()
    return {(job, at): sequence for job, at, sequence in rows}


def newest(
    connection: LedgerConnection, ranges: Collection[tuple[UUID, int, int]]
) -> dict[UUID, int]:
    """Highest id of the transactions that wrote some of a job's events.

    ranges: job, and the sequences it begins after and ends with.
    """
    return {
        job: int(found) for job, found in connection.execute(_NEWEST, _columns(ranges)).fetchall()
    }


def _columns(rows: Collection[tuple[UUID, int, int]]) -> tuple[list[UUID], list[int], list[int]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _page(owner: str, rows: list[TupleRow], limit: int) -> Page:
    news = [
        News(owner, job, first, last, labels, _is_ended(state))
        for _, _, job, first, last, labels, state in rows
    ]
    # It may hold more than the limit, because it ends with a whole transaction. So the next page
    # begins right after that one.
    # A full page may be the last one all the same. The next is then empty, which costs a look.
    is_full = sum(row[0] for row in rows) >= limit
    return Page(news, max(int(row[1]) for row in rows) + 1 if is_full else None)


def _is_ended(state: str) -> bool:
    return is_terminal(JobState(state))

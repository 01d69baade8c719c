"""Where a reader of all events of an owner stands. ADR 0011 says why this is a transaction id.

Sequences number the events of one job. Over many jobs there is no such number that a late commit could not slip in below, so a reader keeps
a horizon: a snapshot's xmin. Transactions below it are all finished, so once their events were read, none of them can come any more.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.states import JobState, is_terminal

_SWEEP: Final = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_snapshot_xmax(pg_current_snapshot())::text,
  n.owner, n.horizon, n.job_id, n.first, n.last, j.labels, j.state
FROM (VALUES (1)) always(one)
LEFT JOIN (
  SELECT w.owner, w.horizon, e.job_id, min(e.sequence) AS first, max(e.sequence) AS last
  FROM unnest(%s::text[], %s::int8[]) w(owner, horizon)
  JOIN events e ON e.owner = w.owner
    AND e.transaction_id >= coalesce(w.horizon::text::xid8, pg_snapshot_xmin(pg_current_snapshot()))
  {among}
  GROUP BY w.owner, w.horizon, e.job_id
) n ON true
LEFT JOIN jobs j ON j.id = n.job_id
"""
_SWEEP_ALL: Final = _SWEEP.format(among="")
_SWEEP_AMONG: Final = _SWEEP.format(among="WHERE e.job_id = ANY(%s)")

Place = tuple[str, int | None]
"""An owner and a horizon; None stands for the xmin of the snapshot that is read with."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bounds of the snapshot that something was read with. xmin: all below are finished. xmax: all that was seen is below."""

    xmin: int
    xmax: int


@dataclass(frozen=True, slots=True)
class News:
    """A job with events at or above a place's horizon. first, last: sequences of the lowest and highest of these. ended: it is terminal."""

    place: Place
    job: UUID
    first: int
    last: int
    labels: dict[str, str]
    ended: bool


def sweep(connection: LedgerConnection, places: Collection[Place], among: Collection[UUID] | None = None) -> tuple[Span, list[News]]:
    """The jobs with events at or above the horizon of each place, as of one moment, and the bounds of that moment.

    among: only these jobs, which then costs no more than they do, however old the horizon.
    """
    owners, horizons = [owner for owner, _ in places], [horizon for _, horizon in places]
    if among is None:
        rows = connection.execute(_SWEEP_ALL, (owners, horizons)).fetchall()
    else:
        rows = connection.execute(_SWEEP_AMONG, (owners, horizons, list(among))).fetchall()
    news = [
        News((owner, horizon), job, first, last, labels, is_terminal(JobState(state)))
        for _, _, owner, horizon, job, first, last, labels, state in rows
        if job is not None
    ]
    return Span(int(rows[0][0]), int(rows[0][1])), news

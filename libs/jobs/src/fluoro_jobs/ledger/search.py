"""Jobs of an owner that pass a filter, page by page, in one of four orders.

Each order follows an index from a key. A page looks at LOOKED_AT jobs at most and filters those: a
filter that few jobs pass makes short pages, and the next one goes on from there. What a filter says
about states and times chooses the index and where it is entered (`filters.Reach`).

PostgreSQL plans a prepared statement once for all values of its parameters, so each kind of search
has a statement of its own. One for both open and all jobs would walk through an owner's history to
find the open ones. `LIMIT (SELECT n)` hides n from the planner. If it knew that n is above the rows
that it expects, by average or before the first ANALYZE, it would read and sort all there are. For
the same reason only one end of a range is a bound of the index; the other one is a filter.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro.v1.job_service_pb2 import ListJobsRequest, ListJobsResponse
from google.protobuf.field_mask_pb2 import FieldMask
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger import filters
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.paging import (
    LOOKED_AT,
    PAGE_BYTES,
    Key,
    cut,
    page_size,
    read_token,
    uuid_of,
    write_token,
)
from fluoro_jobs.ledger.rows import JOB_COLUMNS, job_of, rows_of
from fluoro_jobs.states import JobState, is_terminal

CLOCK_SLACK: Final = timedelta(days=1)
"""How wrong a gateway's clock may be. Names of jobs have its time, `create_time` has PostgreSQL's.

A search by create_time leaves jobs out whose names are further off.
"""
OPEN: Final = frozenset(state for state in JobState if not is_terminal(state))
"""States of the jobs that have not ended. Such jobs have an index of their own."""
FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)
_ENDS: Final = ("-infinity", "infinity")


class Order(NamedTuple):
    """column: `id`, which has the time in front, or `end_time`, which only ended jobs have."""

    column: str = "id"
    descending: bool = True


ORDERS: Final = {
    "": Order(),
    "create_time desc": Order(),
    "create_time": Order("id", descending=False),
    "end_time desc": Order("end_time"),
    "end_time": Order("end_time", descending=False),
}


class Search(NamedTuple):
    """What a request asks for. states, labels: as in ListJobsRequest; empty for all."""

    owner: str
    filter: filters.Filter
    order: Order = Order()
    states: frozenset[JobState] = frozenset()
    labels: dict[str, str] = {}  # noqa: RUF012 - a tuple's default, which nobody changes

    @property
    def reachable(self) -> frozenset[JobState]:
        """States of what it may find."""
        return self.filter.reach.states & (self.states or frozenset(JobState))


def order_of(text: str) -> Order:
    """The order that an `order_by` names. FluoroError INVALID_ARGUMENT if there is no such."""
    try:
        # A caller may send megabytes; splitting them would cost more than the answer.
        return ORDERS[" ".join(text.split()) if len(text) < 64 else "?"]  # noqa: PLR2004 - longer than any
    except KeyError:
        names = ", ".join(filter(None, ORDERS))
        raise _invalid("order_by", f"Must be one of: {names}.") from None


# Said as a range: the order by owner and id is then that of this index and of no other. After an
# equality PostgreSQL may walk through everybody's jobs by id, if few owners have most of them.
_ONE_OWNER: Final = "owner >= %(owner)s AND owner <= %(owner)s"
# The jobs that are looked at, numbered; of these the wanted ones, and the one after the last.
_SCAN: Final = f"""
  SELECT * FROM (
    SELECT *, row_number() OVER (ORDER BY {{order}}) AS place FROM (
      SELECT * FROM jobs WHERE {{start}}
      ORDER BY {{order}} LIMIT (SELECT {LOOKED_AT} + 1)
    ) looked_at
  ) numbered
  WHERE {{end}} AND (place > {LOOKED_AT}
    OR ((%(states)s::text[] = '{{{{}}}}' OR state = ANY(%(states)s)) AND labels @> %(labels)s
      AND {{filter}}))
"""
# A page ends with the job that takes it over PAGE_BYTES; the next one begins with the one after.
_PAGE: Final = f"""
SELECT {JOB_COLUMNS}, id AS key_id, end_time AS key_time, seen FROM (
  SELECT *, coalesce(sum(weight) OVER (
      ORDER BY {{order}} ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING), 0) AS before_last,
    CASE WHEN coalesce(sum(weight) OVER (
      ORDER BY {{order}} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) >= {PAGE_BYTES}
      THEN {LOOKED_AT} + 1 ELSE place END AS seen
  FROM (
    SELECT *, octet_length(labels::text) + octet_length(message) AS weight FROM ({{scan}}) scan
    ORDER BY {{order}} LIMIT %(limit)s
  ) wanted
) weighed WHERE before_last < {PAGE_BYTES} ORDER BY {{order}}
"""
_NAMES: Final = """
SELECT id, end_time, place FROM ({scan}) scan ORDER BY {order} LIMIT %(limit)s
"""
_OPEN_JOBS: Final = f"""
SELECT count(*) FROM (SELECT FROM jobs WHERE {_ONE_OWNER} AND end_time IS NULL
  ORDER BY owner, id LIMIT (SELECT %(most)s::int8)) open
"""
_COUNT: Final = f"""
SELECT CASE WHEN place <= {LOOKED_AT} THEN state END, coalesce(pipeline, ''), count(*),
  max(CASE WHEN place > {LOOKED_AT} THEN id::text END)
FROM ({{scan}}) scan GROUP BY 1, 2
"""


def list_jobs(
    connection: LedgerConnection, owner: str, request: ListJobsRequest
) -> ListJobsResponse:
    """One page of the owner's jobs: nothing repeats or hides when jobs come in.

    FluoroError FILTER_INVALID, or INVALID_ARGUMENT for an order_by, read_mask, page_size or
    page_token that does not fit.
    """
    limit, hidden = page_size(request), _hidden(request.read_mask)
    search = Search(
        owner,
        filters.parse(request.filter),
        order_of(request.order_by),
        frozenset(
            JobState(job_pb2.Job.State.Name(state).removeprefix("STATE_"))
            for state in request.states
        ),
        dict(request.labels),
    )
    key = read_key(request, search.order)
    # A filter that nothing can pass, such as two states at once, needs no look at the ledger.
    if not search.reachable:
        return ListJobsResponse()

    def make(row: TupleRow) -> job_pb2.Job:
        job = job_of(row[:-3])
        for field in hidden:
            job.ClearField(field)  # type: ignore[arg-type]  # a name that `_hidden` has from Job
        return job

    rows = connection.execute(*_statement(_PAGE, search, key, limit))
    jobs, following = cut(rows_of(rows), limit, make)
    return ListJobsResponse(jobs=jobs, next_page_token=_token(request, search.order, following))


def find(
    connection: LedgerConnection, search: Search, key: Key | None, limit: int
) -> tuple[list[UUID], Key | None]:
    """Ids of the next jobs from this key on, and where the ones after them begin.

    limit: most of them. None if none come after them.
    """
    if not search.reachable:
        return [], None
    rows = connection.execute(*_statement(_NAMES, search, key, limit)).fetchall()
    # Rows beyond LOOKED_AT were not filtered: they mark the place, and belong to the next page.
    found = [row[0] for row in rows[:limit] if row[2] <= LOOKED_AT]
    return found, _key(search.order, rows[len(found)]) if len(rows) > len(found) else None


def count(
    connection: LedgerConnection, search: Search, key: Key | None
) -> tuple[Counter[tuple[JobState, str]], Key | None]:
    """How many jobs of each state and pipeline there are among the next LOOKED_AT.

    And where those after them begin. A pipeline is "" for jobs of explicit steps.
    """
    counts: Counter[tuple[JobState, str]] = Counter()
    following: Key | None = None
    if not search.reachable:
        return counts, following
    rows = connection.execute(*_statement(_COUNT, search, key, 0)).fetchall()
    for state, pipeline, number, after in rows:
        # The row that marks the place has no state, because it was not filtered.
        if state is None:
            following = [after]
        else:
            counts[JobState(state), pipeline] = number
    return counts, following


def read_key(request: Any, order: Order) -> Key | None:
    """Where a request's page begins; None for the first one. FluoroError as from `read_token`."""
    key = read_token(request, *([str] if order.column == "id" else [str, str]))
    if key is not None:
        # A token is a caller's text. Checked here, a forged one is INVALID_ARGUMENT and not an
        # error of PostgreSQL.
        uuid_of(key[-1])
        if order.column == "end_time":
            _time_of(key[0])
    return key


def _statement(
    text: str, search: Search, key: Key | None, limit: int
) -> tuple[str, dict[str, Any]]:
    # Each order has its own index, and its own way to say where a page begins.
    place = _by_end if search.order.column == "end_time" else _by_id
    start, end, bounds = place(search, key)
    first = "owner" if search.order.column == "id" else "end_time"
    way = " DESC" if search.order.descending else ""
    order = f"{first}{way}, id{way}"
    scan = _SCAN.format(order=order, start=start, end=end, filter=search.filter.sql)
    parameters = {
        "owner": search.owner,
        "states": list(search.states),
        "labels": Jsonb(search.labels),
        "limit": limit + 1,
    }
    return text.format(scan=scan, order=order), search.filter.parameters | parameters | bounds


def _by_id(search: Search, key: Key | None) -> tuple[str, str, dict[str, Any]]:
    """The ids to look at: those that come after the key and may have been created in time."""
    since, until = search.filter.reach.created
    low, high = id_at(since, -CLOCK_SLACK) or FIRST, id_at(until, CLOCK_SLACK) or LAST
    begins = low if not search.order.descending else high
    if key is not None:
        token = uuid_of(key[-1])
        # The page never begins outside what the filter reaches, whatever the token says.
        begins = min(token, high) if search.order.descending else max(token, low)
    comes, goes = ("<=", ">=") if search.order.descending else (">=", "<=")
    last = low if search.order.descending else high
    # The index of open jobs is partial; PostgreSQL uses it only if the statement says its
    # condition.
    is_open = " AND end_time IS NULL" if search.reachable <= OPEN else ""
    return (
        f"{_ONE_OWNER} AND id {comes} %(start)s{is_open}",
        # One bound enters the index, the other is a filter (see above), left out if it cuts off
        # nothing.
        "true" if last in {FIRST, LAST} else f"id {goes} %(last)s",
        {"start": begins, "last": last},
    )


def _by_end(search: Search, key: Key | None) -> tuple[str, str, dict[str, Any]]:
    """The same for ends of jobs."""
    since, until = search.filter.reach.ended
    low = "-infinity" if since == filters.EARLIEST else since.isoformat()
    high = "infinity" if until == filters.LATEST else until.isoformat()
    begins, last = (high, low) if search.order.descending else (low, high)
    # Several jobs may end in one instant; the id breaks the tie, and these are before and after all
    # ids.
    first = LAST if search.order.descending else FIRST
    if key is not None:
        begins, first = _time_of(key[0]).isoformat(), uuid_of(key[1])
    comes, goes = ("<=", ">=") if search.order.descending else (">=", "<=")
    after = f"(end_time, id) {comes} (%(start)s::timestamptz, %(first)s)"
    return (
        f"owner = %(owner)s AND end_time IS NOT NULL AND {after}",
        "true" if last in _ENDS else f"end_time {goes} %(last)s::timestamptz",
        {"start": begins, "first": first, "last": last},
    )


def id_at(when: datetime, slack: timedelta) -> UUID | None:
    """The first (or last, if the slack is positive) id that may have this time; None for no bound.

    An id begins with milliseconds since the epoch (`ids.py`).
    """
    try:
        millis = int((when + slack).timestamp() * 1000)
    except OverflowError:  # the end of time
        return None
    if not 0 <= millis < 2**48:
        # A negative time has no id. As a lower bound it cuts off nothing, as an upper one
        # everything.
        return None if millis < 0 and slack < timedelta() else UUID(int=0)
    # Ids of one millisecond differ in their last 80 bits; an upper bound has to include all of
    # them.
    return UUID(int=(millis << 80) + (2**80 - 1 if slack > timedelta() else 0))


def _key(order: Order, row: TupleRow) -> Key:
    """Of a row whose last columns are id, end_time and place."""
    job_id, end_time, _ = row[-3:]
    if order.column == "id":
        return [str(job_id)]
    return [end_time.astimezone(UTC).isoformat(), str(job_id)]


def _token(request: ListJobsRequest, order: Order, following: TupleRow | None) -> str:
    return write_token(request, _key(order, following)) if following else ""


def _time_of(text: int | str) -> datetime:
    try:
        # In one form: a caller may have written the token, and Python reads more than PostgreSQL.
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _invalid("page_token", "Must be a next_page_token.") from None


def _hidden(mask: FieldMask) -> list[str]:
    """Fields of a job that the mask leaves out. FluoroError INVALID_ARGUMENT if it has others."""
    fields = job_pb2.Job.DESCRIPTOR.fields_by_name
    if not mask.paths or list(mask.paths) == ["*"]:
        return []
    if len(mask.paths) > len(fields) or not set(mask.paths) <= set(fields):
        raise _invalid("read_mask", "Must be fields of Job, without their parts; or * for all.")
    return [name for name in fields if name not in set(mask.paths)]


def _invalid(field: str, description: str) -> FluoroError:
    return FluoroError(
        Reason.INVALID_ARGUMENT,
        f"{field}: {description}",
        [FieldViolation(field, description)],
    )


def open_jobs(connection: LedgerConnection, owner: str, most: int) -> int:
    """How many jobs of the owner have not ended, counted up to `most`."""
    # The count stops at `most`: an owner's limit is checked at every submit.
    row = connection.execute(_OPEN_JOBS, {"owner": owner, "most": most}).fetchone()
    assert row is not None
    return int(row[0])

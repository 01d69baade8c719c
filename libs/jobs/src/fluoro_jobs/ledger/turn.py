"""One turn of a queue's dispatch, as the ledger sees it: which ready tasks take the free places.

A turn costs what it fills. It takes at most MAX_TAKEN tasks and looks at most at MAX_LINES lines,
however many wait. Any process may have a queue's turn, one at a time. The lock belongs to the
statement, so it works through a transaction pooler and dies with its holder.
"""

from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.operations import QUEUES

MAX_TAKEN: Final = 256
"""Most tasks that one turn takes."""
MAX_LINES: Final = 256
"""Most lines that one turn looks at; a line is one owner's ready tasks of one operation.

Where there are more, the next turn goes on after the last of them.
"""
AHEAD_SECONDS: Final = 0.5
"""A queue holds this much work beyond the free slots: short tasks do not starve the slots, and
behind a task that runs longer than this nothing is queued, so that order is decided late."""
MAX_AHEAD_PER_SLOT: Final = 100
"""Most tasks that a queue holds ahead for each slot, however short they are."""
MAX_AHEAD: Final = 2_000
"""The same for all slots together: taking and sending more ahead would take longer than running."""
MAX_PROMOTED: Final = 1_000
"""Most tasks that become ready in one statement because their time has come."""
RECALLED_AFTER_SECONDS: Final = 5
"""A task that was queued this long ago, in a queue that holds too much, is ready again."""

Taken = tuple[UUID, str, str, int]
"""Task id, Celery task name, queue, number of the attempt that is next."""
Line = tuple[str, str]
"""Task name and owner."""
FIRST: Final[Line] = ("", "")
"""Comes before every line."""


class Turn(NamedTuple):
    """What became of a turn.

    mine: False if another process has the queue's turn; nothing was done then. due: whether
    waiting tasks have become due; `promote` makes them ready. places: how many the queue had;
    negative if it holds too much; None if nothing was ready, or there is no worker. last: the line
    after which the next turn goes on; None if this one looked at all. most: how many tasks of one
    line it looked at. blocked: whether another queue's turn kept it from an owner with a limit.
    unserved: tasks are ready, and the queue has no worker.
    """

    mine: bool
    due: bool
    places: int | None
    last: Line | None
    most: int
    taken: list[Taken]
    came_round: bool = False
    blocked: bool = False
    unserved: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether another turn may find more to take at once."""
        # No line can have more if fewer were taken than one of them may give.
        may_have_more = bool(self.taken) and len(self.taken) >= min(self.most, MAX_TAKEN)
        # These lines may be of owners at their limits; those behind them are not to wait for it.
        goes_further = self.last is not None and not self.came_round
        more = may_have_more or goes_further or self.blocked
        # Whoever did not get the turn asks again: what made it ask may not have been there when the
        # other turn read.
        return not self.mine or self.due or (not self.is_full and more)

    @property
    def is_full(self) -> bool:
        """Whether the queue has no place left."""
        return self.places is not None and self.places <= len(self.taken)


# As the conditions of the table's indexes have it.
_READY: Final = "t.dispatch_order IS NOT NULL"
_IN_FLIGHT: Final = "t.queued_time IS NOT NULL"
_WAITING: Final = "t.dispatch_order IS NULL AND t.queued_time IS NULL"
_ORDER: Final = "t.order_time - t.priority * interval '1 min'"

# `walk` goes from line to line by jumps along the index of ready tasks, and over the operations
# that no worker knows: it reads no task of theirs. After the last line it begins again, up to where
# it started (`again`).
# `ranked` is fair share: an owner's n-th ready task competes as the (in flight + n)-th; of one rank
# the older goes first.
# What one statement reads it reads as of one moment. A turn whose moment was before the end of
# another one chooses the same tasks, and finds them taken.
# With limits that is not enough: turns of two queues choose different tasks of one owner. So a
# turn that takes tasks of an owner with a limit leaves a new version of the owner's row (`spent`).
# A turn whose moment was before that finds the row locked, or its `version` gone, and passes over
# the owner (`held`). It waits for nobody, so no two turns wait for each other.
# A worker without a measure gets nothing ahead (`listed`): its tasks may be long. A turn of few
# lines may fill up with one of them, one of many looks at few tasks of each (`most`). `locked`
# passes over rows that a cancel holds: waiting would keep the queue's turn from everybody. `spent`
# writes what it read, because only the row's new version counts.
_TURN: Final = f"""
WITH RECURSIVE turn AS MATERIALIZED (
  SELECT EXISTS (SELECT FROM open_tasks t WHERE t.queue = %(queue)s AND {_READY}) AS ready,
    EXISTS (SELECT FROM open_tasks t
      WHERE t.queue = %(queue)s AND {_WAITING} AND t.due_time <= now()) AS due,
    pg_try_advisory_xact_lock(hashtextextended('fluoro dispatch ' || %(queue)s, 0)) AS mine
), listed AS MATERIALIZED (
  SELECT w.id, w.slots, w.operations, w.slots * CASE WHEN w.task_seconds > 0
    THEN least({MAX_AHEAD_PER_SLOT}, floor({AHEAD_SECONDS} / w.task_seconds)) ELSE 0 END AS ahead
  FROM turn, workers w
  WHERE turn.mine AND turn.ready AND w.queue = %(queue)s AND w.expire_time > now()
), in_flight AS MATERIALIZED (  -- by owner, and by worker: the queued ones have none
  SELECT t.owner, t.worker_id, count(*) AS tasks,
    count(*) FILTER (WHERE t.state = 'QUEUED') AS queued
  FROM turn, open_tasks t
  WHERE turn.mine AND turn.ready AND t.queue = %(queue)s AND {_IN_FLIGHT}
  GROUP BY GROUPING SETS (t.owner, t.worker_id)
), room AS MATERIALIZED (  -- a worker of the previous release lists no operations: it gets any
  SELECT (sum(greatest(w.slots - coalesce(f.tasks, 0), 0)) + least(sum(w.ahead), {MAX_AHEAD})
    - coalesce((SELECT sum(queued) FROM in_flight WHERE owner IS NULL), 0))::int AS places,
    CASE WHEN bool_and(cardinality(w.operations) > 0) THEN (
      SELECT array_agg(DISTINCT name)
      FROM (SELECT DISTINCT operations FROM listed) alike, unnest(alike.operations) name
    ) END AS known
  FROM listed w LEFT JOIN in_flight f ON f.worker_id = w.id
), walk AS (
  SELECT %(after_name)s::text AS task_name, %(after_owner)s::text AS owner, true AS known,
    false AS again, 0 AS n
  FROM room WHERE places > 0
  UNION ALL
  SELECT next.task_name, next.owner, coalesce(next.task_name = ANY(room.known), true), next.again,
    w.n + 1
  FROM walk w, room, LATERAL (
    (SELECT t.task_name, t.owner, w.again FROM open_tasks t
      WHERE w.known AND t.queue = %(queue)s AND {_READY}
        AND (t.task_name, t.owner) > (w.task_name, w.owner)
      ORDER BY t.task_name, t.owner LIMIT 1)
    UNION ALL
    (SELECT t.task_name, t.owner, w.again FROM open_tasks t
      WHERE NOT w.known AND t.queue = %(queue)s AND {_READY} AND t.task_name > w.task_name
      ORDER BY t.task_name, t.owner LIMIT 1)
    UNION ALL
    (SELECT t.task_name, t.owner, true FROM open_tasks t
      WHERE NOT w.again AND t.queue = %(queue)s AND {_READY}
      ORDER BY t.task_name, t.owner LIMIT 1)
    LIMIT 1
  ) next
  WHERE w.n < {MAX_LINES}
    AND (NOT next.again OR (next.task_name, next.owner) <= (%(after_name)s, %(after_owner)s))
), lines AS MATERIALIZED (
  SELECT task_name, owner, greatest(1, 2 * {MAX_TAKEN} / count(*) OVER ()) AS most
  FROM walk WHERE n > 0 AND known
), limited AS MATERIALIZED (  -- an owner's limit is over all queues
  SELECT l.owner, o.version, o.max_tasks - (SELECT count(*) FROM open_tasks t
    WHERE t.queue = ANY(%(queues)s) AND t.owner = l.owner AND {_IN_FLIGHT}) AS allowed
  FROM (SELECT DISTINCT owner FROM lines) l CROSS JOIN LATERAL (
    SELECT xmin AS version, max_tasks FROM owners
    WHERE owner = l.owner AND max_tasks IS NOT NULL OFFSET 0) o
), held AS MATERIALIZED (
  SELECT o.owner FROM owners o JOIN limited m ON m.owner = o.owner
  WHERE o.owner = ANY(ARRAY(SELECT owner FROM limited WHERE allowed > 0)) AND o.xmin = m.version
  FOR NO KEY UPDATE OF o SKIP LOCKED
), shares AS MATERIALIZED (
  SELECT l.owner, coalesce(f.tasks, 0) AS in_flight,
    CASE WHEN h.owner IS NULL AND m.owner IS NOT NULL THEN 0 ELSE m.allowed END AS allowed
  FROM (SELECT DISTINCT owner FROM lines) l LEFT JOIN in_flight f ON f.owner = l.owner
    LEFT JOIN limited m ON m.owner = l.owner LEFT JOIN held h ON h.owner = l.owner
), ranked AS (
  SELECT c.task_id, c.dispatch_order, s.allowed, s.in_flight,
    row_number() OVER (PARTITION BY l.owner ORDER BY c.dispatch_order) AS nth
  FROM lines l JOIN shares s ON s.owner = l.owner CROSS JOIN room CROSS JOIN LATERAL (
    SELECT t.task_id, t.dispatch_order FROM open_tasks t
    WHERE t.queue = %(queue)s AND {_READY} AND t.task_name = l.task_name
      AND t.owner = l.owner
    ORDER BY t.dispatch_order LIMIT least(l.most, room.places)) c
), chosen AS MATERIALIZED (
  SELECT task_id, row_number() OVER (ORDER BY nth + in_flight, dispatch_order) AS place
  FROM ranked WHERE allowed IS NULL OR nth <= allowed
  ORDER BY nth + in_flight, dispatch_order
  LIMIT (SELECT greatest(0, least(places, {MAX_TAKEN})) FROM room)
), locked AS MATERIALIZED (
  SELECT task_id FROM open_tasks
  WHERE task_id = ANY(ARRAY(SELECT task_id FROM chosen)) AND state = 'READY'
  FOR UPDATE SKIP LOCKED
), taken AS (
  UPDATE open_tasks t SET state = 'QUEUED', queued_time = now(), dispatch_order = NULL
  FROM locked l WHERE t.task_id = l.task_id
    RETURNING t.task_id, t.task_name, t.owner, t.attempt + 1 AS number
), spent AS (
  UPDATE owners SET max_tasks = max_tasks
  WHERE owner = ANY(ARRAY(SELECT DISTINCT owner FROM taken JOIN held USING (owner)))
), sent AS (
  SELECT t.task_id, t.task_name, t.number, c.place FROM taken t JOIN chosen c USING (task_id)
)
SELECT turn.mine, turn.due, (SELECT places FROM room),
  (SELECT ARRAY[task_name, owner] FROM walk WHERE n = {MAX_LINES}),
  coalesce((SELECT bool_or(again) FROM walk), false),
  coalesce((SELECT max(most) FROM lines), 0),
  (SELECT array_agg(task_id ORDER BY place) FROM sent),
  (SELECT array_agg(task_name ORDER BY place) FROM sent),
  (SELECT array_agg(number ORDER BY place) FROM sent),
  (SELECT count(*) FROM limited WHERE allowed > 0) > (SELECT count(*) FROM held),
  turn.mine AND turn.ready AND NOT EXISTS (SELECT FROM listed)
FROM turn
"""

# Rows that another process promotes, or a cancel holds, need nobody to wait for them.
_PROMOTE: Final = f"""
WITH due AS MATERIALIZED (
  SELECT task_id FROM open_tasks t WHERE t.queue = %s AND {_WAITING} AND t.due_time <= now()
  ORDER BY t.due_time LIMIT {MAX_PROMOTED} FOR UPDATE SKIP LOCKED
)
UPDATE open_tasks t SET state = 'READY', dispatch_order = {_ORDER}
FROM due WHERE t.task_id = due.task_id
"""

# The newest go back: the others are next to be taken by a worker.
_RECALL: Final = f"""
WITH excess AS MATERIALIZED (
  SELECT task_id FROM open_tasks t WHERE t.queue = %s AND {_IN_FLIGHT} AND t.state = 'QUEUED'
    AND t.queued_time < now() - interval '{RECALLED_AFTER_SECONDS} s'
  ORDER BY t.queued_time DESC LIMIT %s FOR UPDATE SKIP LOCKED
)
UPDATE open_tasks t SET state = 'READY', queued_time = NULL, dispatch_order = {_ORDER}
FROM excess WHERE t.task_id = excess.task_id
"""

# Only as it was asked for: the task may be queued for a later attempt, which another worker takes.
_DECLINE: Final = """
UPDATE open_tasks SET state = 'WAITING', queued_time = NULL,
  due_time = now() + %(seconds)s * interval '1 s'
WHERE task_id = %(task)s AND state = 'QUEUED'
  AND attempt + 1 = coalesce(%(number)s::int, attempt + 1)
"""


def take(connection: LedgerConnection, queue: str, after: Line = FIRST) -> Turn:
    """READY → QUEUED for as many tasks as the queue has places, by fair share, age and priority.

    after: the `last` of the turn before.
    """
    parameters: dict[str, Any] = {
        "queue": queue,
        "queues": list(QUEUES),
        "after_name": after[0],
        "after_owner": after[1],
    }
    row = connection.execute(_TURN, parameters).fetchone()
    assert row is not None
    mine, due, places, last, came_round, most, tasks, names, numbers, blocked, unserved = row
    taken = [
        (task, name, queue, number)
        for task, name, number in zip(tasks or (), names or (), numbers or (), strict=True)
    ]
    following = None if last is None else (last[0], last[1])
    return Turn(mine, due, places, following, most, taken, came_round, blocked, unserved)


def promote(connection: LedgerConnection, queue: str) -> int:
    """WAITING → READY for the tasks of the queue that have become due. Returns how many.

    A task keeps its place in the order, which counts from when it was first due.
    """
    return connection.execute(_PROMOTE, (queue,)).rowcount


def recall(connection: LedgerConnection, queue: str, tasks: int) -> int:
    """QUEUED → READY for that many tasks at most. Returns how many.

    For a queue that turns out to hold too much: its tasks take longer than those before, or it has
    lost workers. Their messages stay where they are, and do nothing when they come.
    """
    return connection.execute(_RECALL, (queue, tasks)).rowcount


def decline(
    connection: LedgerConnection, task_id: UUID, number: int | None, seconds: float
) -> bool:
    """Hands back, unclaimed, a queued task that this worker cannot run.

    It costs the task nothing: it is dispatched again after that many seconds. False if the message
    that asked for attempt `number` is stale.
    """
    parameters = {"task": task_id, "number": number, "seconds": seconds}
    return bool(connection.execute(_DECLINE, parameters).rowcount)

"""Who dispatches a queue, and how often: one process at a time, and only when the queue needs it.

Every process that frees a slot or makes a task ready has a reason to dispatch. With a thousand
workers that is a thousand reasons a second, and one turn serves all that came before it. So they
share two keys in Redis for each queue: who has the turn, until the queue has rested; and which
owner comes next. Wiping them costs nothing, and the ledger itself lets one turn happen at a time.
"""

import json
import time
from typing import Final, NamedTuple

import redis

from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.turn import FIRST, Line, Turn

REST_FACTOR: Final = 4
"""A queue rests for this many times as long as its turn took the ledger: dispatching it takes a
fifth of one of PostgreSQL's processors at most, however many processes have a reason to."""
TURN_SECONDS: Final = 1
"""How long a queue waits for a process that took the turn and stopped."""
SHORTEST_WAIT_SECONDS: Final = 0.005
"""Least time between two looks at a queue: what becomes free or ready meanwhile goes together."""
LONGEST_WAIT_SECONDS: Final = 0.05
"""Longest pause between looks at a queue that holds plenty, or whose turn somebody else has.

Also between two at a queue without a worker: the first one that comes looks for itself.
"""
PLENTY: Final = 10
"""A queue that is full and holds at least this much is left alone until half of it is gone."""
PLENTY_SECONDS: Final = 1
"""How long that holds: workers come and go."""
LINE_SECONDS: Final = 3600
"""How long Redis keeps the owner who comes next."""


class Look(NamedTuple):
    """What a look at a queue said.

    mine: this process has the turn. wait_seconds: when to look again; None if the turn is mine, or
    none is needed. seen: the turn that another process had. It began before the reason to look
    came, so it may have missed that. holds_plenty: no look before that time says anything else.
    """

    mine: bool = False
    wait_seconds: float | None = None
    seen: bytes | None = None
    holds_plenty: bool = False


MINE: Final = Look(mine=True)
DONE: Final = Look()
SOON: Final = Look(wait_seconds=SHORTEST_WAIT_SECONDS)


class Pace:
    """One queue, as one process sees it. Raises redis.RedisError."""

    def __init__(self, client: "redis.Redis", queue: str) -> None:
        """client: answers in bytes."""
        self.after: Line = FIRST
        self._redis = client
        self._queue = queue
        self._turn_key = f"fluoro:turn:{queue}"
        self._after_key = f"fluoro:after:{queue}"
        self._held = 0
        self._enough = 0
        self._enough_until = 0.0
        self._quiet_until = 0.0

    def look(self, seen: bytes | None = None) -> Look:
        """Takes the turn if it is free and the queue needs one. seen: by the look before."""
        started = time.monotonic()
        if started < self._quiet_until:
            return Look(wait_seconds=self._quiet_until - started, seen=seen, holds_plenty=True)
        # One round trip without a transaction, because nothing here decides what is true.
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.llen(self._queue)
            pipe.get(self._after_key)
            pipe.get(self._turn_key)
            pipe.pttl(self._turn_key)
            # The value tells turns apart: who waits for one sees by it that another has begun.
            pipe.set(self._turn_key, new_id().hex, nx=True, px=1000 * TURN_SECONDS)
            self._held, after, turn, left_ms, mine = pipe.execute()
        # More than half of what it held when it was full is still there: nothing is short of work.
        if mine and self._held > self._enough and started < self._enough_until:
            # Given back: another process may need the turn.
            self._redis.delete(self._turn_key)
            # Not done: once it holds less, nobody else may have a reason to look.
            self._quiet_until = started + LONGEST_WAIT_SECONDS
            return Look(wait_seconds=LONGEST_WAIT_SECONDS, holds_plenty=True)
        if mine:
            self.after = _line(after)
            return MINE
        if turn is None or seen not in {None, turn}:
            return DONE  # a turn that began after the reason to look came, and serves it
        # Not before the turn can be over, and not so late that a freed slot idles.
        wait = min(max(left_ms / 1000, SHORTEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS)
        return Look(wait_seconds=wait, seen=turn)

    def over(self, turn: Turn, seconds: float) -> None:
        """The turn is over. seconds: how long it took the ledger."""
        held = self._held + len(turn.taken)
        if turn.is_full and held >= PLENTY:
            self._enough, self._enough_until = held // 2, time.monotonic() + PLENTY_SECONDS
        if turn.unserved:
            self._quiet_until = time.monotonic() + LONGEST_WAIT_SECONDS
        if turn.last is not None:
            self.after = turn.last
            # In Redis, because the next turn may be another process's.
            self._redis.set(self._after_key, json.dumps(turn.last), ex=LINE_SECONDS)
        # Not deleted: the queue rests for as long as somebody seems to have its turn.
        # At least a millisecond: PEXPIRE with 0 deletes the key, and the queue would not rest.
        self._redis.pexpire(self._turn_key, max(1, round(1000 * REST_FACTOR * seconds)))


def _line(stored: bytes | None) -> Line:
    """The line that `over` stored, if any."""
    if stored is None:
        return FIRST
    task_name, owner = json.loads(stored)
    return task_name, owner

"""What can happen: to jobs, tasks, attempts, messages, workers and time."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro.v1 import job_pb2
from hypothesis import strategies as st
from psycopg import Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts
from fluoro_jobs.ledger.attempts import Claim, Following
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.records import ItemResult, TaskResult

STATES: Final = {
    "S": job_pb2.Item.STATE_SUCCEEDED,
    "K": job_pb2.Item.STATE_SKIPPED,
    "F": job_pb2.Item.STATE_FAILED,
}
"""Of items, by their letters in the model."""
RESULTS: Final = ("SS", "SF", "FF", "KK", "SK", "")
"""Of the first two inputs of a task. One that has no items leaves nothing for others to take up."""


def _commit(letters: str) -> tuple[str, "Ending"]:
    def act(
        db: LedgerConnection, claim: Claim, _job: UUID, following: Following | None = None
    ) -> bool:
        shard, numbers = (
            claim.task.shard,
            range(claim.task.first_input, claim.task.first_input + claim.task.input_count),
        )
        items = [
            ItemResult(number, str(number), None, STATES[letter])
            for number, letter in zip(numbers, letters, strict=False)
        ]
        blob, name = f"blobs/{new_id()}", f"{shard}-{claim.attempt}"
        artifact = job_pb2.Artifact(
            name=name,
            role="result",
            key=name,
            media_type="text/plain",
            blob=blob,
            size_bytes=1,
            sha256=bytes(32),
        )
        left = [artifact] if items else []
        return bool(attempts.commit(db, claim, TaskResult(b"", items, left), following))

    return letters, act


def _error(*, retryable: bool) -> FluoroError:
    return FluoroError(Reason.INTERNAL, "It went wrong.", retryable=retryable)


def _outage(db: LedgerConnection, claim: Claim, _job: UUID) -> bool:
    done = bool(attempts.fail(db, claim, FluoroError(Reason.BLOB_STORE_UNAVAILABLE, "Away.")))
    # However slow this machine is, the wait is not over before the model says so.
    db.execute(
        (
            "UPDATE open_tasks SET due_time = now() + interval '10 min'"
            " WHERE task_id = %s AND state = 'WAITING' AND %s"
        ),
        (claim.task_id, done),
    )
    return done


Ending = Callable[..., bool]
ENDINGS: Final[dict[str, tuple[str, Ending]]] = {
    **{f"commit {letters}": _commit(letters) for letters in RESULTS},
    "fail": ("again", lambda db, c, _: bool(attempts.fail(db, c, _error(retryable=True)))),
    "fail for good": (
        "never",
        lambda db, c, _: bool(attempts.fail(db, c, _error(retryable=False))),
    ),
    "time out": ("again", lambda db, c, _: bool(attempts.time_out(db, c.of, 1))),
    "lose": ("again", lambda db, c, _: bool(attempts.lose(db, c.of, "Gone."))),
    "outage": ("outage", _outage),
    "release": ("released", lambda db, c, _: bool(attempts.release(db, c.of))),
}
"""How an attempt can end: what the model is told, and what is done to the ledger."""


class Submission(NamedTuple):
    """A job to be.

    steps: of each, the steps it comes after, its max_attempts, whether it fans out, whether it
    requires all items, and whether it takes up what those before it left.
    """

    owner: str
    request_id: str
    steps: tuple[tuple[tuple[int, ...], int, bool, bool, bool], ...]


class Move(NamedTuple):
    """A method of the machine, and with what."""

    name: str
    arguments: tuple[Any, ...]


class Overtaken:
    """A connection on which something happens before its statement number `when`.

    Unless that statement is one of a transaction, which may hold a lock, or of a pipeline.
    """

    def __init__(self, db: LedgerConnection, when: int, meanwhile: Callable[[], None]) -> None:
        """meanwhile: what happens, once."""
        self._db, self._wait, self._meanwhile = db, when, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, *arguments: Any) -> Any:
        """As the connection does."""
        self.look()
        return self._db.execute(*arguments)

    def cursor(self) -> "_Watched":
        """One on which statements count as well."""
        return _Watched(self, self._db.cursor())

    def look(self) -> None:
        """Lets it happen, if the next statement is the one."""
        self._wait -= 1
        alone = self._db.info.transaction_status is TransactionStatus.IDLE
        if self._wait == 0 and alone and not self._db.pgconn.pipeline_status:
            self._meanwhile()


class _Watched:
    """A cursor of a connection that is overtaken."""

    def __init__(self, connection: Overtaken, cursor: Cursor[TupleRow]) -> None:
        self._connection, self._cursor = connection, cursor

    def execute(self, *arguments: Any) -> Cursor[TupleRow]:
        """As the cursor does."""
        self._connection.look()
        return self._cursor.execute(*arguments)


@st.composite
def submissions(draw: st.DrawFn) -> Submission:
    """Graphs of up to four steps, in the order they run in."""
    edges = [
        tuple(sorted(draw(st.sets(st.integers(0, i - 1))))) if i else ()
        for i in range(draw(st.integers(1, 4)))
    ]
    flag = st.booleans()
    steps = tuple(
        (after, draw(st.integers(1, 3)), draw(flag), draw(flag), draw(flag)) for after in edges
    )
    return Submission(
        draw(st.sampled_from(["ann", "bob"])), draw(st.sampled_from(["", "r", "q"])), steps
    )


WORKER: Final = st.integers(0, 1)
HOW: Final = st.sampled_from(sorted(ENDINGS))
MOVES: Final[tuple[tuple[Any, ...], ...]] = (
    (6, "deliver", "messages", WORKER),
    (6, "run", "messages", WORKER, HOW),
    (4, "end", "live", HOW),
    (6, "deliver", "stale", WORKER),
    (4, "take"),
    (1, "submit", st.lists(submissions(), min_size=1, max_size=2)),
    (1, "submit_again", "named_requests"),
    (1, "submit_another_body", "named_requests", submissions()),
    (1, "cancel_job", "jobs"),
    (2, "retry_job", "jobs"),
    (2, "redis", "messages", st.sampled_from(["lost", "duplicated", "wiped with all"])),
    (2, "redis", "messages", st.just("duplicated")),
    (2, "reconcile"),
    (2, "end", "late", HOW),
    (4, "end", "fenced", HOW),
    (3, "expire_lease", "live"),
    (2, "sweep"),
    (3, "end_back_off", "resting"),
    (1, "expire_job", "jobs"),
    (1, "beat", WORKER),
    (1, "leave", WORKER),
    (1, "release_all", WORKER),
    (1, "pool_child_dies", "tried", WORKER),
    (5, "overtake", "rivals", st.integers(2, 3)),
)
"""What can happen.

How often, compared with the others; which method; with which of the machine's things, or with one
of a strategy.
"""

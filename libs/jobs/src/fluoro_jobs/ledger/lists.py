"""The parts of a job in pages: inputs, tasks, items, artifacts and results.

Every page begins at a key and follows an index from there. What it costs depends on the page and
not on what is stored: see `paging.py`. `search.py` says why a limit is hidden from the planner.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro.v1.job_service_pb2 import (
    ListArtifactsRequest,
    ListArtifactsResponse,
    ListInputsRequest,
    ListInputsResponse,
    ListItemsRequest,
    ListItemsResponse,
    ListResultsRequest,
    ListResultsResponse,
    ListTasksRequest,
    ListTasksResponse,
    ResultPart,
    StepArtifact,
    StepItem,
    StepTask,
)
from google.protobuf.message import Message
from psycopg.rows import TupleRow

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.paging import (
    LOOKED_AT,
    PAGE_BYTES,
    cut,
    page_size,
    read_token,
    write_token,
)
from fluoro_jobs.ledger.read import job_not_found
from fluoro_jobs.ledger.rows import (
    ARTIFACT_COLUMNS,
    ATTEMPT_COLUMNS,
    ITEM_COLUMNS,
    TASK_COLUMNS,
    TASKS,
    artifact_of,
    attempt_of,
    item_of,
    rows_of,
    task_of,
)

ATTEMPTS: Final = 100
"""Most attempts that a list shows of a task. They are the newest."""
TASKS_TOGETHER: Final = 100
"""Tasks whose attempts are read at once. A page that is full before reads no more."""
_LAST_STEP: Final = 2**15 - 1

Found = TypeVar("Found", bound=Message)
Response = TypeVar("Response", bound=Message)


_INPUTS: Final = """
SELECT blob_id, number FROM job_inputs
WHERE job_id = %(job)s AND number >= %(start)s ORDER BY number LIMIT %(limit)s
"""


def list_inputs(
    connection: LedgerConnection, owner: str, job_id: UUID, request: ListInputsRequest
) -> ListInputsResponse:
    """One page of a job's inputs, in order. FluoroError as from `list_items`."""
    limit, key = page_size(request), read_token(request, int)
    # Checks whose job it is before reading anything of it.
    _steps(connection, owner, job_id)
    start = int(key[0]) if key else 0
    # One row more than asked for shows where the next page begins.
    rows = connection.execute(_INPUTS, {"job": job_id, "start": start, "limit": limit + 1})
    found = rows.fetchall()
    more = found[limit:]
    return ListInputsResponse(
        inputs=[f"blobs/{row[0]}" for row in found[:limit]],
        next_page_token=write_token(request, [more[0][1]]) if more else "",
    )


_TASKS: Final = f"""
SELECT t.step, {TASK_COLUMNS}, t.id, row_number() OVER (ORDER BY t.step, t.shard) FROM (
  SELECT * FROM tasks
  WHERE job_id = %(job)s AND (step, shard) >= (%(step)s, %(start)s) AND step <= %(last)s
  ORDER BY step, shard LIMIT %(limit)s
) {TASKS.removeprefix("tasks ")} ORDER BY t.step, t.shard
"""
_ATTEMPTS: Final = f"""
SELECT a.task_id, {ATTEMPT_COLUMNS} FROM unnest(%s::uuid[]) t(id) CROSS JOIN LATERAL (
  SELECT * FROM attempts WHERE task_id = t.id ORDER BY number DESC LIMIT {ATTEMPTS}
) a ORDER BY a.task_id, a.number
"""


def list_tasks(
    connection: LedgerConnection, owner: str, job_id: UUID, request: ListTasksRequest
) -> ListTasksResponse:
    """One page of a job's tasks with their attempts, by step and shard.

    FluoroError as from `list_items`.
    """
    place = _place(connection, owner, job_id, request, int)
    rows = connection.execute(_TASKS, place.parameters).fetchall()
    attempts: dict[UUID, list[job_pb2.Attempt]] = {}

    def read() -> Iterator[TupleRow]:
        shown = rows[: place.limit]
        for start in range(0, len(shown), TASKS_TOGETHER):
            some = shown[start : start + TASKS_TOGETHER]
            ids = [row[7] for row in some]
            attempts.update((each, []) for each in ids)
            for task_id, *attempt in rows_of(connection.execute(_ATTEMPTS, (ids,))):
                attempts[task_id].append(attempt_of(attempt))
            yield from some
        yield from rows[place.limit :]

    def make(row: TupleRow) -> StepTask:
        task = task_of(row[1:7])
        task.attempts.extend(attempts[row[7]])
        return StepTask(step=place.names[row[0]], task=task)

    tasks, following = cut(read(), place.limit, make)
    return ListTasksResponse(tasks=tasks, next_page_token=place.token(following))


_ITEMS: Final = f"""
SELECT step, number, {ITEM_COLUMNS}, seen FROM (
  SELECT *, row_number() OVER (ORDER BY step, number) AS seen FROM (
    SELECT * FROM items
    WHERE job_id = %(job)s AND (step, number) >= (%(step)s, %(start)s) AND step <= %(last)s
    ORDER BY step, number LIMIT (SELECT {LOOKED_AT} + 1)
  ) looked_at
) numbered
WHERE seen > {LOOKED_AT} OR %(wanted)s::int[] = '{{}}' OR state = ANY(%(wanted)s)
ORDER BY step, number LIMIT %(limit)s
"""


def list_items(
    connection: LedgerConnection, owner: str, job_id: UUID, request: ListItemsRequest
) -> ListItemsResponse:
    """One page of what became of a job's inputs, by step and input.

    FluoroError JOB_NOT_FOUND if the job is not the owner's, STEP_UNKNOWN if it has no such step,
    INVALID_ARGUMENT for a page_size or page_token that does not fit.
    """
    place = _place(connection, owner, job_id, request, int)
    # An empty list in SQL stands for all states; there is a single text, and with it a single plan.
    parameters = place.parameters | {"wanted": list(request.states)}
    items, following = cut(
        rows_of(connection.execute(_ITEMS, parameters)),
        place.limit,
        lambda row: StepItem(step=place.names[row[0]], item=item_of(row[2:-1])),
    )
    return ListItemsResponse(items=items, next_page_token=place.token(following))


# OFFSET 0 keeps the planner from joining with all blobs there are.
# Filters work on what was looked at, so that a rare role makes a short page and not a long walk.
_ARTIFACTS: Final = f"""
SELECT a.step, {ARTIFACT_COLUMNS}, seen FROM (
  SELECT *, row_number() OVER (ORDER BY step, name) AS seen FROM (
    SELECT * FROM artifacts
    WHERE job_id = %(job)s AND (step, name) >= (%(step)s, %(start)s) AND step <= %(last)s
    ORDER BY step, name LIMIT (SELECT {LOOKED_AT} + 1)
  ) looked_at
) a CROSS JOIN LATERAL (SELECT * FROM blobs WHERE id = a.blob_id OFFSET 0) b
WHERE seen > {LOOKED_AT} OR %(wanted)s::text[] = '{{}}' OR role = ANY(%(wanted)s)
ORDER BY step, name LIMIT %(limit)s
"""


def list_artifacts(
    connection: LedgerConnection, owner: str, job_id: UUID, request: ListArtifactsRequest
) -> ListArtifactsResponse:
    """One page of a job's artifacts, by step and name. FluoroError as from `list_items`."""
    place = _place(connection, owner, job_id, request, str)
    parameters = place.parameters | {"wanted": list(request.roles)}
    artifacts, following = cut(
        rows_of(connection.execute(_ARTIFACTS, parameters)),
        place.limit,
        lambda row: StepArtifact(step=place.names[row[0]], artifact=artifact_of(row[1:-1])),
    )
    return ListArtifactsResponse(artifacts=artifacts, next_page_token=place.token(following))


# PostgreSQL knows the sizes without reading the results, so it reads no more than the page takes.
_RESULTS: Final = f"""
SELECT step, shard, result, result_blob, place FROM (
  SELECT t.step, t.shard, t.result, t.result_blob, row_number() OVER (ORDER BY t.shard) AS place,
    coalesce(sum(octet_length(t.result)) OVER (
      ORDER BY t.shard ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING), 0) AS before_last
  FROM tasks t JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step
  WHERE t.job_id = %(job)s AND t.step = %(last)s AND t.shard >= %(start)s AND t.result IS NOT NULL
    AND s.state IN ('SUCCEEDED', 'PARTIALLY_SUCCEEDED')
) weighed WHERE before_last < {PAGE_BYTES} ORDER BY shard LIMIT %(limit)s
"""


def list_results(
    connection: LedgerConnection, owner: str, job_id: UUID, request: ListResultsRequest
) -> ListResultsResponse:
    """One page of a step's result, by shard. FluoroError as from `list_items`."""
    place = _place(connection, owner, job_id, request, int, one_step=True)
    parts, following = cut(
        rows_of(connection.execute(_RESULTS, place.parameters)),
        place.limit,
        lambda row: (
            ResultPart(shard=row[1], blob=f"blobs/{row[3]}")
            if row[3]
            else ResultPart(shard=row[1], message=row[2])
        ),
    )
    return ListResultsResponse(parts=parts, next_page_token=place.token(following))


# --- where in a job a page begins ---

_STEPS: Final = """
SELECT s.ordinal, s.name FROM jobs j LEFT JOIN steps s ON s.job_id = j.id
WHERE j.id = %s AND j.owner = %s
"""


class _Place(NamedTuple):
    """The bounds of a page. names: of the job's steps, by ordinal."""

    names: dict[int, str]
    parameters: dict[str, Any]
    limit: int
    token: Callable[[TupleRow | None], str]


def _place(
    connection: LedgerConnection,
    owner: str,
    job_id: UUID,
    request: Any,
    kind: type[int] | type[str],
    *,
    one_step: bool = False,
) -> _Place:
    """kind: type of the key that orders the rows of a step. one_step: a step must be named."""
    limit, key = page_size(request), read_token(request, int, kind)
    names = _steps(connection, owner, job_id)
    only = [ordinal for ordinal, name in names.items() if name == request.step]
    if (request.step or one_step) and not only:
        raise FluoroError(
            Reason.STEP_UNKNOWN,
            f"jobs/{job_id} has no such step.",
            [FieldViolation("step", "Must be the name of a step of the job.")],
        )
    first = only[0] if only else 0
    # The token has the step in it, so that a page may begin within any of them.
    step, start = key or (first, kind())
    parameters = {
        "job": job_id,
        "step": step,
        "start": start,
        "last": only[0] if only else _LAST_STEP,
        "limit": limit + 1,
    }
    return _Place(
        names, parameters, limit, lambda row: write_token(request, row[:2]) if row else ""
    )


def _steps(connection: LedgerConnection, owner: str, job_id: UUID) -> dict[int, str]:
    """Ordinals and names of a job's steps. FluoroError JOB_NOT_FOUND if it is not the owner's."""
    rows = connection.execute(_STEPS, (job_id, owner)).fetchall()
    # No job, or another's: the same answer, or it would tell which ids exist.
    if not rows:
        raise job_not_found(job_id)
    return dict(rows)

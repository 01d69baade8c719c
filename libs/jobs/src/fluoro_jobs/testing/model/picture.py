"""What must hold after every move: the ledger is as the model says, and keeps its promises."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from fluoro.v1 import event_pb2, job_pb2

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.testing.model.job import ENDS, Job
from fluoro_jobs.testing.model.moves import STATES

_PICTURE: Final = """
SELECT j.id, j.state, j.last_sequence,
  (SELECT array_agg(s.state ORDER BY s.ordinal) FROM steps s WHERE s.job_id = j.id),
  (SELECT json_agg(json_build_array(s.task_count, s.input_count, s.ended_tasks, s.failed_tasks,
    s.lost_inputs, s.items_total,
     s.items_succeeded, s.items_skipped, s.items_failed) ORDER BY s.ordinal) FROM steps s
       WHERE s.job_id = j.id),
  (SELECT json_agg(json_build_array(t.step, t.shard, CASE WHEN t.state <> 'OPEN' THEN t.state
       WHEN o.state = 'WAITING' THEN 'READY'
         ELSE o.state END, coalesce(o.attempt, t.attempt), t.first_input, t.input_count,
     (SELECT json_agg(a.number ORDER BY a.number) FROM attempts a WHERE a.task_id = t.id),
     (SELECT json_agg(a.number) FROM attempts a WHERE a.task_id = t.id AND a.end_time IS NULL),
     (SELECT count(*) FROM attempts a WHERE a.task_id = t.id AND a.outcome = 'RELEASED'))
     ORDER BY t.step, t.shard) FROM tasks t LEFT JOIN open_tasks o ON o.task_id = t.id
       WHERE t.job_id = j.id),
  (SELECT coalesce(json_agg(json_build_array(a.step, a.name)), '[]') FROM artifacts a
    WHERE a.job_id = j.id),
  (SELECT coalesce(json_agg(json_build_array(i.step, i.number, i.state)), '[]') FROM items i
    WHERE i.job_id = j.id),
  (SELECT array_agg(e.sequence ORDER BY e.sequence) FROM events e WHERE e.job_id = j.id),
  (SELECT e.state FROM events e WHERE e.job_id = j.id AND e.sequence = j.last_sequence
    AND e.step IS NULL)
FROM jobs j ORDER BY j.id
"""


class Picture(NamedTuple):
    """All that the ledger holds of one job.

    last_state: what its newest event says of the job; None if that is about something else.
    """

    state: str
    last_sequence: int
    steps: list[str]
    counters: list[list[int]]
    tasks: list[Any]
    artifacts: list[Any]
    items: list[Any]
    sequences: list[int]
    last_state: str | None


def look(connection: LedgerConnection) -> dict[UUID, Picture]:
    """Every job in the ledger."""
    return {job: Picture(*rest) for job, *rest in connection.execute(_PICTURE).fetchall()}


def compare(found: Picture, job: Job) -> None:
    """AssertionError unless the job in the ledger is the model's."""
    assert (found.state, found.steps) == (
        job.state,
        [job.step_state(i) for i in range(len(job.steps))],
    )
    _compare_tasks(found, job)
    _compare_results(found, job)
    assert found.sequences == list(range(1, found.last_sequence + 1)), (
        "a job's events have no gap (I5)"
    )
    if found.state in ENDS:
        assert found.last_state == found.state, "the last event is the end"
    else:
        _is_not_stuck(found)


def _compare_tasks(found: Picture, job: Job) -> None:
    there = [
        (number, shard)
        for number, step in enumerate(job.steps)
        for shard in range(len(step.tasks))
        if job.task_state(number, shard)
    ]
    assert [(task[0], task[1]) for task in found.tasks] == there
    for step, shard, state, attempt, first, inputs, counted, running, returned in found.tasks:
        task = job.steps[step].tasks[shard]
        assert (state, attempt) == (job.task_state(step, shard), task.attempt)
        share = task.inputs if _is_live(job, step, shard) else range(0)
        assert range(first, first + inputs) == share
        assert (counted or []) == list(range(1, attempt + 1)), "every claim is counted (I7)"
        assert (running or []) == ([attempt] if state == "RUNNING" else []), (
            "none but the newest attempt runs (I2)"
        )
        assert attempt <= task.allowed, "no poison pill (I7)"
        assert returned == task.returned, (
            "what a drain or an outage ends is uncounted, and nothing else is"
        )
    _compare_counters(found, job)


def _is_live(job: Job, step: int, shard: int) -> bool:
    return job.steps[step].planned and shard < job.steps[step].live


def _compare_counters(found: Picture, job: Job) -> None:
    """What a step counts is what there is to count."""
    for number, (step, counters) in enumerate(zip(job.steps, found.counters, strict=True)):
        tasks = [
            (job.task_state(number, i), task) for i, task in enumerate(step.tasks[: step.live])
        ]
        failed = [task for state, task in tasks if state == "FAILED"]
        items = "".join(task.items or "" for _, task in tasks)
        assert counters == [
            len(tasks),
            sum(len(task.inputs) for _, task in tasks),
            sum(state in ENDS for state, _ in tasks),
            len(failed),
            sum(len(task.inputs) for task in failed),
            len(items),
            *(items.count(letter) for letter in "SKF"),
        ]


def _compare_results(found: Picture, job: Job) -> None:
    artifacts, items = [], []
    for number, step in enumerate(job.steps):
        artifacts += [[number, name] for name in step.left()]
        for task in step.tasks[: step.live]:
            letters = (
                "F" * len(task.inputs)
                if task.stage == "FAILED" and step.fans_out
                else task.items or ""
            )
            items += [
                [number, one, STATES[letter]]
                for one, letter in zip(task.inputs, letters, strict=False)
            ]
    assert sorted(found.artifacts) == sorted(artifacts), (
        "only attempts that were committed left something (I2)"
    )
    assert sorted(found.items) == sorted(items)


def _is_not_stuck(found: Picture) -> None:
    """Something can go on (I4)."""
    assert {task[2] for task in found.tasks} & {"READY", "QUEUED", "RUNNING"}


def told(events: Sequence[event_pb2.Event]) -> dict[tuple[Any, ...], int]:
    """Where everything stands, by the events alone."""
    states: dict[tuple[Any, ...], int] = {}
    for event in events:
        change = getattr(event, event.WhichOneof("change") or "")
        states[getattr(change, "step", ""), getattr(change, "shard", None)] = change.state
    return states


def shown(job: job_pb2.Job) -> dict[tuple[Any, ...], int]:
    """Where everything stands, by the job."""
    tasks = {(step.name, task.shard): task.state for step in job.steps for task in step.tasks}
    return {("", None): job.state, **{(step.name, None): step.state for step in job.steps}, **tasks}

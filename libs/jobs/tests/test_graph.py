"""What a transition does to a job: states, events and what follows from one another."""

from collections.abc import Sequence
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs.errors import Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.graph import MAX_RETURN_DELAY_SECONDS, JobGraph
from fluoro_jobs.ledger.records import MAX_RETURNS, Change, ItemResult, Step, Task, TaskResult
from fluoro_jobs.states import IllegalTransitionError, JobState, Outcome, TaskState
from hypothesis import given
from hypothesis import strategies as st

Item = job_pb2.Item


def job_of(*after: Sequence[int], max_attempts: int = 3) -> JobGraph:
    """A pending job with one step per argument, which names the steps it comes after."""
    steps = {
        i: Step(
            i,
            f"s{i}",
            "inspect_dicom",
            list(edges),
            max_attempts,
            2.0,
            300.0,
            None,
            0,
            False,
            JobState.PENDING,
        )
        for i, edges in enumerate(after)
    }
    graph = JobGraph(new_id(), "owner", JobState.PENDING, 1, 2, steps, {})
    for step in steps.values():
        if not step.after:
            graph.plan(step, 2)
    graph.clear_notes()
    return graph


def tasks_of(graph: JobGraph) -> list[str]:
    """The state of each step's task, if it has one."""
    states = {task.step: task.state for task in graph.tasks.values()}
    return [states.get(step, "") for step in graph.steps]


def task_of(graph: JobGraph, step: int) -> Task:
    (task,) = graph.tasks_of(step)
    return task


def run(graph: JobGraph, step: int) -> Task:
    task = task_of(graph, step)
    assert task.state is TaskState.READY
    task.state = TaskState.QUEUED
    graph.start(task)
    return task


def result(*states: "Item.State.ValueType") -> TaskResult:
    return TaskResult(
        b"result", [ItemResult(i, str(i), i, state) for i, state in enumerate(states)]
    )


GOOD = result(Item.STATE_SUCCEEDED)


def test_steps_run_in_the_order_of_their_edges_and_the_job_ends_with_the_last() -> None:
    graph = job_of([], [0], [0], [1, 2])
    graph.succeed(run(graph, 0), GOOD)
    assert tasks_of(graph) == ["SUCCEEDED", "READY", "READY", ""]
    graph.succeed(run(graph, 1), GOOD)
    assert tasks_of(graph)[3] == ""
    graph.succeed(run(graph, 2), GOOD)
    assert graph.state is JobState.RUNNING
    graph.succeed(run(graph, 3), GOOD)
    assert graph.state is JobState.SUCCEEDED
    assert graph.changes[-1] == Change(JobState.SUCCEEDED)


def test_one_bad_item_among_good_ones_makes_the_job_partially_succeeded_and_the_job_goes_on() -> (
    None
):
    graph = job_of([], [0])
    graph.succeed(run(graph, 0), result(Item.STATE_SUCCEEDED, Item.STATE_FAILED))
    assert (graph.steps[0].state, graph.steps[0].reason) == (
        JobState.PARTIALLY_SUCCEEDED,
        Reason.ITEMS_FAILED,
    )
    graph.succeed(run(graph, 1), GOOD)
    assert (graph.state, graph.reason) == (JobState.PARTIALLY_SUCCEEDED, Reason.ITEMS_FAILED)


def test_skipped_items_do_no_harm() -> None:
    graph = job_of([])
    graph.succeed(run(graph, 0), result(Item.STATE_SUCCEEDED, Item.STATE_SKIPPED))
    assert graph.state is JobState.SUCCEEDED


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ([Item.STATE_FAILED, Item.STATE_FAILED], Reason.ALL_ITEMS_FAILED),
        ([Item.STATE_FAILED, Item.STATE_SKIPPED], Reason.ALL_ITEMS_FAILED),
        ([Item.STATE_SKIPPED], Reason.NO_APPLICABLE_INPUT),
    ],
)
def test_a_step_without_any_good_item_fails_with_its_reason_and_those_after_it_do_not_run(
    states: list[int], reason: Reason
) -> None:
    graph = job_of([], [0], [1], [])
    graph.succeed(run(graph, 3), GOOD)
    graph.succeed(run(graph, 0), result(*states))
    assert (graph.steps[0].state, graph.steps[0].reason) == (JobState.FAILED, reason)
    for follower in (1, 2):
        assert (graph.steps[follower].state, graph.steps[follower].reason) == (
            JobState.CANCELLED,
            Reason.UPSTREAM_FAILED,
        )
        assert tasks_of(graph)[follower] == ""
    assert (graph.state, graph.reason) == (JobState.FAILED, Reason.STEP_FAILED)
    assert "s0" in graph.message


def test_an_error_that_another_attempt_may_mend_is_tried_again_with_growing_waits() -> None:
    graph = job_of([], max_attempts=3)
    waits = []
    for attempt in (1, 2):
        task = run(graph, 0)
        graph.fail(task, Outcome.FAILED, Reason.INTERNAL, "bug", may_retry=True)
        assert (task.state, task.attempt) == (TaskState.READY, attempt)
        waits.append(task.delay_seconds)
    assert 1 <= waits[0] <= 2 <= waits[1] <= 4
    graph.fail(run(graph, 0), Outcome.FAILED, Reason.INTERNAL, "bug", may_retry=True)
    assert (graph.steps[0].state, graph.steps[0].reason) == (JobState.FAILED, Reason.INTERNAL)
    assert graph.state is JobState.FAILED


def test_an_error_that_no_attempt_can_mend_fails_at_once() -> None:
    graph = job_of([])
    graph.fail(
        run(graph, 0), Outcome.FAILED, Reason.MODEL_UNKNOWN, "no such model", may_retry=False
    )
    assert graph.state is JobState.FAILED


def test_a_released_attempt_is_ready_at_once_even_if_it_was_the_last() -> None:
    graph = job_of([], max_attempts=1)
    task = run(graph, 0)
    graph.release(task)
    assert (task.state, task.delay_seconds) == (TaskState.READY, 0)


@pytest.mark.parametrize("reason", sorted(MAX_RETURNS))
def test_an_outage_costs_no_attempt_but_does_not_go_on_for_ever(reason: str) -> None:
    graph = job_of([], max_attempts=2)
    waits = []
    for _ in range(MAX_RETURNS[reason]):
        task = run(graph, 0)
        graph.fail(task, Outcome.FAILED, reason, "away", may_retry=True)
        assert task.state is TaskState.READY
        waits.append(task.delay_seconds)
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 <= waits[2] <= 4
    assert max(waits) <= MAX_RETURN_DELAY_SECONDS
    assert {(end.outcome, end.reason) for end in graph.ended_attempts} == {
        (Outcome.RELEASED, reason)
    }
    for _ in range(2):
        assert graph.state is JobState.RUNNING
        graph.fail(run(graph, 0), Outcome.FAILED, reason, "away", may_retry=True)
    assert (graph.state, graph.steps[0].reason) == (JobState.FAILED, reason)
    graph.retry()
    graph.fail(run(graph, 0), Outcome.FAILED, reason, "away", may_retry=True)
    assert graph.ended_attempts[-1].outcome is Outcome.RELEASED, "a retried task is as new"


def test_cancel_ends_everything_that_has_not_ended_and_keeps_what_has() -> None:
    graph = job_of([], [0], [1])
    graph.succeed(run(graph, 0), GOOD)
    running = run(graph, 1)
    graph.cancel(Reason.JOB_CANCELLED, "why")
    assert [step.state for step in graph.steps.values()] == ["SUCCEEDED", "CANCELLED", "CANCELLED"]
    assert graph.state is JobState.CANCELLED
    assert [end.outcome for end in graph.ended_attempts if end.task == running.id] == [
        Outcome.CANCELLED
    ]
    with pytest.raises(IllegalTransitionError):
        graph.succeed(running, GOOD)


def test_cancel_of_a_terminal_job_changes_nothing() -> None:
    graph = job_of([])
    graph.succeed(run(graph, 0), GOOD)
    graph.clear_notes()
    graph.cancel(Reason.JOB_CANCELLED, "why")
    assert (graph.state, graph.changes) == (JobState.SUCCEEDED, [])


def fan(count: int, *, requires_all: bool = False, max_attempts: int = 1) -> JobGraph:
    """A step of `count` tasks with two inputs each, and one step after it."""
    graph = job_of([], [0], max_attempts=max_attempts)
    graph.tasks.clear()
    graph.steps[0].inputs_per_task, graph.steps[0].requires_all = 2, requires_all
    graph.plan(graph.steps[0], 2 * count)
    graph.clear_notes()
    return graph


def start_shard(graph: JobGraph, shard: int) -> Task:
    (task,) = (task for task in graph.tasks_of(0) if task.shard == shard)
    task.state = TaskState.QUEUED
    graph.start(task)
    return task


def test_a_step_that_fans_out_ends_with_its_last_task_and_only_then_do_others_follow() -> None:
    graph = fan(3)
    for shard in (2, 0):
        graph.succeed(start_shard(graph, shard), GOOD)
        assert (graph.steps[0].state, tasks_of(graph)[1]) == (JobState.RUNNING, "")
    graph.succeed(start_shard(graph, 1), GOOD)
    assert (graph.steps[0].state, task_of(graph, 1).state) == (JobState.SUCCEEDED, TaskState.READY)


def test_a_lost_task_among_good_ones_fails_its_own_inputs_alone() -> None:
    graph = fan(2)
    graph.fail(start_shard(graph, 1), Outcome.LOST, Reason.WORKER_LOST, "gone", may_retry=True)
    graph.succeed(start_shard(graph, 0), result(Item.STATE_SUCCEEDED, Item.STATE_SUCCEEDED))
    assert (graph.steps[0].state, graph.steps[0].message) == (
        JobState.PARTIALLY_SUCCEEDED,
        "2 of 4 items failed.",
    )
    assert [(task.first_input, task.input_count, reason) for task, reason, _ in graph.lost] == [
        (2, 2, "WORKER_LOST")
    ]


def test_a_step_that_requires_all_fails_with_one_bad_item() -> None:
    graph = fan(2, requires_all=True)
    graph.succeed(start_shard(graph, 0), GOOD)
    graph.succeed(start_shard(graph, 1), result(Item.STATE_SUCCEEDED, Item.STATE_FAILED))
    assert (graph.steps[0].state, graph.steps[0].reason) == (JobState.FAILED, Reason.ITEMS_FAILED)
    assert graph.steps[1].state is JobState.CANCELLED


def test_retry_runs_what_failed_and_all_after_it_and_keeps_what_succeeded() -> None:
    graph = job_of([], [], [1], [0, 2], max_attempts=1)
    graph.succeed(run(graph, 0), GOOD)
    graph.fail(run(graph, 1), Outcome.FAILED, Reason.INTERNAL, "bug", may_retry=True)
    assert graph.state is JobState.FAILED
    assert graph.retry()
    assert graph.state is JobState.PENDING
    assert tasks_of(graph) == ["SUCCEEDED", "READY", "", ""]
    assert (task_of(graph, 1).attempt, task_of(graph, 1).allowed) == (1, 2)
    for step in (1, 2, 3):
        graph.succeed(run(graph, step), GOOD)
    assert graph.state is JobState.SUCCEEDED
    assert not graph.retry(), "nothing is left to retry"


def test_retry_of_a_partial_fan_out_redoes_the_bad_tasks_and_what_used_them() -> None:
    graph = fan(2)
    graph.succeed(start_shard(graph, 0), GOOD)
    graph.succeed(start_shard(graph, 1), result(Item.STATE_SUCCEEDED, Item.STATE_FAILED))
    graph.succeed(run(graph, 1), GOOD)
    assert graph.state is JobState.PARTIALLY_SUCCEEDED
    graph.retry()
    assert [task.state for task in sorted(graph.tasks_of(0), key=lambda t: t.shard)] == [
        "SUCCEEDED",
        "READY",
    ]
    assert tasks_of(graph)[1] == "SUCCEEDED", "it stays on record"
    assert {(task.step, task.shard) for task in graph.redone} == {(0, 1)}
    assert graph.forgotten == [1]


def test_a_cancelled_job_can_be_retried() -> None:
    graph = job_of([], [0])
    graph.cancel(Reason.JOB_CANCELLED, "why")
    assert graph.retry()
    assert tasks_of(graph) == ["READY", ""]


def test_expiry_ends_a_job_as_failed_even_before_it_ran() -> None:
    graph = job_of([], [0])
    graph.cancel(Reason.JOB_EXPIRED, "late", end=JobState.FAILED)
    assert (graph.state, graph.reason) == (JobState.FAILED, Reason.JOB_EXPIRED)


@st.composite
def graphs(draw: st.DrawFn) -> JobGraph:
    count = draw(st.integers(1, 6))
    after = [draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set() for i in range(count)]
    return job_of(*[sorted(edges) for edges in after], max_attempts=draw(st.integers(1, 3)))


@given(graphs(), st.data())
def test_whatever_happens_every_job_ends_once_with_every_change_numbered(
    graph: JobGraph, data: st.DataObject
) -> None:
    version, changes = graph.version, 0
    for _ in range(200):
        ready: list[UUID] = [
            task.id for task in graph.tasks.values() if task.state is TaskState.READY
        ]
        if not ready:
            break
        task = graph.tasks[data.draw(st.sampled_from(ready))]
        task.state = TaskState.QUEUED
        graph.start(task)
        match data.draw(st.sampled_from(["good", "partial", "bad", "lost", "fail", "cancel"])):
            case "good":
                graph.succeed(task, GOOD)
            case "partial":
                graph.succeed(task, result(Item.STATE_SUCCEEDED, Item.STATE_FAILED))
            case "bad":
                graph.succeed(task, result(Item.STATE_FAILED))
            case "lost":
                graph.fail(task, Outcome.LOST, Reason.WORKER_LOST, "", may_retry=True)
            case "fail":
                graph.fail(task, Outcome.FAILED, Reason.MODEL_UNKNOWN, "", may_retry=False)
            case _:
                graph.cancel(Reason.JOB_CANCELLED, "")
        changes += len(graph.changes)
        graph.clear_notes()
        assert graph.version == version + changes
    ends = {JobState.SUCCEEDED, JobState.PARTIALLY_SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    assert graph.state in ends
    assert all(step.state in ends for step in graph.steps.values())
    assert all(task.attempt <= graph.steps[task.step].max_attempts for task in graph.tasks.values())

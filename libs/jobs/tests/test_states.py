"""The state machines allow exactly what the design says."""

import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs.states import (
    JOB_TRANSITIONS,
    TASK_TRANSITIONS,
    IllegalTransitionError,
    JobState,
    Outcome,
    TaskState,
    is_terminal,
    move,
)


def test_every_state_has_its_transitions() -> None:
    assert set(JOB_TRANSITIONS) == set(JobState)
    assert set(TASK_TRANSITIONS) == set(TaskState)


@pytest.mark.parametrize(
    "end", [JobState.SUCCEEDED, JobState.PARTIALLY_SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
)
@pytest.mark.parametrize("new", list(JobState))
def test_nothing_leaves_a_terminal_job_state(end: JobState, new: JobState) -> None:
    assert is_terminal(end)
    with pytest.raises(IllegalTransitionError):
        move(end, new)


def test_a_task_runs_only_once_it_was_queued() -> None:
    assert move(TaskState.QUEUED, TaskState.RUNNING) is TaskState.RUNNING
    for state in set(TaskState) - {TaskState.QUEUED}:
        with pytest.raises(IllegalTransitionError):
            move(state, TaskState.RUNNING)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (JobState, job_pb2.Job.State),
        (JobState, job_pb2.Step.State),
        (TaskState, job_pb2.Task.State),
        (Outcome, job_pb2.Attempt.Outcome),
    ],
)
def test_names_are_those_of_the_api(ours: type[JobState], theirs: type[job_pb2.Job.State]) -> None:
    prefix = "OUTCOME_" if ours is Outcome else "STATE_"
    unused = (
        {f"{prefix}UNSPECIFIED", "STATE_BLOCKED"} if ours is TaskState else {f"{prefix}UNSPECIFIED"}
    )
    assert {f"{prefix}{name}" for name in ours} == set(theirs.keys()) - unused

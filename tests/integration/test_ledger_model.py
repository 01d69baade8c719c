"""The ledger against a model of it, through random moves; and that this would find a bug.

A failure prints the shortest sequence of moves that shows it, and the same run gives it again. To
try more sequences, and other ones, set FLUORO_LEDGER_RUNS=2000.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from fluoro_jobs.ledger import attempts, control, store, turn
from fluoro_jobs.ledger.attempts import Attempt, Following
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.records import Change, Step, Task
from fluoro_jobs.ledger.store import Tasks
from fluoro_jobs.states import IllegalTransitionError, JobState, Outcome, TaskState, is_terminal
from fluoro_jobs.testing.model.job import Try
from fluoro_jobs.testing.model.machine import LedgerMachine
from fluoro_jobs.testing.model.moves import ENDINGS
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from psycopg import Connection
from psycopg.rows import TupleRow

Db = Connection[TupleRow]
RUNS: Final = int(os.environ.get("FLUORO_LEDGER_RUNS", "0"))
"""How many random sequences to try; 0 for a few, the same ones every time."""
SETTINGS: Final = settings(
    max_examples=RUNS or 40,
    derandomize=not RUNS,
    stateful_step_count=40,
    deadline=None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


class InHandfuls(LedgerMachine):
    """Commits take along the claim for the next message, as those of a slot with a handful do."""

    def end(self, attempt: Try, how: str) -> None:
        """As everywhere, with a claim beside it."""
        message = next(iter(self.messages), None)
        if message is None or not how.startswith("commit"):
            return super().end(attempt, how)
        told, act = ENDINGS[how]
        following = Following(self.workers[0], self.task_ids[message.task], message.number)
        done = act(self.db, self.claims[attempt], self.job_ids[attempt.task.job], following)
        assert done == self.model.runs(attempt)
        if done:
            self.model.end(attempt.task, told)
        assert not following.beside.in_doubt
        claim = following.claim
        if claim is not None:
            assert self.model.claimable(message)
            self.delivered(message, 0, claim)
        return None


def run(
    db: Db, how: settings, first: int | None = None, kind: type[LedgerMachine] = LedgerMachine
) -> None:
    """first: seed of the sequences; None leaves it to `how`."""

    def machine() -> LedgerMachine:
        return kind(db)

    run_state_machine_as_test(machine if first is None else seed(first)(machine), settings=how)  # type: ignore[arg-type]  # it takes functions as well


@pytest.mark.timeout(120 + 2 * RUNS)
def test_the_ledger_does_what_its_model_does_whatever_happens_in_whatever_order(db: Db) -> None:
    run(db, SETTINGS)


@pytest.mark.timeout(120 + 2 * RUNS)
def test_the_ledger_does_what_its_model_does_when_commits_take_claims_along(db: Db) -> None:
    run(db, settings(SETTINGS, max_examples=RUNS or 20), kind=InHandfuls)


def without(patch: pytest.MonkeyPatch, module: Any, name: str, text: str) -> None:
    """Takes a piece out of a statement."""
    statement = getattr(module, name)
    assert text in statement
    patch.setattr(module, name, statement.replace(text, ""))


def no_version_guard(patch: pytest.MonkeyPatch) -> None:
    without(patch, store, "_JOB", " AND last_sequence = %(version)s")


def ends_of_attempts_that_are_over(patch: pytest.MonkeyPatch) -> None:
    without(patch, store, "_JOB_AMONG_OTHERS", " AND attempt = %(attempt)s")


def last_tasks_that_leave_their_step_open(patch: pytest.MonkeyPatch) -> None:
    text = " AND ended_tasks + %(ended_now)s < task_count"
    without(patch, store, "_JOB_AMONG_OTHERS", text)


def no_fencing_token(patch: pytest.MonkeyPatch) -> None:
    def end(
        db: Db,
        attempt: Attempt,
        act: Callable[[JobGraph, Task], None],
        *_: Any,
    ) -> JobState | None:
        def careless(graph: JobGraph) -> JobState | None:
            if graph.tasks[attempt.task].state is not TaskState.RUNNING:
                return None
            act(graph, graph.tasks[attempt.task])
            return graph.state

        return store.transition(db, attempt.job, careless, attempt.task)

    patch.setattr(attempts, "end", end)


def claims_of_what_is_not_queued(patch: pytest.MonkeyPatch) -> None:
    without(patch, attempts, "_CLAIM", "o.state = 'QUEUED' AND ")
    # The checks of the row would end such a claim in silence.
    patch.setattr(attempts, "CheckViolation", ZeroDivisionError)


def claims_by_messages_for_earlier_attempts(patch: pytest.MonkeyPatch) -> None:
    without(
        patch, attempts, "_CLAIM", " AND o.attempt + 1 = coalesce(%(number)s::int, o.attempt + 1)"
    )


def steps_that_start_twice(patch: pytest.MonkeyPatch) -> None:
    assert "(s.state = 'PENDING')::int" in attempts._CLAIM
    patch.setattr(attempts, "_CLAIM", attempts._CLAIM.replace("(s.state = 'PENDING')::int", "1"))


def artifacts_of_fenced_attempts(patch: pytest.MonkeyPatch) -> None:
    for part in ("blobs", "artifacts"):
        text = store._PARTS[part]
        assert "FROM job, " in text
        patch.setitem(
            store._PARTS,
            part,
            text.replace("FROM job, ", "FROM ").replace("job.id", "%(job)s::uuid"),
        )


def ends_are_overwritten(patch: pytest.MonkeyPatch) -> None:
    cancel = JobGraph.cancel

    def careless(
        graph: JobGraph, reason: str, message: str, *, end: JobState = JobState.CANCELLED
    ) -> None:
        if is_terminal(graph.state):
            graph.state = end
            graph.changes.append(Change(end))
        cancel(graph, reason, message, end=end)

    patch.setattr(JobGraph, "cancel", careless)


def attempts_without_end(patch: pytest.MonkeyPatch) -> None:
    fail = JobGraph.fail

    def careless(
        graph: JobGraph, task: Task, outcome: Outcome, reason: str, message: str, *, may_retry: bool
    ) -> None:
        task.allowed += 1
        fail(graph, task, outcome, reason, message, may_retry=may_retry)

    patch.setattr(JobGraph, "fail", careless)


def outages_that_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("fluoro_jobs.ledger.records.MAX_RETURNS", {})


def followers_never_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JobGraph, "_settle", lambda _graph, _step: None)


def no_back_off(patch: pytest.MonkeyPatch) -> None:
    for statement in ("_TURN", "_PROMOTE"):
        without(patch, turn, statement, " AND t.due_time <= now()")


def inputs_read_before_they_are_there(patch: pytest.MonkeyPatch) -> None:
    """A step is planned from what there was before the transition that unblocked it."""
    plan = JobGraph._unblock

    def early(graph: JobGraph, step: Step) -> None:
        plan(graph, step)
        if step.ordinal in graph.unplanned:
            graph.unplanned.remove(step.ordinal)
            graph.plan(step, 1)

    patch.setattr(JobGraph, "_unblock", early)


def counters_that_forget_a_retry(patch: pytest.MonkeyPatch) -> None:
    redo = JobGraph._redo

    def careless(graph: JobGraph, step: Step, *, waits: bool) -> None:
        ended = step.counters.ended
        redo(graph, step, waits=waits)
        step.counters.ended = ended

    patch.setattr(JobGraph, "_redo", careless)


def no_second_look(patch: pytest.MonkeyPatch) -> None:
    """Who was overtaken takes what it decided for done."""

    def careless(
        db: Db,
        job: UUID,
        act: Callable[[JobGraph], Any],
        which: UUID | Tasks = Tasks.ALL,
        _picture: JobGraph | None = None,
        **_: Any,
    ) -> Any:
        graph = store.load(db, job, which)
        assert graph is not None
        answer = act(graph)
        store.save(db, graph)
        return answer

    for module in (store, control):
        patch.setattr(module, "transition", careless)


BUGS: Final = (
    no_version_guard,
    ends_of_attempts_that_are_over,
    last_tasks_that_leave_their_step_open,
    no_fencing_token,
    claims_of_what_is_not_queued,
    claims_by_messages_for_earlier_attempts,
    steps_that_start_twice,
    artifacts_of_fenced_attempts,
    ends_are_overwritten,
    attempts_without_end,
    outages_that_count,
    followers_never_start,
    no_back_off,
    inputs_read_before_they_are_there,
    counters_that_forget_a_retry,
    no_second_look,
)


SEEDS: Final = {claims_by_messages_for_earlier_attempts: 3, outages_that_count: 2}
"""Where to begin, for bugs that sequences from seed 0 take long to meet."""


def hunt(db: Db, begin: int) -> None:
    """Many short hunts beat a long one: each starts anew, and its first tenth is kept small."""
    how = settings(SETTINGS, max_examples=40, phases=[Phase.generate], print_blob=False)
    for number in range(begin, begin + 20):
        run(db, how, number)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_the_comparison_finds_a_planted_bug(
    db: Db, monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]
) -> None:
    bug(monkeypatch)
    store._statement.cache_clear()
    try:
        with pytest.raises((AssertionError, IllegalTransitionError, psycopg.Error)):
            hunt(db, SEEDS.get(bug, 0))
    finally:
        store._statement.cache_clear()

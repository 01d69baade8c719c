"""A slot takes a handful of short tasks together, and nothing waits, or is lost, for that."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro_jobs.celery.tasks import OperationTask
from fluoro_jobs.errors import LEDGER_OUTAGES, FluoroError
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, attempts, control
from fluoro_jobs.ledger.attempts import Claim, Following, Worker
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.records import ItemResult, TaskResult
from fluoro_jobs.testing.rig import OWNER, Rig, queue_tasks, until
from fluoro_jobs.worker.execute import Figures
from fluoro_jobs.worker.keeper import MAX_HANDFUL

SUCCEEDED = job_pb2.Job.STATE_SUCCEEDED
RESULT = TaskResult(b"", [ItemResult(0, "0", 0, job_pb2.Item.STATE_SUCCEEDED)], ())
BY = Worker(new_id(), "host:1", "dicom", 4, "0")
TOGETHER = """
SELECT count(*) FROM attempts one JOIN attempts next ON next.start_time = one.end_time
WHERE next.worker = one.worker AND next.task_id <> one.task_id
"""
"""Claims that went along with a commit: one transaction has one time."""


def submit_together(rig: Rig, jobs: list[job_pb2.Job]) -> list[UUID]:
    """Has them all dispatched in one turn."""
    requests = [job_service_pb2.SubmitJobRequest(job=job) for job in jobs]
    with rig.ledger.connection() as connection:
        answers = accept.accept(connection, [accept.validate(one, OWNER) for one in requests])
    rig.dispatcher.dispatch()
    return [UUID(one.name.removeprefix("jobs/")) for one in answers]  # type: ignore[union-attr]  # none is refused


def warmed(rig: Rig, slots: int) -> None:
    """A worker that takes handfuls by now: it has seen that its tasks are short."""
    rig.worker(slots=slots)

    def takes_handfuls() -> bool:
        for job_id in submit_together(rig, [rig.job_of() for _ in range(8 * slots)]):
            rig.finished(job_id)
        with rig.connection() as connection:
            ((together,),) = connection.execute(TOGETHER).fetchall()
            return bool(together)

    until(takes_handfuls, 60, "a claim along with a commit")


def outcomes(rig: Rig, job_id: UUID) -> list[str]:
    found = rig.job(job_id).steps[0].tasks[0].attempts
    return [job_pb2.Attempt.Outcome.Name(one.outcome).removeprefix("OUTCOME_") for one in found]


def test_tasks_of_a_handful_are_claimed_with_the_end_of_the_one_before_and_end_on_their_own(
    rig: Rig,
) -> None:
    warmed(rig, slots=1)
    bad = {"do": "fail", "reason": "INTERNAL", "retryable": False}
    jobs = submit_together(rig, [rig.job_of(*[bad] * (i % 5 == 4)) for i in range(30)])
    ends = [rig.finished(job_id) for job_id in jobs]
    assert [job.state == SUCCEEDED for job in ends] == [i % 5 != 4 for i in range(30)]
    assert {len(outcomes(rig, job_id)) for job_id in jobs} == {1}, "none was begun twice"


def test_a_slot_with_the_largest_handfuls_goes_on(rig: Rig) -> None:
    warmed(rig, slots=1)
    for _ in range(3):
        for job_id in submit_together(rig, [rig.job_of() for _ in range(8 * MAX_HANDFUL)]):
            assert rig.finished(job_id).state == SUCCEEDED, rig.logs()


def test_all_that_a_handful_tells_fits_into_a_result() -> None:
    """Celery cuts results that are too long; the main process cannot read them then."""
    words = Figures("photograph.import", "succeeded", 1e-17 / 3, 1e-17 / 3, "cancelled", "x" * 255)
    assert (len(words.line()) + 1) * MAX_HANDFUL < OperationTask.resultrepr_maxsize


def test_behind_a_task_that_takes_long_others_of_its_handful_go_to_the_next_free_slot(
    rig: Rig, tmp_path: Path
) -> None:
    warmed(rig, slots=2)
    go = tmp_path / "go"
    long = rig.job_of({"do": "wait", "path": str(go)})
    first, *others = submit_together(rig, [long, *[rig.job_of() for _ in range(40)]])
    # No scheduler is here to find what got lost.
    for job_id in others:
        assert rig.finished(job_id).state == SUCCEEDED, rig.logs()
    with rig.connection() as connection:
        control.cancel_job(connection, OWNER, first)
    rig.have_workers_look()
    for job_id in submit_together(rig, [rig.job_of() for _ in range(4)]):
        assert rig.finished(job_id).state == SUCCEEDED, "its slot is free again"
    assert not go.exists()


def test_the_death_of_a_child_costs_an_attempt_of_the_task_that_it_ran_and_of_no_other(
    rig: Rig, tmp_path: Path
) -> None:
    warmed(rig, slots=1)
    dies = rig.job_of({"do": "die_once", "path": str(tmp_path / "died")})
    jobs = [*[rig.job_of() for _ in range(3)], dies, *[rig.job_of() for _ in range(30)]]
    ids = submit_together(rig, jobs)
    for place, job_id in enumerate(ids):
        assert rig.finished(job_id).state == SUCCEEDED, rig.logs()
        assert outcomes(rig, job_id) == ["LOST"] * (place == 3) + ["SUCCEEDED"]


def claimed(connection: LedgerConnection, task: UUID) -> Claim:
    claim = attempts.claim(connection, task, BY)
    assert claim is not None
    return claim


def queued(rig: Rig, connection: LedgerConnection, jobs: int) -> list[UUID]:
    """The only task of each of so many new jobs."""
    ids = submit_together(rig, [rig.job_of() for _ in range(jobs)])
    return [task for job_id in ids for task in queue_tasks(connection, job_id)]


def test_a_commit_waits_for_nobody_who_holds_what_it_would_claim_along(rig: Rig) -> None:
    with rig.connection() as connection, rig.connection() as other:
        first, second, third = queued(rig, connection, 3)
        for task, row in (
            (second, "jobs WHERE id = (SELECT job_id FROM tasks WHERE id = %s)"),
            (third, "open_tasks WHERE task_id = %s"),
        ):
            claim, following = claimed(connection, first), Following(BY, task, 1)
            with other.transaction():
                other.execute(f"SELECT FROM {row} FOR UPDATE", (task,))
                assert attempts.commit(connection, claim, RESULT, following)
            assert following.claim is None
            first = task
        assert claimed(connection, third).attempt == 1, "nothing of it was claimed"


def siblings(rig: Rig, connection: LedgerConnection, count: int) -> list[UUID]:
    """So many tasks of one step."""
    job = job_pb2.Job(inputs=[rig.blob(b"%d" % number) for number in range(count)])
    job.steps.add(name="render", max_inputs_per_task=1).render_dicom.SetInParent()
    (job_id,) = submit_together(rig, [job])
    return queue_tasks(connection, job_id)


def item(number: int) -> TaskResult:
    return TaskResult(b"", [ItemResult(number, "", number, job_pb2.Item.STATE_SUCCEEDED)], ())


def test_a_task_is_claimed_with_the_end_of_its_sibling_in_one_transaction(rig: Rig) -> None:
    with rig.connection() as connection:
        tasks = siblings(rig, connection, 3)
        claim: Claim | None = claimed(connection, tasks[0])
        for number, after in enumerate([*tasks[1:], None]):
            assert claim is not None, "it went along"
            following = Following(BY, after, 1) if after else None
            assert attempts.commit(connection, claim, item(number), following)
            claim = following.claim if following else None
            assert following is None or following.claim == claim, "as often as it is asked"
        ((together,),) = connection.execute(TOGETHER).fetchall()
    assert together == 2


GIVEN_UP = """
CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN RAISE EXCEPTION 'given up' USING ERRCODE = 'serialization_failure'; END $$;
CREATE CONSTRAINT TRIGGER given_up AFTER UPDATE ON jobs
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION give_up()
"""


def test_what_went_along_with_a_commit_that_was_given_up_did_not_happen(rig: Rig) -> None:
    with rig.connection() as connection:
        first, second = siblings(rig, connection, 2)
        claim, following = claimed(connection, first), Following(BY, second, 1)
        connection.execute(GIVEN_UP)
        with pytest.raises(FluoroError) as refusal, rig.ledger.connection() as slot:
            attempts.commit(slot, claim, item(0), following)
        assert refusal.value.reason in LEDGER_OUTAGES
        connection.execute("DROP TRIGGER given_up ON jobs")
        assert following.claim is None
        assert following.beside.in_doubt, "for all that who sent it can know"
        with rig.ledger.connection() as slot:
            assert attempts.commit(slot, claim, item(0), following)
        assert following.claim is None, "it goes along once"
        assert following.beside.in_doubt
        assert claimed(connection, second).attempt == 1


def test_two_slots_that_take_up_each_others_jobs_do_not_wait_for_each_other_for_ever(
    rig: Rig,
) -> None:
    with rig.connection() as connection:
        job = job_pb2.Job(inputs=[rig.blob(b"x")])
        for number in range(12):
            job.steps.add(name=f"s{number}").inspect_dicom.SetInParent()
        ids = submit_together(rig, [job, job])
        tasks = [queue_tasks(connection, job_id) for job_id in ids]
    start = threading.Barrier(2)

    def slot(number: int) -> None:
        """Its tasks are of one job and of the other, in turn."""
        mine = [pair[(number + i) % 2] for i, pair in enumerate(zip(*tasks, strict=True))]
        start.wait()
        with rig.ledger.connection() as connection:
            claim: Claim | None = None
            for task, after in zip(mine, [*mine[1:], None], strict=True):
                claim = claim or claimed(connection, task)
                following = Following(BY, after, 1) if after else None
                # FluoroError LEDGER_BUSY: PostgreSQL ended a deadlock.
                assert attempts.commit(connection, claim, RESULT, following)
                claim = following.claim if following else None

    with ThreadPoolExecutor(2) as slots:
        list(slots.map(slot, range(2)))
    assert [rig.job(job_id).state for job_id in ids] == [SUCCEEDED] * 2

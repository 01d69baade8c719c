"""The ledger's promises, on a real PostgreSQL and without any process around it."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fluoro.v1 import dicom_pb2, job_pb2, job_service_pb2
from fluoro_jobs import dispatch
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import (
    accept,
    attempts,
    backlog,
    control,
    heartbeats,
    limits,
    read,
    search,
    store,
    sweeps,
)
from fluoro_jobs.ledger.attempts import Claim, Worker
from fluoro_jobs.ledger.heartbeats import Standing
from fluoro_jobs.ledger.migrate import engine
from fluoro_jobs.ledger.records import ItemResult, TaskResult
from fluoro_jobs.ledger.schema import METADATA
from fluoro_jobs.testing.rig import OWNER, Rig, queue_tasks, sequences, until
from psycopg import Connection
from psycopg.rows import TupleRow

Db = Connection[TupleRow]
ITEM = ItemResult(0, "0", 0, job_pb2.Item.STATE_SUCCEEDED)


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def worker(db: Db, slots: int = 4, task_seconds: float = 0, queue: str = "dicom") -> Worker:
    one = Worker(new_id(), "host:1", queue, slots, "0")
    heartbeats.beat(db, one, [], task_seconds)
    return one


def accepted(
    rig: Rig, db: Db, job: job_pb2.Job | None = None, owner: str = OWNER, request_id: str = ""
) -> UUID:
    """A job in the ledger that nobody has dispatched."""
    request = job_service_pb2.SubmitJobRequest(job=job or rig.job_of(), request_id=request_id)
    for i, name in enumerate(request.job.inputs):
        if owner != OWNER:
            request.job.inputs[i] = rig.blob(rig.blobs.read(name), owner)
    (answer,) = accept.accept(db, [accept.validate(request, owner)])
    if isinstance(answer, FluoroError):
        raise answer
    return UUID(answer.name.removeprefix("jobs/"))


def claimed(db: Db, by: Worker) -> Claim:
    ((task, *_), *_) = dispatch.take(db)
    claim = attempts.claim(db, task, by)
    assert claim is not None
    return claim


def result(*artifacts: job_pb2.Artifact) -> TaskResult:
    return TaskResult(b"", [ITEM], artifacts)


def artifact() -> job_pb2.Artifact:
    return job_pb2.Artifact(
        name="a.txt",
        role="result",
        media_type="text/plain",
        blob=f"blobs/{new_id()}",
        size_bytes=1,
        sha256=hashlib.sha256(b"x").digest(),
    )


def expire_leases(db: Db) -> None:
    db.execute(
        "UPDATE open_tasks SET lease_expire_time = now() - interval '1 s' WHERE state = 'RUNNING'"
    )


def test_the_migrations_give_the_tables_that_the_code_declares(database_url: str) -> None:
    database = engine(database_url)
    with database.connect() as connection:
        differences = compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), METADATA
        )
    database.dispose()
    assert [
        d for d in differences if d[0] != "remove_table" or d[1].name != "alembic_version"
    ] == []


def test_the_same_request_id_and_body_gives_the_first_job_again_and_another_body_is_refused(
    rig: Rig, db: Db
) -> None:
    job = rig.job_of()
    first = accepted(rig, db, job, request_id="r")
    assert accepted(rig, db, job, request_id="r") == first
    job.priority = 5
    with pytest.raises(FluoroError, match=Reason.REQUEST_ID_REUSED):
        accepted(rig, db, job, request_id="r")
    assert accepted(rig, db, job, owner="other", request_id="r") != first, (
        "request ids belong to their owner"
    )


def test_a_batch_accepts_the_good_and_refuses_the_bad_among_them(rig: Rig, db: Db) -> None:
    bad = rig.job_of()
    bad.inputs[0] = f"blobs/{new_id()}"
    jobs = [rig.job_of(), bad, rig.job_of()]
    submissions = [
        accept.validate(job_service_pb2.SubmitJobRequest(job=job), OWNER) for job in jobs
    ]
    good, refused, other = accept.accept(db, submissions)
    assert isinstance(good, job_pb2.Job)
    assert isinstance(other, job_pb2.Job)
    assert isinstance(refused, FluoroError)
    assert (refused.reason, refused.violations[0].field) == (Reason.BLOB_NOT_FOUND, "job.inputs[0]")


def test_many_submits_of_one_request_at_once_make_one_job(rig: Rig) -> None:
    group = accept.GroupCommit(rig.ledger)
    request = job_service_pb2.SubmitJobRequest(job=rig.job_of(), request_id="once")
    futures = [group.submit(accept.validate(request, OWNER)) for _ in range(50)]
    assert len({future.result(30).name for future in futures}) == 1
    group.close()


def test_an_accepted_job_is_in_the_ledger_before_the_answer(rig: Rig, db: Db) -> None:
    group = accept.GroupCommit(rig.ledger)
    name = (
        group.submit(accept.validate(job_service_pb2.SubmitJobRequest(job=rig.job_of()), OWNER))
        .result(30)
        .name
    )
    assert (
        read.get_job(db, OWNER, UUID(name.removeprefix("jobs/"))).state == job_pb2.Job.STATE_PENDING
    )
    group.close()


def test_a_fenced_attempt_writes_nothing(rig: Rig, db: Db) -> None:
    job, first, second = accepted(rig, db), worker(db), worker(db)
    late = claimed(db, first)
    expire_leases(db)
    assert list(sweeps.expired_leases(db, sweeps.Backoff("test"))) == [job]
    db.execute("UPDATE open_tasks SET due_time = now()")
    newer = claimed(db, second)
    assert not attempts.commit(db, late, result(artifact()))
    assert not attempts.fail(db, late, FluoroError(Reason.INTERNAL, "late"))
    assert rig.job(job).steps[0].artifacts == []
    assert attempts.commit(db, newer, result(artifact()))
    done = rig.job(job)
    assert (done.state, len(done.steps[0].artifacts)) == (job_pb2.Job.STATE_SUCCEEDED, 1)
    assert sequences(rig.events(job)) == list(range(1, done.last_sequence + 1))


def test_a_task_is_claimed_once_however_many_try(rig: Rig, db: Db, database_url: str) -> None:
    accepted(rig, db)
    by = worker(db)
    ((task, *_),) = dispatch.take(db)

    def race(_: int) -> Claim | None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            return attempts.claim(connection, task, by)

    with ThreadPoolExecutor(8) as pool:
        assert sum(claim is not None for claim in pool.map(race, range(8))) == 1


def test_a_claim_that_waited_for_another_of_its_job_sees_what_that_one_did(
    rig: Rig, db: Db, database_url: str
) -> None:
    job = rig.job_of()
    job.steps.add(name="other").inspect_dicom.SetInParent()
    job_id, by = accepted(rig, db, job), worker(db)
    (first, *_), (second, *_) = dispatch.take(db)
    waiting = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE application_name = 'waits' AND wait_event_type = 'Lock'"
    )

    def wait() -> Claim | None:
        with psycopg.connect(database_url, autocommit=True, application_name="waits") as connection:
            return attempts.claim(connection, second, by)

    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(database_url, autocommit=True) as quick, quick.transaction():
            assert attempts.claim(quick, first, by) is not None
            waits = pool.submit(wait)
            until(lambda: db.execute(waiting).fetchone(), what="the wait")
        claim = waits.result()
    assert claim is not None
    assert claim.graph == store.load(db, job_id, second)
    assert sequences(rig.events(job_id)) == list(range(1, claim.graph.version + 1))


def test_tasks_of_one_job_that_finish_at_once_lose_no_event(
    rig: Rig, db: Db, database_url: str
) -> None:
    job = rig.job_of()
    for i in range(7):
        job.steps.add(name=f"step-{i}").inspect_dicom.SetInParent()
    job_id, by = accepted(rig, db, job), worker(db, slots=8)
    tasks = [task for task, *_ in dispatch.take(db)]
    barrier = threading.Barrier(len(tasks))

    def run(task: UUID) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            barrier.wait()
            claim = attempts.claim(connection, task, by)
            assert claim is not None
            assert attempts.commit(connection, claim, result())

    with ThreadPoolExecutor(len(tasks)) as pool:
        list(pool.map(run, tasks))
    done = rig.job(job_id)
    assert done.state == job_pb2.Job.STATE_SUCCEEDED
    assert sequences(rig.events(job_id)) == list(range(1, done.last_sequence + 1))


@pytest.mark.parametrize(
    "end",
    [
        lambda db, c: attempts.commit(db, c, result()),
        lambda db, c: attempts.release(db, c.of),
    ],
)
def test_cancel_wins_over_what_comes_after_it(
    rig: Rig, db: Db, end: Callable[[Db, Claim], bool]
) -> None:
    job_id = accepted(rig, db)
    claim = claimed(db, worker(db))
    assert control.cancel_job(db, OWNER, job_id).job.state == job_pb2.Job.STATE_CANCELLED
    assert not end(db, claim)
    assert rig.job(job_id).state == job_pb2.Job.STATE_CANCELLED
    assert (
        control.cancel_job(db, OWNER, job_id).job.last_sequence == rig.job(job_id).last_sequence
    ), "a second cancel changes nothing"


def test_another_owner_can_neither_see_nor_cancel_a_job(rig: Rig, db: Db) -> None:
    job_id = accepted(rig, db)
    for call in (read.get_job, control.cancel_job):
        with pytest.raises(FluoroError, match=Reason.JOB_NOT_FOUND):
            call(db, "other", job_id)
    assert rig.job(job_id).state == job_pb2.Job.STATE_PENDING


def test_the_window_is_the_free_slots_and_half_a_second_of_work(rig: Rig, db: Db) -> None:
    for _ in range(10):
        accepted(rig, db)
    assert dispatch.take(db) == [], "there is no worker"
    first = worker(db, slots=2)
    ((task, *_), _) = dispatch.take(db)
    assert dispatch.take(db) == [], "the window is full"
    assert attempts.claim(db, task, first)
    assert dispatch.take(db) == [], "that slot is not free yet"
    worker(db, slots=1, task_seconds=0.1)
    assert len(dispatch.take(db)) == 6, "its slot, and what that is through with in half a second"
    worker(db, slots=1, task_seconds=0.6)
    assert len(dispatch.take(db)) == 1, "nothing behind a task that takes longer"


def test_a_point_of_priority_is_worth_a_minute_of_waiting(rig: Rig, db: Db) -> None:
    urgent = rig.job_of()
    urgent.priority = 3
    filler, plain, late_but_urgent = accepted(rig, db), accepted(rig, db), accepted(rig, db, urgent)
    queue_tasks(db, filler)
    worker(db, slots=2)  # two places, one of them taken

    def next_job() -> UUID:
        ((task, *_),) = dispatch.take(db)
        db.execute(
            "UPDATE open_tasks SET state = 'READY', queued_time = NULL, "
            "dispatch_order = order_time - priority * interval '1 minute' WHERE task_id = %s",
            (task,),
        )
        row = db.execute("SELECT job_id FROM tasks WHERE id = %s", (task,)).fetchone()
        assert row is not None
        return UUID(str(row[0]))

    assert next_job() == late_but_urgent
    db.execute(
        (
            "UPDATE open_tasks SET dispatch_order = dispatch_order - interval '4 minutes'"
            " WHERE job_id = %s"
        ),
        (plain,),
    )
    assert next_job() == plain


def test_a_busy_owner_does_not_keep_a_quiet_one_waiting(rig: Rig, db: Db) -> None:
    busy = [accepted(rig, db, owner="busy") for _ in range(10)]
    quiet = accepted(rig, db, owner="quiet")
    worker(db, slots=2)
    taken = {
        db.execute("SELECT job_id FROM tasks WHERE id = %s", (task,)).fetchone()
        for task, *_ in dispatch.take(db)
    }
    assert taken == {(busy[0],), (quiet,)}


def test_a_heartbeat_renews_what_the_worker_holds_and_tells_what_it_lost(rig: Rig, db: Db) -> None:
    accepted(rig, db)
    by = worker(db)
    claim = claimed(db, by)
    expire_leases(db)
    (held,) = heartbeats.beat(db, by, [(claim.task_id, 1)])
    assert (held.attempt, held.standing) == (1, Standing.IN_TIME)
    assert list(sweeps.expired_leases(db, sweeps.Backoff("test"))) == [], "the lease is alive again"
    control.cancel_job(db, OWNER, claim.graph.id)
    (held,) = heartbeats.beat(
        db, by, [(claim.task_id, None)]
    )  # as after a message of the previous release
    assert (held.attempt, held.standing) == (1, Standing.TAKEN_AWAY)


def test_pages_neither_repeat_nor_hide_jobs_that_come_in_between(rig: Rig, db: Db) -> None:
    jobs = [f"jobs/{accepted(rig, db)}" for _ in range(5)]
    request = job_service_pb2.ListJobsRequest(page_size=2)
    seen: list[str] = []
    while True:
        page = search.list_jobs(db, OWNER, request)
        seen += [job.name for job in page.jobs]
        accepted(rig, db)
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == jobs[::-1]
    request.states.append(job_pb2.Job.STATE_FAILED)
    request.page_token = search.list_jobs(
        db, OWNER, job_service_pb2.ListJobsRequest(page_size=1)
    ).next_page_token
    with pytest.raises(FluoroError, match="page_token"):
        search.list_jobs(db, OWNER, request)


def test_the_backlog_counts_what_waits_and_what_runs(rig: Rig, db: Db) -> None:
    for _ in range(5):
        accepted(rig, db)
    by = worker(db, slots=2)
    claimed(db, by)
    heartbeats.beat(db, by, [], 3.0)
    dicom = next(queue for queue in backlog.by_queue(db) if queue.name == "dicom")
    assert (dict(dicom.tasks), dicom.slots, dicom.workers) == (
        {"WAITING": 0, "READY": 3, "QUEUED": 1, "RUNNING": 1},
        2,
        1,
    )
    assert dicom.seconds == 7.5


def test_a_step_that_fans_out_has_a_task_per_share_and_joins_their_results(
    rig: Rig, db: Db
) -> None:
    job = rig.job_of()
    job.inputs.extend(rig.blob(b"%d" % i) for i in range(4))
    job.steps[0].max_inputs_per_task = 2
    job.steps.add(name="after", after=["step"]).render_dicom.SetInParent()
    job_id, by = accepted(rig, db, job), worker(db, slots=4)
    claims = [attempts.claim(db, task, by) for task, *_ in dispatch.take(db)]
    shares = {(claim.task.first_input, claim.task.input_count) for claim in claims if claim}
    assert shares == {(0, 2), (2, 2), (4, 1)}
    for claim in reversed(claims):
        assert claim is not None
        found = dicom_pb2.InspectDicomResult(
            instances=[dicom_pb2.DicomInstance(input=claim.task.first_input)]
        )
        first = claim.inputs[0]
        items = [ItemResult(first.number, first.key, first.input, job_pb2.Item.STATE_SUCCEEDED)]
        assert attempts.commit(db, claim, TaskResult(found.SerializeToString(), items))
    done = rig.job(job_id)
    assert [one.input for one in done.steps[0].inspect_dicom_result.instances] == [0, 2, 4]
    assert [task.shard for task in done.steps[0].tasks] == [0, 1, 2]
    follower = claimed(db, by)
    ((stored, items, _),) = attempts.upstream(db, follower)
    joined = dicom_pb2.InspectDicomResult.FromString(b"".join(map(bytes, stored.parts)))
    assert joined == done.steps[0].inspect_dicom_result
    assert [item.input for item in items] == [0, 2, 4]
    inputs, (run,) = attempts.origins(db, follower)
    assert (run.step, run.attempts, run.start_time <= run.end_time) == ("step", 3, True)
    assert [i.sha256 for i in inputs[-4:]] == [hashlib.sha256(b"%d" % i).digest() for i in range(4)]


def test_retry_starts_new_attempts_of_what_failed_and_keeps_the_history(rig: Rig, db: Db) -> None:
    job_id, by = accepted(rig, db, rig.job_of(max_attempts=1)), worker(db)
    with pytest.raises(FluoroError, match=Reason.JOB_NOT_ENDED):
        control.retry_job(db, OWNER, job_id)
    attempts.fail(db, claimed(db, by), FluoroError(Reason.INTERNAL, "bug"))
    assert rig.job(job_id).state == job_pb2.Job.STATE_FAILED
    job = control.retry_job(db, OWNER, job_id)
    assert (job.state, job.reason, job.HasField("end_time")) == (
        job_pb2.Job.STATE_PENDING,
        "",
        False,
    )
    attempts.commit(db, claimed(db, by), result(artifact()))
    done = rig.job(job_id)
    assert done.state == job_pb2.Job.STATE_SUCCEEDED
    assert [a.outcome for a in done.steps[0].tasks[0].attempts] == [
        job_pb2.Attempt.OUTCOME_FAILED,
        job_pb2.Attempt.OUTCOME_SUCCEEDED,
    ]
    assert sequences(rig.events(job_id)) == list(range(1, done.last_sequence + 1))
    with pytest.raises(FluoroError, match=Reason.NOTHING_TO_RETRY):
        control.retry_job(db, OWNER, job_id)


def test_a_retried_task_replaces_what_it_left_before(rig: Rig, db: Db) -> None:
    job_id, by = accepted(rig, db), worker(db)
    bad = ItemResult(1, "1", 1, job_pb2.Item.STATE_FAILED, "NOT_DICOM")
    attempts.commit(db, claimed(db, by), TaskResult(b"", [ITEM, bad], [artifact()]))
    assert rig.job(job_id).state == job_pb2.Job.STATE_PARTIALLY_SUCCEEDED
    retried = control.retry_job(db, OWNER, job_id)
    assert (list(retried.steps[0].items), list(retried.steps[0].artifacts)) == ([], [])
    attempts.commit(db, claimed(db, by), result(artifact()))
    done = rig.job(job_id)
    assert (done.state, len(done.steps[0].items), len(done.steps[0].artifacts)) == (
        job_pb2.Job.STATE_SUCCEEDED,
        1,
        1,
    )


def test_a_job_that_has_not_ended_by_its_expire_time_fails(rig: Rig, db: Db) -> None:
    job = rig.job_of()
    job.expire_time.GetCurrentTime()
    job_id = accepted(rig, db, job)
    claim = claimed(db, worker(db))
    assert list(sweeps.expired_jobs(db, sweeps.Backoff("test"))) == [job_id]
    done = rig.job(job_id)
    assert (done.state, done.reason) == (job_pb2.Job.STATE_FAILED, "JOB_EXPIRED")
    assert not attempts.commit(db, claim, result())
    assert list(sweeps.expired_jobs(db, sweeps.Backoff("test"))) == []


def test_a_job_is_not_dispatched_before_its_schedule_time(rig: Rig, db: Db) -> None:
    job = rig.job_of()
    job.schedule_time.FromSeconds(int(time.time()) + 3600)
    job_id = accepted(rig, db, job)
    worker(db)
    assert dispatch.take(db) == []
    assert rig.job(job_id).schedule_time == job.schedule_time
    db.execute("UPDATE open_tasks SET due_time = now()")
    assert len(dispatch.take(db)) == 1


def test_an_owner_with_a_limit_has_no_more_than_that_in_flight(rig: Rig, db: Db) -> None:
    for _ in range(4):
        accepted(rig, db)
    other = accepted(rig, db, owner="other")
    limits.set_limit(db, OWNER, 1)
    by = worker(db, slots=5)
    assert len(dispatch.take(db)) == 2, "one of the limited owner, one of the other"
    assert dispatch.take(db) == []
    limits.set_limit(db, OWNER, 3)
    assert len(dispatch.take(db)) == 2
    limits.set_limit(db, OWNER, None)
    assert len(dispatch.take(db)) == 1
    assert rig.job(other, "other").state == job_pb2.Job.STATE_PENDING
    assert by.slots == 5


def test_a_limit_holds_over_all_queues_together(rig: Rig, db: Db) -> None:
    accepted(rig, db)
    accepted(rig, db, rig.job_of(operation="export_report"))
    limits.set_limit(db, OWNER, 1)
    worker(db)
    worker(db, queue="export")
    assert len(dispatch.take(db)) == 1


def test_retry_of_an_expired_job_takes_the_passed_deadline_away(rig: Rig, db: Db) -> None:
    job = rig.job_of()
    job.expire_time.GetCurrentTime()
    job_id = accepted(rig, db, job)
    assert list(sweeps.expired_jobs(db, sweeps.Backoff("test"))) == [job_id]
    assert not control.retry_job(db, OWNER, job_id).HasField("expire_time")
    assert list(sweeps.expired_jobs(db, sweeps.Backoff("test"))) == []

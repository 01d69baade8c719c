"""Whatever happens to a batch of submits, each gets an answer soon, and the next ones go on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import grpc.aio
import psycopg
import pytest
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.job_service_pb2 import ListJobsRequest, SubmitJobRequest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger import accept
from fluoro_jobs.ledger.accept import GroupCommit, Submission
from fluoro_jobs.operations import BY_FIELD
from fluoro_jobs.testing.rig import OWNER, Rig, until
from gateway.testing import Client, refused, serving

SECONDS = 30


@pytest.fixture
def group(rig: Rig) -> Iterator[GroupCommit]:
    made = GroupCommit(rig.ledger)
    yield made
    made.close()


@pytest.fixture
def submission(rig: Rig) -> Callable[..., Submission]:
    blob = rig.blob(b"x")

    def make(request_id: str = "", inputs: int = 1, **labels: str) -> Submission:
        job = job_pb2.Job(
            inputs=[blob] * inputs, labels=labels, steps=[job_pb2.Step(name="a", inspect_dicom={})]
        )
        return accept.validate(
            job_service_pb2.SubmitJobRequest(job=job, request_id=request_id), OWNER
        )

    return make


def reasons(futures: list["Future[job_pb2.Job]"]) -> list[str]:
    """How each ended: "" for a job."""
    errors = [future.exception(SECONDS) for future in futures]
    return [
        error.reason
        if isinstance(error, FluoroError)
        else ""
        if error is None
        else type(error).__name__
        for error in errors
    ]


def test_steps_that_take_all_inputs_of_a_job_as_one_do_not_multiply_what_its_submit_weighs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_groups = replace(BY_FIELD["inspect_dicom"], groups=True)
    monkeypatch.setitem(BY_FIELD, "inspect_dicom", takes_groups)
    grouped = [job_pb2.StepInput(group=True)]
    steps = [job_pb2.Step(name=f"s{i}", inspect_dicom={}, inputs=grouped) for i in range(100)]
    job = job_pb2.Job(inputs=[rig.blob(b"x")] * 1_000, steps=steps)
    made = accept.validate(job_service_pb2.SubmitJobRequest(job=job), OWNER)
    assert sum(map(len, accept._rows([made]).values())) < 2 * made.row_bytes
    with rig.ledger.connection() as connection:
        (accepted,) = accept.accept(connection, [made])
        assert isinstance(accepted, job_pb2.Job)
        kept = connection.execute("SELECT jsonb_array_length(parts) FROM step_inputs").fetchall()
    assert kept == [(1_000,)], "once, however many steps take them"


def on_insert(rig: Rig, condition: str, then: str) -> None:
    """Has PostgreSQL do something to the rows of `jobs` that are about to be inserted."""
    with rig.connection() as connection:
        connection.execute("CREATE SEQUENCE transactions")
        connection.execute(
            "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN IF {condition} THEN {then}; END IF; RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER meddle BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION meddle()"
        )


@contextmanager
def jobs_locked(rig: Rig) -> Iterator[None]:
    """No transaction gets at `jobs` meanwhile."""
    with psycopg.connect(rig.database_url) as connection:
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_submit_that_no_code_foresaw_is_internal_and_the_others_get_in(
    group: GroupCommit, submission: Callable[..., Submission]
) -> None:
    unforeseen = replace(submission(), priority=1j)  # type: ignore[arg-type]  # what the types rule out
    batch = [submission() for _ in range(40)]
    batch[17] = unforeseen
    assert reasons([group.submit(one) for one in batch]) == [
        "INTERNAL" if one is unforeseen else "" for one in batch
    ]
    assert reasons([group.submit(submission())]) == [""], "the thread went on"


def test_one_submit_that_postgresql_refuses_costs_the_others_a_few_transactions(
    rig: Rig, group: GroupCommit, submission: Callable[..., Submission]
) -> None:
    on_insert(rig, "NEW.labels ? 'bad'", "RAISE EXCEPTION 'no'")
    with jobs_locked(rig):
        futures = [
            group.submit(submission(**({"bad": ""} if number == 99 else {})))
            for number in range(200)
        ]
    assert reasons(futures) == ["INTERNAL" if number == 99 else "" for number in range(200)]
    with rig.connection() as connection:
        (transactions,) = connection.execute(
            "SELECT count(DISTINCT xmin::text) FROM jobs"
        ).fetchone() or (0,)
    assert transactions <= 12, "halves, not each on its own"


def test_submits_that_come_back_one_after_the_other_share_a_transaction(
    rig: Rig,
    group: GroupCommit,
    submission: Callable[..., Submission],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accept, "LINGER_SECONDS", 3)
    with jobs_locked(rig):
        before = [group.submit(submission()) for _ in range(5)]
    assert reasons(before) == [""] * 5
    first = group.submit(submission(again=""))
    with pytest.raises(AssertionError):
        until(first.running, 0.2)
    assert reasons([first, *(group.submit(submission(again="")) for _ in range(2))]) == [""] * 3
    with rig.connection() as connection:
        row = connection.execute(
            "SELECT count(DISTINCT xmin::text) FROM jobs WHERE labels ? 'again'"
        ).fetchone()
    assert row == (1,)


def test_owners_take_turns_so_that_the_many_submits_of_one_do_not_hold_up_another(
    rig: Rig, group: GroupCommit, submission: Callable[..., Submission]
) -> None:
    answered: list[Future[job_pb2.Job]] = []
    with jobs_locked(rig):
        many = [group.submit(submission()) for _ in range(3 * accept.MAX_BATCH)]
        other = group.submit(replace(submission(), owner="other"))
        for future in (*many, other):
            future.add_done_callback(answered.append)
    assert set(reasons([*many, other])) == {"", "BLOB_NOT_FOUND"}
    assert answered.index(other) < 2 * accept.MAX_BATCH


def test_a_row_that_is_gone_when_it_is_looked_for_is_busy_rather_than_a_thread_less(
    rig: Rig, group: GroupCommit, submission: Callable[..., Submission]
) -> None:
    on_insert(rig, "NEW.request_id = 'gone'", "RETURN NULL")
    assert reasons([group.submit(submission("gone")), group.submit(submission("here"))]) == [
        Reason.LEDGER_BUSY,
        "",
    ]


def test_a_deadlock_is_tried_again_and_told_only_if_it_stays(
    rig: Rig, group: GroupCommit, submission: Callable[..., Submission]
) -> None:
    on_insert(
        rig, "nextval('transactions') <= 2", "RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'"
    )
    assert reasons([group.submit(submission())]) == [""]
    with rig.connection() as connection:
        connection.execute("ALTER SEQUENCE transactions RESTART")
        connection.execute(
            "CREATE OR REPLACE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE '' USING ERRCODE = '40P01'; END $$"
        )
    assert reasons([group.submit(submission())]) == [Reason.LEDGER_BUSY]


def test_gateways_that_hold_the_same_requests_in_other_orders_do_not_deadlock(
    rig: Rig, submission: Callable[..., Submission]
) -> None:
    on_insert(rig, "true", "PERFORM pg_sleep(0.002)")
    errors: list[Exception] = []

    def insert(batch: list[Submission], start: threading.Barrier) -> None:
        with rig.connection() as connection:
            start.wait(SECONDS)
            try:
                accept.accept(connection, batch)
            except psycopg.Error as error:
                errors.append(error)

    for number in range(3):
        batch = [submission(f"{number}-{n}") for n in range(40)]
        start = threading.Barrier(2)
        threads = [
            threading.Thread(target=insert, args=(order, start)) for order in (batch, batch[::-1])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    assert errors == []


def test_a_submission_that_an_earlier_try_made_durable_is_accepted_once(
    rig: Rig, submission: Callable[..., Submission]
) -> None:
    one = submission()
    with rig.connection() as connection:
        first, second = accept.accept(connection, [one]), accept.accept(connection, [one])
        assert first == second
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (1,)


def test_a_transaction_is_bounded_by_what_its_rows_weigh(
    rig: Rig, group: GroupCommit, submission: Callable[..., Submission]
) -> None:
    heavy = [submission(inputs=5000) for _ in range(8)]
    assert heavy[0].row_bytes > accept.MAX_BATCH_BYTES / 6
    with jobs_locked(rig):
        futures = [group.submit(one) for one in heavy]
    assert reasons(futures) == [""] * 8
    with rig.connection() as connection:
        (transactions,) = connection.execute(
            "SELECT count(DISTINCT xmin::text) FROM jobs"
        ).fetchone() or (0,)
    assert transactions >= 2


async def uploaded(client: Client) -> SubmitJobRequest:
    parts = [UploadBlobRequest(header=UploadBlobHeader()), UploadBlobRequest(chunk=b"x")]
    blob = (await client.blobs.UploadBlob(iter(parts))).blob.name
    return SubmitJobRequest(
        job=job_pb2.Job(inputs=[blob], steps=[job_pb2.Step(name="a", inspect_dicom={})])
    )


@pytest.fixture
async def client(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Client]:
    async with serving(
        database_url, redis_url, blob_url, submit_timeout_seconds=0.5, submit_queue_jobs=1
    ) as made:
        yield made


async def taken(client: Client, request: SubmitJobRequest) -> str:
    """The name of the job, once there is room for it."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return str((await client.jobs.SubmitJob(request)).job.name)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


def stored(rig: Rig) -> int:
    with rig.connection() as connection:
        row = connection.execute("SELECT count(*) FROM jobs").fetchone()
        return row[0] if row else 0


def waits_for_lock(rig: Rig) -> bool:
    with rig.connection() as connection:
        row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
        return row is not None and row[0] > 0


async def test_a_submit_the_ledger_does_not_take_in_time_is_told_so_and_not_written_later(
    rig: Rig, client: Client
) -> None:
    request = await uploaded(client)
    with jobs_locked(rig):
        under_way = asyncio.ensure_future(refused(client.jobs.SubmitJob(request)))
        await asyncio.to_thread(until, lambda: waits_for_lock(rig))
        queued = client.jobs.SubmitJob(request)
        how = await refused(queued)
        assert (how.code.name, how.reason) == ("UNAVAILABLE", "LEDGER_UNAVAILABLE")
        assert "Nothing was stored" in how.message
        assert "may have been stored" in (await under_way).message
    await asyncio.to_thread(until, lambda: not waits_for_lock(rig) and stored(rig))
    accepted = await taken(client, request)
    with rig.connection() as connection:
        jobs = {f"jobs/{job}" for (job,) in connection.execute("SELECT id FROM jobs").fetchall()}
    assert accepted in jobs
    assert len(jobs) == 2, (
        "the one under way and the last; not the one that was told that nothing was stored"
    )


async def test_submits_beyond_what_may_wait_are_refused_at_once(rig: Rig, client: Client) -> None:
    request = await uploaded(client)
    with jobs_locked(rig):
        under_way = asyncio.ensure_future(refused(client.jobs.SubmitJob(request)))
        await asyncio.to_thread(until, lambda: waits_for_lock(rig))
        hows = await asyncio.gather(*(refused(client.jobs.SubmitJob(request)) for _ in range(5)))
        assert sorted(how.reason for how in hows) == ["GATEWAY_BUSY"] * 4 + ["LEDGER_UNAVAILABLE"]
        assert {how.retry_seconds for how in hows} == {1}
        await under_way
    assert len((await client.jobs.ListJobs(ListJobsRequest())).jobs) <= 1

"""Who gets the next slot, and who has a queue's turn."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis
from fluoro.v1 import job_pb2, job_service_pb2
from fluoro_jobs import dispatch, pace
from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, attempts, heartbeats, turn
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.pace import DONE, MINE, Pace
from fluoro_jobs.testing.rig import OWNER, Rig, until
from psycopg import Connection
from psycopg.rows import TupleRow

Db = Connection[TupleRow]
QUEUE = "dicom"
AT_ONCE_SECONDS = 3
"""Shorter than the time between two heartbeats, which dispatch as well."""
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('fluoro dispatch dicom', 0))"


@pytest.fixture
def db(rig: Rig) -> Iterator[Db]:
    with rig.connection() as connection:
        yield connection


@pytest.fixture
def client(redis_url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


def waiting_job(rig: Rig, path: Path, owner: str = OWNER) -> job_pb2.Job:
    """A job that runs until the file is there."""
    job = rig.job_of()
    commands = json.dumps([{"do": "wait", "path": str(path)}])
    job.inputs[0] = rig.blob(commands.encode(), owner)
    return job


def count(db: Db, state: str) -> int:
    ((tasks,),) = db.execute(
        "SELECT count(*) FROM open_tasks WHERE state = %s", (state,)
    ).fetchall()
    return int(tasks)


def shortest_attempt(db: Db) -> float:
    """For how long the youngest attempt has run, in seconds."""
    query = "SELECT min(extract(epoch FROM now() - start_time))::float8 FROM attempts"
    ((seconds,),) = db.execute(query).fetchall()
    return float(seconds)


def blocked(db: Db) -> bool:
    """Whether a statement waits for another transaction."""
    rows = db.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall()
    return bool(rows)


def queued(db: Db) -> list[str]:
    """The queues of what is queued."""
    rows = db.execute("SELECT queue FROM open_tasks WHERE state = 'QUEUED' ORDER BY queue")
    return [str(queue) for (queue,) in rows.fetchall()]


def listed(db: Db, slots: int, task_seconds: float = 0) -> Worker:
    by = Worker(new_id(), "host:1", QUEUE, slots, "0")
    heartbeats.beat(db, by, [], task_seconds)
    return by


def test_a_new_owner_gets_the_next_free_slot_while_another_ones_long_tasks_wait(
    rig: Rig, db: Db, tmp_path: Path, client: "redis.Redis"
) -> None:
    rig.worker(pool="threads", slots=2)
    files = [tmp_path / f"a{i}" for i in range(6)]
    first = [rig.submit(waiting_job(rig, path)) for path in files]
    until(lambda: count(db, "RUNNING") == 2, what="two running tasks")
    assert (count(db, "QUEUED"), client.llen(QUEUE)) == (0, 0), "nothing waits behind long tasks"
    other = rig.submit(waiting_job(rig, tmp_path / "b", "new"), owner="new")
    ran = [job for job in first if rig.job(job).state == job_pb2.Job.STATE_RUNNING]
    until(lambda: shortest_attempt(db) > turn.AHEAD_SECONDS, 30, "an end of the short tasks")
    files[first.index(ran[0])].touch()
    until(lambda: rig.job(other, "new").state == job_pb2.Job.STATE_RUNNING, 30, "the new owner's")
    assert count(db, "READY") == 4, "all that the busy owner had waiting"


def test_tasks_queued_ahead_of_tasks_that_turn_out_long_are_taken_back(rig: Rig, db: Db) -> None:
    by = listed(db, slots=1, task_seconds=0.05)
    for _ in range(14):
        rig.submit(rig.job_of())
    assert count(db, "QUEUED") == 11, "one for the free slot, half a second of work ahead"
    ((task,), *_) = db.execute("SELECT task_id FROM open_tasks WHERE state = 'QUEUED'").fetchall()
    assert attempts.claim(db, task, by)
    heartbeats.beat(db, by, [(task, 1)], task_seconds=60)
    rig.dispatcher.dispatch()
    assert count(db, "QUEUED") == 10, "they have not been there for long"
    db.execute(
        "UPDATE open_tasks SET queued_time = now() - interval '1 min' WHERE state = 'QUEUED'"
    )
    rig.dispatcher.dispatch()
    assert (count(db, "QUEUED"), count(db, "READY")) == (0, 13)


def test_a_worker_all_of_whose_slots_are_taken_for_long_says_so_before_their_tasks_end(
    rig: Rig, db: Db, tmp_path: Path
) -> None:
    rig.worker(pool="threads", slots=1)
    rig.finished(rig.submit(rig.job_of()))
    rig.submit(waiting_job(rig, tmp_path / "never"))
    until(lambda: count(db, "RUNNING") == 1, what="a running task")

    def told() -> float:
        rig.have_workers_look()
        ((seconds,),) = db.execute("SELECT task_seconds FROM workers").fetchall()
        return float(seconds)

    until(lambda: told() > turn.AHEAD_SECONDS, what="a heartbeat that tells of the long task")


def test_one_process_at_a_time_has_a_queues_turn_and_another_gets_it_when_that_one_dies(
    rig: Rig, db: Db
) -> None:
    rig.submit(rig.job_of())
    listed(db, slots=1)
    with psycopg.connect(rig.database_url) as other:
        other.execute(LOCK)
        assert turn.take(db, QUEUE) == turn.Turn(
            mine=False, due=False, places=None, last=None, most=0, taken=[]
        )
    assert len(dispatch.take(db)) == 1


def test_a_dispatch_waits_for_the_turn_of_another_process(rig: Rig, db: Db) -> None:
    listed(db, slots=1)
    with psycopg.connect(rig.database_url) as other:
        other.execute(LOCK)
        dispatching = threading.Thread(target=rig.submit, args=(rig.job_of(),))
        dispatching.start()
        until(lambda: count(db, "READY") == 1, what="the job")
        assert count(db, "QUEUED") == 0
    dispatching.join()
    assert count(db, "QUEUED") == 1


def test_a_turn_serves_all_who_had_a_reason_before_it(client: "redis.Redis") -> None:
    one, other, third = (Pace(client, QUEUE) for _ in range(3))
    assert one.look() == MINE
    waits = other.look()
    assert not waits.mine
    assert waits.wait_seconds is not None, "that turn may have begun before the reason came"
    one.over(turn.Turn(True, False, 5, None, 512, []), seconds=0)
    until(lambda: third.look() == MINE, 30, "the end of the rest")
    assert other.look(waits.seen) == DONE, "a turn has begun since"


def test_a_process_that_stops_during_its_turn_holds_the_queue_up_for_a_second_only(
    client: "redis.Redis",
) -> None:
    stopped, other = Pace(client, QUEUE), Pace(client, QUEUE)
    assert stopped.look() == MINE
    seen = other.look().seen
    until(lambda: other.look(seen) == MINE, pace.TURN_SECONDS + 1, "the turn")


def test_a_queue_that_holds_plenty_is_left_alone_until_half_of_it_is_gone(
    client: "redis.Redis",
) -> None:
    messages = [(new_id(), "dicom.inspect", QUEUE, 1)] * 40
    one = Pace(client, QUEUE)
    assert one.look() == MINE
    client.lpush(QUEUE, *range(40))
    one.over(turn.Turn(True, False, 40, None, 512, messages), seconds=0)
    until(lambda: not client.exists("fluoro:turn:dicom"), 30, "the end of the rest")
    assert not one.look().mine
    client.ltrim(QUEUE, 0, 19)
    until(lambda: one.look() == MINE, 30, "the turn")


def test_a_queue_without_a_worker_is_looked_at_no_more_often_than_it_can_get_one(
    rig: Rig, db: Db, client: "redis.Redis"
) -> None:
    assert not turn.take(db, QUEUE).unserved, "nothing is ready"
    rig.submit(rig.job_of())
    one, other = Pace(client, QUEUE), Pace(client, QUEUE)
    assert one.look() == MINE
    found = turn.take(db, QUEUE)
    assert found.unserved
    one.over(found, seconds=0)
    assert (one.look().wait_seconds or 0) > pace.SHORTEST_WAIT_SECONDS
    listed(db, slots=1)
    until(lambda: other.look() == MINE, 30, "the turn, for a worker that has just come")
    assert not turn.take(db, QUEUE).unserved
    until(lambda: not one.look().wait_seconds, 30, "the end of the rest")


def test_a_dispatcher_looks_after_the_queue_that_it_was_woken_for(rig: Rig, db: Db) -> None:
    for queue in (QUEUE, "export"):
        heartbeats.beat(db, Worker(new_id(), "host:1", queue, 1, "0"), [])
        job = rig.job_of(operation="inspect_dicom" if queue == QUEUE else "export_report")
        request = job_service_pb2.SubmitJobRequest(job=job)
        accept.accept(db, [accept.validate(request, OWNER)])
    dispatcher = Dispatcher(rig.ledger, rig.redis_url, [QUEUE])
    dispatcher.start()
    try:
        dispatcher.wake()
        until(lambda: queued(db) == [QUEUE], 30, "the dispatch of its own queue")
        dispatcher.wake("export")
        until(lambda: queued(db) == [QUEUE, "export"], 30, "the dispatch of the other queue")
    finally:
        dispatcher.close()


def test_a_step_of_another_queue_follows_at_once(rig: Rig) -> None:
    """No scheduler is there to dispatch it, and its own queue's worker has no reason to."""
    rig.worker(pool="threads")
    rig.worker("export", "threads")
    job = rig.job_of()
    job.steps.add(name="report", after=["step"]).export_report.title = rig.blob(b"[]")
    done = rig.finished(rig.submit(job))
    first, second = (step.tasks[0].attempts[0] for step in done.steps)
    waited = second.start_time.ToDatetime() - first.end_time.ToDatetime()
    assert waited.total_seconds() < AT_ONCE_SECONDS, rig.logs()


def test_a_task_taken_back_at_the_moment_of_its_claim_is_not_claimed(rig: Rig, db: Db) -> None:
    by = listed(db, slots=1)
    rig.submit(rig.job_of())
    ((task,),) = db.execute(
        "UPDATE open_tasks SET queued_time = now() - interval '1 min' RETURNING task_id"
    ).fetchall()
    with psycopg.connect(rig.database_url) as other, ThreadPoolExecutor(1) as claiming:
        assert turn.recall(other, QUEUE, 1) == 1
        claim = claiming.submit(attempts.claim, db, task, by)
        until(lambda: blocked(other), 30, "a claim that waits for the row")
        other.commit()
        assert claim.result() is None
    assert (count(db, "READY"), count(db, "RUNNING")) == (1, 0)

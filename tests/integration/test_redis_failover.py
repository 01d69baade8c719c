"""Redis changes its mind about who is the primary: workers outlive it, and jobs go on."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from fluoro_jobs.celery import Sender
from fluoro_jobs.ids import new_id
from fluoro_jobs.testing.rig import Rig, until
from fluoro_local.folders import free_port
from fluoro_local.sentinel import Sentinel, ValkeyReplica, sentinel_url
from fluoro_local.servers import ValkeyServer

SWEEP = {"sweep_interval_seconds": 0.3}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _rig(stack: ExitStack, database_url: str, redis_url: str, blob_url: str, folder: Path) -> Rig:
    rig = Rig(database_url, redis_url, blob_url, folder)
    stack.callback(rig.close)
    return rig


def test_jobs_flow_on_and_no_process_ends_when_sentinel_promotes_the_replica_of_a_killed_primary(
    stack: ExitStack, server_folder: Path, database_url: str, blob_url: str, tmp_path: Path
) -> None:
    primary = stack.enter_context(ValkeyServer(server_folder / "primary"))
    replica = stack.enter_context(ValkeyReplica(server_folder / "replica", primary))
    sentinels = [
        stack.enter_context(Sentinel(server_folder / f"sentinel-{n}", primary, quorum=2))
        for n in range(3)
    ]
    until(
        lambda: all(sentinel.replicas() == 1 for sentinel in sentinels),
        20,
        "Sentinels that know the replica",
    )
    rig = _rig(stack, database_url, sentinel_url(sentinels), blob_url, tmp_path)
    workers = [rig.worker(), rig.worker(queue="export", pool="threads")]
    gateway = rig.served("gateway", free_port(), grpc_port=free_port(), grpc_host="127.0.0.1")
    scheduler = rig.served("scheduler", free_port(), **SWEEP)

    def submit(count: int) -> list[object]:
        return [
            rig.submit(rig.job_of(operation=operation))
            for _ in range(count)
            for operation in ("inspect_dicom", "export_report")
        ]

    jobs = submit(5)
    primary.kill()
    killed = time.monotonic()
    while sentinels[0].primary_port() != replica.port:
        jobs += submit(1)
        assert time.monotonic() < killed + 20
    jobs += submit(5)
    for job in jobs:
        rig.finished(job, 40)
    assert [process.poll() for process in (*workers, gateway, scheduler)] == [None] * 4, rig.logs()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_outlives_a_server_that_becomes_a_replica_and_one_started_meanwhile_waits(
    stack: ExitStack,
    server_folder: Path,
    database_url: str,
    blob_url: str,
    tmp_path: Path,
    pool: str,
) -> None:
    server = stack.enter_context(ValkeyServer(server_folder / "valkey"))
    rig = _rig(stack, database_url, server.url, blob_url, tmp_path)
    worker = rig.worker(pool=pool)
    rig.finished(rig.submit(rig.job_of()))
    with redis.Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", "1")  # type: ignore[no-untyped-call]
        late = rig.worker(pool=pool, deaf_after_seconds=600)
        job = rig.submit(rig.job_of())

        def refused_often() -> bool:
            assert [worker.poll(), late.poll()] == [None, None], rig.logs()
            return (
                sum(command["rejected_calls"] for command in client.info("commandstats").values())
                >= 10
            )

        until(refused_often, 30, "workers that ask the replica for messages")
        client.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
        rig.start("scheduler", **SWEEP)
        rig.finished(job, 30)
        for _ in range(10):
            for connection in client.client_list():
                if connection["id"] != str(client.client_id()):
                    client.client_kill_filter(_id=connection["id"])
            rig.finished(rig.submit(rig.job_of()), 30)
    assert [worker.poll(), late.poll()] == [None, None], rig.logs()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_is_as_quick_after_a_lost_connection_as_before(rig: Rig, pool: str) -> None:
    rig.worker(pool=pool)
    rig.finished(rig.submit(rig.job_of()))
    with redis.Redis.from_url(rig.redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    jobs = [rig.submit(rig.job_of({"do": "sleep", "seconds": 0.05})) for _ in range(40)]
    rig.start("scheduler")
    rig.finished(jobs[0])
    began = time.monotonic()
    for job in jobs:
        rig.finished(job)
    assert time.monotonic() - began < 10, "a message for each slot and second"


def test_messages_are_sent_in_batches(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        before = client.info("stats")["total_reads_processed"]
        Sender(redis_url).send([(new_id(), "dicom.inspect", "dicom", 1) for _ in range(2000)])
        assert client.llen("dicom") == 2000
        assert client.info("stats")["total_reads_processed"] - before < 200

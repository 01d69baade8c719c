"""What others put into Fluoro's queues ends no worker and hides no lost message."""

import json
from typing import Final

import pytest
import redis
from fluoro.v1 import job_pb2
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import heartbeats
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.testing.rig import Rig

FOREIGN: Final[list[bytes]] = [
    b"not json",
    b"\xff",
    b"1",
    b"[]",
    b"{}",
    b'{"headers": null}',
    b'{"headers": {"id": "x", "task": "dicom.inspect", "attempt": []}}',
    json.dumps(
        {
            "headers": {"id": str(new_id()), "task": "dicom.inspect", "attempt": 10**30},
            "body": "",
            "properties": {},
        }
    ).encode(),
    json.dumps(
        {
            "headers": {"id": str(new_id()), "task": "dicom.inspect"},
            "body": "!",
            "properties": {"delivery_tag": 1},
        }
    ).encode(),
]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_foreign_message_ends_no_worker(rig: Rig, pool: str) -> None:
    worker = rig.worker(pool=pool, slots=1)
    with redis.Redis.from_url(rig.redis_url) as client:
        for foreign in FOREIGN:
            client.lpush("dicom", foreign)
            job = rig.finished(rig.submit(rig.job_of()))
            assert (job.state, worker.poll()) == (job_pb2.Job.STATE_SUCCEEDED, None), (
                foreign,
                rig.logs(),
            )


@pytest.mark.parametrize("attempt", ["[]", "{}", "1e400", '"x"', str(10**30), "-1"])
def test_a_message_that_asks_for_no_possible_attempt_keeps_no_lost_one_from_being_sent_again(
    rig: Rig, attempt: str
) -> None:
    with rig.connection() as connection, redis.Redis.from_url(rig.redis_url) as client:
        heartbeats.beat(connection, Worker(new_id(), "host:1", "dicom", 4, "0"), [])
        rig.submit(rig.job_of())
        client.delete("dicom")
        client.lpush("dicom", b'{"headers": {"id": "x", "attempt": %s}}' % attempt.encode())
        connection.execute("UPDATE open_tasks SET queued_time = now() - interval '1 min'")
        assert rig.dispatcher.reconcile() == 1

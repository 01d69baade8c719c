"""A new version goes out: one service after the other restarts, and clients notice nothing."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fluoro.v1 import event_pb2, job_pb2
from fluoro_client import AsyncClient
from fluoro_jobs.testing.rig import OWNER, TERMINAL, Rig, until
from fluoro_local.folders import free_port

CLIENTS = 4
GRACE_SECONDS = 2
END_SECONDS = 30
"""How long a service may take to end. It drains for GRACE_SECONDS."""
Outcome = job_pb2.Attempt


class Fleet:
    """Two gateways, three workers and two schedulers. Each can be restarted at its address."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.grpc_ports, self.http_ports = (
            [free_port() for _ in range(2)],
            [free_port() for _ in range(4)],
        )
        grace = {"shutdown_grace_seconds": GRACE_SECONDS}
        self.starts: list[Callable[[], subprocess.Popen[bytes]]] = [
            lambda: rig.served(
                "gateway",
                self.http_ports[0],
                grpc_host="127.0.0.1",
                grpc_port=self.grpc_ports[0],
                **grace,
            ),
            lambda: rig.worker(pool="prefork", slots=2, **grace),
            lambda: rig.served("scheduler", self.http_ports[1], **grace),
            lambda: rig.served(
                "gateway",
                self.http_ports[2],
                grpc_host="127.0.0.1",
                grpc_port=self.grpc_ports[1],
                **grace,
            ),
            lambda: rig.worker(pool="threads", slots=2, **grace),
            lambda: rig.served("scheduler", self.http_ports[3], **grace),
            lambda: rig.worker(pool="prefork", slots=2, **grace),
        ]
        self.processes = [start() for start in self.starts]

    @property
    def target(self) -> str:
        """Both gateways, as a name with two addresses would give them."""
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self.grpc_ports)

    def roll(self) -> None:
        """Restarts each, and goes on once it is ready."""
        for number, start in enumerate(self.starts):
            self.processes[number].terminate()
            assert self.processes[number].wait(END_SECONDS) == 0, self.rig.logs()
            self.processes[number] = start()


async def submitted(client: AsyncClient, *commands: dict[str, object]) -> str:
    blob = await client.upload(json.dumps(commands).encode(), media_type="application/json")
    step = job_pb2.Step(name="step")
    step.inspect_dicom.SetInParent()
    step.retry_policy.max_attempts = 1  # what is handed back costs no attempt
    return (await client.submit(job_pb2.Job(inputs=[blob.name], steps=[step]))).name


async def watched(client: AsyncClient, name: str) -> None:
    """To its end. AssertionError unless every event after the snapshot came once and in order."""
    first, seen = 0, []
    async for message in client.watch(name):
        first = message.snapshot.last_sequence if message.HasField("snapshot") else first
        seen += [message.event.sequence] if message.HasField("event") else []
    job = await client.get(name)
    assert job.state == job_pb2.Job.STATE_SUCCEEDED
    assert seen == list(range(first + 1, job.last_sequence + 1))


@pytest.mark.timeout(240)
async def test_a_rolling_restart_of_everything_under_load_fails_no_client(
    rig: Rig, tmp_path: Path
) -> None:
    fleet = await asyncio.to_thread(Fleet, rig)
    names: list[str] = []
    events: dict[str, list[event_pb2.Event]] = {}
    over = asyncio.Event()

    async def work(client: AsyncClient, number: int) -> None:
        count = 0
        while not over.is_set():
            names.append(
                await submitted(
                    client,
                    {"do": "sleep", "seconds": 0.2},
                    {"do": "touch", "path": f"{tmp_path}/{number}-{count}"},
                )
            )
            await watched(client, names[-1])
            count += 1

    async def follow(client: AsyncClient) -> None:
        async for message in client.watch_jobs():
            if message.HasField("event"):
                events.setdefault(message.event.job, []).append(message.event)

    def all_followed() -> bool:
        return all(
            name in events and events[name][-1].job_changed.state in TERMINAL for name in names
        )

    async with AsyncClient(fleet.target, owner=OWNER) as client, asyncio.TaskGroup() as group:
        follower = group.create_task(follow(client))
        names.append(
            await submitted(client, {"do": "wait", "path": str(tmp_path / "go")})
        )  # runs all the time
        group.create_task(watched(client, names[0]))
        workers = [group.create_task(work(client, number)) for number in range(CLIENTS)]
        await asyncio.to_thread(fleet.roll)
        over.set()
        (tmp_path / "go").touch()
        await asyncio.gather(*workers)
        jobs = [await client.wait(name) for name in names]
        await asyncio.to_thread(until, all_followed, 30, "the end of every job in the watch of all")
        follower.cancel()

    attempts = [attempt for job in jobs for attempt in job.steps[0].tasks[0].attempts]
    assert {job.state for job in jobs} == {job_pb2.Job.STATE_SUCCEEDED}
    assert {attempt.outcome for attempt in attempts} == {
        Outcome.OUTCOME_SUCCEEDED,
        Outcome.OUTCOME_RELEASED,
    }, rig.logs()
    for job in jobs:
        assert [event.sequence for event in events[job.name]] == list(
            range(1, job.last_sequence + 1)
        )

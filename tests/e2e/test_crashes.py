"""Any service may be killed while jobs come in: whatever was accepted is done."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_client.errors import UnavailableError
from fluoro_client.jobs import imaging_report
from fluoro_jobs.testing.rig import until
from fluoro_local.services import SERVICES

BEFORE, AFTER = 2, 2
"""Jobs submitted before and after each kill: 20 in all."""
ALL_DONE_SECONDS = 150
"""From the last kill to the end of all jobs: leases run out within 15 s, then work starts anew."""
QUEUES = {"dicom-worker": "dicom", "ml-worker": "ml", "export-worker": "export"}


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(21_000 + os.getpid() % 9_000, 60_000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


class Up:
    """`python -m fluoro_local up`."""

    def __init__(self, folder: Path) -> None:
        first = free_ports(1 + len(SERVICES))
        self.endpoint = f"127.0.0.1:{first}"
        self.output = folder / "output.txt"
        settings = os.environ | {"FLUORO_GRPC_PORT": str(first), "FLUORO_HTTP_PORT": str(first + 1)}
        command = [sys.executable, "-m", "fluoro_local", "up", "--data", str(folder / "data")]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=settings
            )

    def told(self) -> str:
        assert self.process.poll() is None, self.output.read_text()
        return self.output.read_text()

    def pid_of(self, module: str) -> int | None:
        """The process id of a service: a child of ours that runs `-m module`."""
        children = (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        )
        for pid in children:
            with suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", module.encode()]:
                    return int(pid)
        return None

    def restarted(self, module: str, killed: int) -> bool:
        return self.pid_of(module) not in {None, killed}


@pytest.fixture
def up() -> Iterator[Up]:
    with tempfile.TemporaryDirectory(prefix="fluoro-test-", ignore_cleanup_errors=True) as folder:
        up = Up(Path(folder))
        try:
            until(lambda: "Fluoro runs on" in up.told(), 60, "the start")
            yield up
        finally:
            up.process.send_signal(signal.SIGINT)
            up.process.wait(60)
    assert up.process.returncode == 0


def submit(client: Client, job: job_pb2.Job, request_id: str) -> str:
    """Submits until it is accepted, as a careful caller does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return client.submit(job, request_id=request_id).name
        except UnavailableError:
            assert time.monotonic() < deadline, "no gateway came back"


@pytest.mark.timeout(300)
def test_every_accepted_job_succeeds_though_each_service_is_killed_while_jobs_come_in(
    up: Up, ct: Path
) -> None:
    names: list[str] = []
    with Client(up.endpoint, owner="ada") as client:
        job = imaging_report([client.upload(ct)] * 5)

        def claimed(queue: str) -> bool:
            tasks = [
                task
                for name in names[-BEFORE:]
                for step in client.get(name).steps
                for task in step.tasks
            ]
            return any(task.queue == queue and task.attempts for task in tasks)

        for service in SERVICES:
            module = service.command[-1]
            names += [submit(client, job, f"{module}-before-{number}") for number in range(BEFORE)]
            if service.name in QUEUES:
                until(partial(claimed, QUEUES[service.name]), 60, f"{service.name} taking a task")
            pid = up.pid_of(module)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            names += [submit(client, job, f"{module}-after-{number}") for number in range(AFTER)]
            until(partial(up.restarted, module, pid), 60, f"{service.name} starting again")
        assert len(set(names)) == 20
        deadline = time.monotonic() + ALL_DONE_SECONDS
        states = {
            name: client.wait(name, timeout_seconds=max(0, deadline - time.monotonic())).state
            for name in names
        }
    assert set(states.values()) == {job_pb2.Job.STATE_SUCCEEDED}, up.told()
    for service in SERVICES:
        assert f"{service.name} was killed by SIGKILL" in up.told()

"""A running Fluoro for tests, used as everybody does: by gRPC, HTTP and the `fluoro` command."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from fluoro.v1 import job_pb2
from fluoro_client import Client
from fluoro_client.jobs import imaging_report

from fluoro_local.servers import Server
from fluoro_local.services import Service
from fluoro_local.supervisor import Supervisor

OWNER: Final = "ada"
"""Owner of jobs unless a test says otherwise."""
COMMAND_SECONDS: Final = 60
"""How long one `fluoro` command may take on a machine that is busy with other things."""
JOB_SECONDS: Final = 100
"""How long a small job may take there."""


def tool(command: str) -> str:
    """Path of a program that is independent of us.

    One that is not installed skips the test on a laptop and fails it in CI.
    """
    path = shutil.which(command)
    if path is None:
        verdict = pytest.fail if os.environ.get("CI") else pytest.skip
        verdict(f"{command} is not installed")
    return path


@contextmanager
def standing_still(server: Server) -> Iterator[None]:
    """Stops every process of the server (SIGSTOP) for the block.

    Its connections stay open, and nothing answers.
    """
    stopped: list[int] = []
    try:
        while fresh := [
            pid for pid in _family(server.pid) if pid not in stopped
        ]:  # the first is the parent, which then starts no more
            os.kill(fresh[0], signal.SIGSTOP)
            stopped.append(fresh[0])
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def _family(pid: int) -> list[int]:
    return [
        pid,
        *(
            int(child)
            for children in Path(f"/proc/{pid}/task").glob("*/children")
            for child in children.read_text().split()
        ),
    ]


@dataclass(frozen=True, slots=True)
class RunningFluoro:
    """A Fluoro that runs. supervisor: for tests that stop its servers."""

    supervisor: Supervisor

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return self.supervisor.endpoint

    @property
    def data(self) -> Path:
        """Folder of everything it keeps."""
        return self.supervisor.data

    def client(
        self, owner: str = OWNER, *, patience_seconds: float = 120, deadline_seconds: float = 30
    ) -> Client:
        """A new connection."""
        return Client(
            self.endpoint,
            owner=owner,
            patience_seconds=patience_seconds,
            deadline_seconds=deadline_seconds,
        )

    def run(self, inputs: Sequence[Path | bytes], owner: str = OWNER) -> job_pb2.Job:
        """Runs the imaging-report pipeline on these files; the job after JOB_SECONDS at most."""
        with self.client(owner) as client:
            job = client.submit(imaging_report([client.upload(source) for source in inputs]))
            return client.wait(job.name, timeout_seconds=JOB_SECONDS)

    def get(self, service: str, path: str) -> tuple[int, str]:
        """Status and body of an HTTP endpoint of a service; status 0 when nobody answers."""
        address = urlsplit(self.supervisor.metrics_urls[service]).netloc
        with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except (OSError, http.client.HTTPException):
                return 0, ""

    def readiness(self, service: str) -> tuple[int, set[str]]:
        """Status of /readyz, and the names of the checks that fail."""
        status, body = self.get(service, "/readyz")
        checks = json.loads(body)["checks"] if body else {}
        return status, {name for name, check in checks.items() if not check["ok"]}

    def logs(self) -> str:
        """The end of each service's log, for a failing assertion."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.data.glob("logs/*.log"))
        )

    def command(
        self, *words: object, owner: str = OWNER, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Runs the `fluoro` command to its end."""
        settings = os.environ | {
            "FLUORO_ENDPOINT": self.endpoint,
            "FLUORO_OWNER": owner,
            **environment,
        }
        order = [str(Path(sys.executable).with_name("fluoro")), *map(str, words)]
        done = subprocess.run(
            order,
            env=settings,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def command_json(self, *words: object) -> Any:
        """What the `fluoro` command prints with `--output json`.

        AssertionError if it does not exit with 0.
        """
        done = self.command(*words, "--output", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def running(services: Sequence[Service]) -> Iterator[RunningFluoro]:
    """A Fluoro with these services on free ports, in a folder that goes away with it."""
    # Not below pytest's own folder, which every pytest session shuts to other users: as root,
    # PostgreSQL runs as one.
    with (
        tempfile.TemporaryDirectory(prefix="fluoro-test-", ignore_cleanup_errors=True) as folder,
        Supervisor(Path(folder) / "data", services=services) as supervisor,
    ):
        yield RunningFluoro(supervisor)

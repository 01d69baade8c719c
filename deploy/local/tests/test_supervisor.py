"""The supervisor with small services of our own making, beside the real servers."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fluoro_jobs.testing.rig import until
from fluoro_local import supervisor as supervisor_module
from fluoro_local.errors import StartError
from fluoro_local.services import Service
from fluoro_local.supervisor import Supervisor

SERVING = """
import http.server, os, pathlib, subprocess, sys
pool_child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(pool_child.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
for name in ("DATABASE_URL", "REDIS_URL", "BLOB_URL"):
    assert os.environ["FLUORO_" + name]
http.server.HTTPServer(("127.0.0.1", int(os.environ["FLUORO_HTTP_PORT"])), Handler).serve_forever()
"""
"""Ready at once, and with a child of its own, as a Celery worker has."""

BROKEN = "raise SystemExit('no such setting: FLUORO_COFFEE')"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVING
SILENT = "import time; time.sleep(600)"


def service(name: str, script: str, *arguments: object) -> Service:
    return Service(name, (sys.executable, "-c", script, *map(str, arguments)))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_all_services_are_ready_after_start_and_nothing_is_left_after_stop(
    server_folder: Path,
) -> None:
    services = [service(name, SERVING, server_folder / name) for name in ("one", "two")]
    told: list[str] = []
    with Supervisor(server_folder / "data", services=services, tell=told.append) as running:
        assert sorted(told) == ["one is ready", "two is ready"]
        pids = [
            *running.pids.values(),
            running.postgres.pid,
            running.valkey.pid,
            *(int((server_folder / n).read_text()) for n in ("one", "two")),
        ]
        assert not any(map(gone, pids))
        running.check()
    until(lambda: all(map(gone, pids)))


def test_a_service_that_ends_at_start_is_named_with_its_log_and_everything_is_stopped(
    server_folder: Path,
) -> None:
    services = [service("good", SERVING, server_folder / "good"), service("bad", BROKEN)]
    supervisor = Supervisor(server_folder / "data", services=services)
    with pytest.raises(
        StartError,
        match=r"(?s)bad ended with exit code 1.*bad\.log.*no such setting: FLUORO_COFFEE",
    ):
        supervisor.start()
    assert not supervisor.postgres.running
    assert not supervisor.valkey.running
    assert not supervisor.pids


def test_a_service_that_never_gets_ready_is_given_up_after_a_deadline(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "READY_SECONDS", 0.3)
    with pytest.raises(StartError, match="silent was not ready within"):
        Supervisor(server_folder / "data", services=[service("silent", SILENT)]).start()


def test_a_crash_ends_a_demo_with_the_name_of_the_service(server_folder: Path) -> None:
    with Supervisor(
        server_folder / "data", services=[service("one", SERVING, server_folder / "one")]
    ) as running:
        os.kill(running.pids["one"], signal.SIGKILL)
        with pytest.raises(StartError, match="one was killed by SIGKILL"):
            until(running.check)


def test_a_crashed_service_and_crashed_servers_are_started_again_when_asked_to(
    server_folder: Path,
) -> None:
    told: list[str] = []
    with Supervisor(
        server_folder / "data",
        services=[service("one", SERVING, server_folder / "one")],
        restart=True,
        tell=told.append,
    ) as running:
        first, pool_child, database = (
            running.pids["one"],
            int((server_folder / "one").read_text()),
            running.postgres.pid,
        )
        os.kill(first, signal.SIGKILL)
        os.kill(database, signal.SIGKILL)

        def back() -> bool:
            running.check()
            return running.pids["one"] != first and running.postgres.pid != database

        until(back)
        until(lambda: gone(pool_child))  # it went with the service it belonged to
        assert any(
            "one was killed by SIGKILL" in sentence and "started again in 0.5 s" in sentence
            for sentence in told
        )
        assert any("PostgreSQL ended unexpectedly" in sentence for sentence in told)


def test_a_service_that_ignores_sigterm_is_killed_after_its_grace(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", 0.3)
    told: list[str] = []
    with Supervisor(
        server_folder / "data",
        services=[service("stubborn", STUBBORN, server_folder / "child")],
        tell=told.append,
    ) as running:
        pids = [running.pids["stubborn"], int((server_folder / "child").read_text())]
    until(lambda: all(map(gone, pids)))
    assert any("stubborn did not end" in sentence for sentence in told)


def test_a_taken_gateway_port_is_refused_before_anything_starts(server_folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            StartError, match=f"Port {port} for the gateway is taken .*FLUORO_GRPC_PORT"
        ):
            Supervisor(server_folder / "data", grpc_port=port).start()
    assert not (server_folder / "data").exists()


KILLED = """
import json, pathlib, sys, time
from fluoro_local.services import Service
from fluoro_local.supervisor import Supervisor
base, script = pathlib.Path(sys.argv[1]), sys.argv[2]
services = [Service("one", (sys.executable, "-c", script, str(base / "one")))]
with Supervisor(base / "data", services=services) as running:
    pids = [*running.pids.values(), running.postgres.pid, running.valkey.pid]
    print(json.dumps([*pids, int((base / "one").read_text())]), flush=True)
    time.sleep(600)
"""


def test_no_process_outlives_a_supervisor_that_was_killed_not_even_the_children_of_services(
    server_folder: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(server_folder), STUBBORN],
        stdout=subprocess.PIPE,
        text=True,
    ) as doomed:
        assert doomed.stdout is not None
        pids = json.loads(doomed.stdout.readline())
        assert len(pids) == 4
        assert not any(map(gone, pids))
        doomed.kill()
        until(lambda: all(map(gone, pids)))

"""Real servers, services and peers as child processes, which all end with the benchmark.

That holds when it is killed, too.
"""

import contextlib
import http.client
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import psycopg
from fluoro_jobs.ledger.migrate import migrate
from fluoro_local.children import Child, spawn
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer, ValkeyServer

BENCHMARKS: Final = Path(__file__).parents[1]
READY_SECONDS: Final = 60
"""How long a process may take to be ready."""
STOP_SECONDS: Final = 10
"""How long a process may take to end before it is killed."""
POLL_SECONDS: Final = 0.005
"""How often a starting process is asked whether it is ready."""
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Process:
    """A child. port: of its service to clients, gRPC or HTTP.

    http_port: of its probes, if it is one of Fluoro's.
    """

    child: Child
    port: int
    http_port: int = 0


@dataclass(frozen=True, slots=True)
class Servers:
    """An empty, migrated PostgreSQL (fsync on) and a Valkey (append-only file) of this run."""

    database_url: str
    redis_url: str
    blob_url: str
    folder: Path
    postgres_pid: int
    valkey_pid: int

    @contextmanager
    def service(self, module: str, *arguments: str, **settings: object) -> Iterator[Process]:
        """`python -m MODULE`, ready. settings: FLUORO_ variables by their names."""
        port, http_port = free_port(), free_port()
        own = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "BLOB_URL": self.blob_url,
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": port,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": http_port,
            "LOG_LEVEL": "WARNING",
            "SINGLE_OWNER": "bench",
            "SHUTDOWN_GRACE_SECONDS": 2,
            **{name.upper(): value for name, value in settings.items()},
        }
        environment = {f"FLUORO_{name}": str(value) for name, value in own.items()}
        with self._process(
            [sys.executable, "-m", module, *arguments], environment, lambda _: _probe(http_port)
        ) as child:
            yield Process(child, port, http_port)

    @contextmanager
    def peer(self, module: str, *arguments: str, ready: str = "ready") -> Iterator[Process]:
        """`python -m MODULE PORT`, once its log says `ready`.

        `{port}` in arguments, if there are any, stands for the port.
        """
        port = free_port()
        command = [
            sys.executable,
            "-m",
            module,
            *(part.format(port=port) for part in arguments or ("{port}",)),
        ]
        environment = {"PEER_REDIS_URL": self.redis_url, "PEER_FOLDER": str(self.folder)}
        with self._process(command, environment, lambda child: ready in child.log_tail()) as child:
            yield Process(child, port)

    @contextmanager
    def _process(
        self, command: Sequence[str], environment: Mapping[str, str], ready: Callable[[Child], bool]
    ) -> Iterator[Child]:
        child = spawn(
            command,
            log=self.folder / f"{next(_numbers)}.log",
            env=os.environ | environment,
            cwd=BENCHMARKS,
        )
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not ready(child):
                if not child.running or time.monotonic() > deadline:
                    raise SystemExit(
                        f"{' '.join(command)} did not become ready:\n{child.log_tail()}"
                    )
                time.sleep(POLL_SECONDS)
            yield child
        finally:
            child.stop(signal.SIGTERM, STOP_SECONDS)


@contextmanager
def servers() -> Iterator[Servers]:
    """Starts both servers in a temporary folder.

    SIGTERM ends the benchmark and everything it started, as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="fluoro-bench-"))
    try:
        with (
            PostgresServer(folder / "postgres") as postgres,
            ValkeyServer(folder / "valkey") as valkey,
        ):
            migrate(postgres.url)
            (folder / "blobs").mkdir()
            yield Servers(
                postgres.url,
                valkey.url,
                (folder / "blobs").as_uri(),
                folder,
                postgres.pid,
                valkey.pid,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def durability(database_url: str) -> str:
    """The settings that decide whether a commit survives a power cut, as PostgreSQL tells them."""
    with psycopg.connect(database_url) as connection:
        told = {
            name: connection.execute(f"SHOW {name}").fetchone()
            for name in ("fsync", "synchronous_commit", "full_page_writes")
        }
    return ", ".join(f"{name} {row[0]}" for name, row in told.items() if row)


def cpu_seconds(pid: int) -> tuple[float, float]:
    """What a process has used, and what its living descendants have (proc_pid_stat(5))."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()
            number = int(path.parent.name)
            parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])
    family, found = {pid}, {pid}
    while found:
        found = {number for number, parent in parents.items() if parent in family} - family
        family |= found
    per_second = os.sysconf("SC_CLK_TCK")
    return ticks[pid] / per_second, sum(ticks[number] for number in family - {pid}) / per_second


def _probe(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

"""Fluoro on one machine: starts, watches and stops PostgreSQL, Valkey and every service."""

import http.client
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from alembic.util.exc import CommandError
from fluoro_jobs.ledger.migrate import migrate
from sqlalchemy.exc import SQLAlchemyError

from fluoro_local.children import Child, spawn
from fluoro_local.errors import StartError
from fluoro_local.folders import (
    deidentification_keys,
    free_port,
    prepare,
    require_free_port,
)
from fluoro_local.servers import PostgresServer, Server, ValkeyServer
from fluoro_local.services import SERVICES, Service

SINGLE_OWNER: Final = "me"
"""Owner of calls that name none, unless FLUORO_SINGLE_OWNER says another.

Whoever started it is alone on 127.0.0.1.
"""
READY_SECONDS: Final = 60.0
"""How long a service may take from its start to the first 200 of /readyz."""
STOP_SECONDS: Final = 15.0
"""How long a service may take to end on SIGTERM before SIGKILL."""
DRAIN_SECONDS: Final = 3
"""How long a service that ends lets running work finish: its FLUORO_SHUTDOWN_GRACE_SECONDS.

What does not finish is handed back, and runs at the next start. Short, because a Celery worker that
is asked while something runs waits the whole time, also when the work ends sooner.
"""
FIRST_BACKOFF_SECONDS: Final = 0.5
"""Wait before a crashed service is started again, doubled for each further crash."""
MAX_BACKOFF_SECONDS: Final = 30.0
"""Ceiling of that wait."""
STEADY_SECONDS: Final = 60.0
"""Run time after which an earlier crash is forgotten."""


@dataclass(slots=True, eq=False)
class _Running:
    """A service, its port for health and metrics, its process, and how to go on if that ends."""

    service: Service
    http_port: int
    child: Child
    started: float
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    restart_at: float | None = None


class Supervisor:
    """Owns one running Fluoro.

    Use it as a context manager, and call `check` now and then while it runs.

    data: folder of everything it keeps: postgres/, valkey/, blobs/, logs/, and scratch/ for running
    attempts. services: what to start; a parameter for tests.
    grpc_port: of the gateway; None takes a free one.
    first_http_port: of the first service's health and metrics, the others follow; None takes free
    ones. restart: whether a crashed process is started again (`up`) or ends it all (`demo`).
    tell: called with a sentence for each thing worth knowing.
    """

    def __init__(
        self,
        data: Path,
        *,
        services: Sequence[Service] = SERVICES,
        grpc_port: int | None = None,
        first_http_port: int | None = None,
        restart: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data = data.absolute()
        self.postgres = PostgresServer(self.data / "postgres")
        self.valkey = ValkeyServer(self.data / "valkey")
        self.grpc_port = grpc_port or free_port()
        self._services = services
        self._ports = [
            first_http_port + index if first_http_port else free_port()
            for index in range(len(services))
        ]
        self._require = bool(grpc_port), bool(first_http_port)
        self._restart = restart
        self._tell = tell
        self._running: list[_Running] = []

    @property
    def endpoint(self) -> str:
        """Where clients connect, `host:port`."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics_urls(self) -> dict[str, str]:
        """Prometheus metrics of each service."""
        return {
            service.name: f"http://127.0.0.1:{port}/metrics"
            for service, port in zip(self._services, self._ports, strict=True)
        }

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each service that was started, by its name."""
        return {running.service.name: running.child.pid for running in self._running}

    def start(self) -> None:
        """Start everything and wait until every service is ready.

        Raises StartError, with nothing left running, if one is not.
        """
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._check_ports()
            for folder in (self.data, self.data / "blobs", self.data / "logs"):
                prepare(folder)
            self.postgres.start()
            self.valkey.start()
            # What killed attempts left goes, now that the folder is ours alone.
            shutil.rmtree(self.data / "scratch", ignore_errors=True)
            (self.data / "scratch").mkdir(mode=0o700)
            self._migrate()
            for service, port in zip(self._services, self._ports, strict=True):
                self._running.append(
                    _Running(service, port, self._spawn(service, port), time.monotonic())
                )
            self._await_ready()
            # From here on the caller stops it.
            undo.pop_all()

    def check(self) -> None:
        """Look after every process once.

        A crashed one is started again if `restart`, else StartError says which and why.
        """
        self._check_servers()
        for running in self._running:
            if running.restart_at is not None:
                self._start_again(running)
            elif not running.child.running:
                self._handle_crash(running)

    def stop(self) -> None:
        """End the services, then Valkey, then PostgreSQL. Nothing is left when it returns."""
        # All are asked first, so that they drain side by side.
        for running in self._running:
            if running.child.running:
                running.child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self._running:
            running = self._running[-1]
            if not running.child.finish(max(0.0, deadline - time.monotonic())):
                self._tell(
                    f"{running.service.name} did not end within {STOP_SECONDS:.0f} s "
                    "and was killed."
                )
            self._running.pop()
        self.valkey.stop()
        self.postgres.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _check_ports(self) -> None:
        """Refuse a taken port before anything starts. Ports that we chose ourselves are free."""
        grpc_chosen, http_chosen = self._require
        if grpc_chosen:
            require_free_port(self.grpc_port, "the gateway", "FLUORO_GRPC_PORT")
        if http_chosen:
            for service, port in zip(self._services, self._ports, strict=True):
                require_free_port(
                    port,
                    f"the health and metrics of {service.name}",
                    "FLUORO_HTTP_PORT, the first of consecutive ports",
                )

    def _migrate(self) -> None:
        try:
            migrate(self.postgres.url)
        except (SQLAlchemyError, CommandError) as error:
            raise StartError(
                f"The schema of the ledger in {self.data} could not be brought up to date: {error}"
            ) from error

    def _spawn(self, service: Service, http_port: int) -> Child:
        environment = os.environ | {
            "FLUORO_DATABASE_URL": self.postgres.url,
            "FLUORO_REDIS_URL": self.valkey.url,
            "FLUORO_BLOB_URL": (self.data / "blobs").as_uri(),
            "FLUORO_SCRATCH_FOLDER": str(self.data / "scratch"),
            "FLUORO_HTTP_HOST": "127.0.0.1",
            "FLUORO_HTTP_PORT": str(http_port),
            "FLUORO_LOG_FORMAT": "json",
            "FLUORO_SHUTDOWN_GRACE_SECONDS": str(DRAIN_SECONDS),
        }
        environment.setdefault(
            "FLUORO_DEIDENTIFY_KEYS_FOLDER", str(deidentification_keys(self.data))
        )
        if service.grpc:
            environment |= {
                "FLUORO_GRPC_HOST": "127.0.0.1",
                "FLUORO_GRPC_PORT": str(self.grpc_port),
            }
            environment.setdefault("FLUORO_SINGLE_OWNER", SINGLE_OWNER)
        return spawn(
            service.command, log=self.data / "logs" / f"{service.name}.log", env=environment
        )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        for running in self._not_ready_yet():
            name, child = running.service.name, running.child
            if not child.running:
                raise StartError(_ended(name, child))
            if time.monotonic() > deadline:
                raise StartError(
                    f"{name} was not ready within {READY_SECONDS:.0f} s. "
                    f"The end of its log, {child.log}:\n{child.log_tail()}"
                )
            time.sleep(0.05)

    def _not_ready_yet(self) -> Iterator[_Running]:
        """Yield services that are not ready, again and again, until all are."""
        waiting = list(self._running)
        while waiting:
            for running in list(waiting):
                if running.child.running and _ready(running.http_port):
                    waiting.remove(running)
                    self._tell(f"{running.service.name} is ready")
                else:
                    yield running

    def _check_servers(self) -> None:
        servers: tuple[Server, ...] = (self.postgres, self.valkey)
        for server in servers:
            if server.running:
                continue
            if not self._restart:
                raise StartError(
                    f"{server.name} ended unexpectedly; its log is in {server.folder}."
                )
            self._tell(f"{server.name} ended unexpectedly and is started again.")
            server.start()

    def _handle_crash(self, running: _Running) -> None:
        message = _ended(running.service.name, running.child)
        if not self._restart:
            raise StartError(message)
        now = time.monotonic()
        if now - running.started > STEADY_SECONDS:
            running.backoff_seconds = FIRST_BACKOFF_SECONDS
        running.restart_at = now + running.backoff_seconds
        self._tell(f"{message}\nIt is started again in {running.backoff_seconds:g} s.")
        running.backoff_seconds = min(MAX_BACKOFF_SECONDS, 2 * running.backoff_seconds)

    def _start_again(self, running: _Running) -> None:
        now = time.monotonic()
        if running.restart_at is not None and now >= running.restart_at:
            running.child.kill()  # what is left of its group
            running.child = self._spawn(running.service, running.http_port)
            running.started, running.restart_at = now, None


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ended(name: str, child: Child) -> str:
    code = child.process.returncode
    how = (
        f"was killed by {signal.Signals(-code).name}"
        if code < 0
        else f"ended with exit code {code}"
    )
    return f"{name} {how}. The end of its log, {child.log}:\n{child.log_tail()}"

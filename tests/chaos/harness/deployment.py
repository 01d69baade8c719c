"""A whole Fluoro of real processes that can be hurt: both servers behind proxies, services twice.

Everything listens on loopback or a Unix socket, lives below one folder and ends with this process,
also when it is killed. What ended by itself is started again, as a supervisor would, and counted.
"""

import asyncio
import contextlib
import http.client
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from fluoro_jobs.ledger.migrate import migrate
from fluoro_local.children import Child, spawn
from fluoro_local.folders import free_port
from fluoro_local.replication import PostgresPair
from fluoro_local.servers import PostgresServer, ValkeyServer

from harness.disk import Disk
from harness.plan import Store
from harness.proxy import Proxy

READY_SECONDS: Final = 60
"""How long everything may take to be ready before a round."""
WATCHDOG_SECONDS: Final = 0.2
"""How often processes are looked after."""
SLOTS: Final = 2
GRACE_SECONDS: Final = 1
"""FLUORO_SHUTDOWN_GRACE_SECONDS: short, so that a drained worker hands something back."""

_WORKER: Final = "fluoro_jobs.testing.worker"
SERVICES: Final[dict[str, tuple[str, ...]]] = {
    "gateway-1": ("gateway",),
    "gateway-2": ("gateway",),
    "scheduler-1": ("scheduler",),
    "scheduler-2": ("scheduler",),
    "dicom-prefork": (_WORKER, "dicom", "prefork"),
    "dicom-threads": (_WORKER, "dicom", "threads"),
    "export-prefork-1": (_WORKER, "export", "prefork"),
    "export-prefork-2": (_WORKER, "export", "prefork"),
}
"""Arguments of `python -m`, by the name the plan has for the process."""

Value = TypeVar("Value")


async def until(probe: Callable[[], Value], seconds: float, every_seconds: float = 0.1) -> Value:
    """The first truthy value of `probe`, called in a thread; its last once the time is over."""
    deadline = time.monotonic() + seconds
    while not (value := await asyncio.to_thread(probe)) and time.monotonic() < deadline:  # noqa: ASYNC110 - other processes
        await asyncio.sleep(every_seconds)
    return value


@dataclass(slots=True)
class Service:
    """One process, and the ports it listens on.

    meant: it is down because a fault says so. excused: it may end by itself. lock: faults with the
    same target come one after another.
    """

    name: str
    http_port: int
    grpc_port: int
    child: Child
    meant: bool = False
    excused: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Deployment:
    """Owns the processes.

    folder: everything they keep. exits: those that ended without being told to, by name, with the
    end of their log.

    locks: faults of the same store come one after another.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair = PostgresPair(folder / "postgres")
        self.valkey = ValkeyServer(folder / "valkey", free_port())
        self.disk = Disk(folder / "bytes")
        sockets = [
            _socket_of(server) for server in (self.pair.primary, self.pair.standby)
        ]  # their addresses stay, whoever is the primary
        self.proxies = {
            Store.POSTGRES: [Proxy(free_port(), path) for path in sockets],
            Store.VALKEY: [Proxy(free_port(), self.valkey.port)],
        }
        self.exits: list[tuple[str, str]] = []
        self.services: dict[str, Service] = {}
        self.locks = {store: asyncio.Lock() for store in Store}

    @property
    def postgres(self) -> PostgresServer:
        """The primary. Its standby does not run until there is a failover."""
        return self.pair.primary

    @property
    def blob_url(self) -> str:
        """Of the blob store."""
        return (self.folder / "store").as_uri()

    @property
    def endpoint(self) -> str:
        """Both gateways, for a client."""
        return "ipv4:" + ",".join(
            f"127.0.0.1:{service.grpc_port}"
            for service in self.services.values()
            if "gateway" in service.name
        )

    def start(self) -> None:
        """Starts everything; `ready` says when it is."""
        for name in ("store", "logs", "scratch"):
            (self.folder / name).mkdir()
        self.disk.start()
        # Blobs lie behind a link, so that an outage can begin and end in one atomic step.
        self.point_blobs_at(self.disk.folder)
        self.postgres.start()
        self.valkey.start()
        migrate(self.postgres.url)
        for proxy in chain(*self.proxies.values()):
            proxy.start()
        for name in SERVICES:
            http_port, grpc_port = free_port(), free_port()
            self.services[name] = Service(
                name, http_port, grpc_port, self._spawn(name, http_port, grpc_port)
            )

    def stop(self) -> None:
        """Ends everything."""
        for service in self.services.values():
            service.child.kill()
        for proxy in chain(*self.proxies.values()):
            proxy.close()
        self.send_store(Store.POSTGRES, signal.SIGCONT)
        self.valkey.kill()
        self.pair.stop()

    def point_blobs_at(self, target: Path) -> None:
        """Makes `target` the blob store's folder. A file makes every call of the store fail."""
        link = self.folder / "store" / "blobs.new"
        link.symlink_to(target)
        link.replace(self.folder / "store" / "blobs")

    def kill(self, name: str, *, whole: bool = True) -> None:
        """SIGKILL of a process and its children, or of the main process alone."""
        service = self.services[name]
        service.meant = True
        if whole:
            service.child.kill()
        else:
            service.child.process.kill()
            service.child.process.wait()

    def start_again(self, name: str, clock_offset_seconds: float = 0) -> None:
        """Starts a process that is down; first ends what is left of its group."""
        service = self.services[name]
        service.child.kill()
        service.child = self._spawn(
            name, service.http_port, service.grpc_port, clock_offset_seconds
        )
        service.meant = service.excused = False

    def send(self, name: str, number: signal.Signals) -> None:
        """Signals a process and its children; nothing if it is down."""
        service = self.services[name]
        if service.child.running:
            os.killpg(service.child.pid, number)

    def send_store(self, store: Store, number: signal.Signals, *, whole: bool = True) -> None:
        """Signals a server, and what it has forked: processes of PostgreSQL lead a group each.

        Nothing if it is down.
        """
        server = self.valkey if store is Store.VALKEY else self.postgres
        if server.running:
            os.kill(server.pid, number)
            for pid in _children(server.pid) if whole else ():
                with contextlib.suppress(ProcessLookupError):  # a backend that has just ended
                    os.kill(pid, number)

    def pool_children(self, name: str) -> list[int]:
        """Process ids of a worker's children."""
        return _children(self.services[name].child.pid)

    def swap_valkey(self, *, appendonly: bool) -> None:
        """After a kill: another server at the same address, with or without the old one's data."""
        self.valkey = ValkeyServer(self.folder / "valkey", self.valkey.port, appendonly)
        if not appendonly:
            shutil.rmtree(self.folder / "valkey" / "appendonlydir", ignore_errors=True)

    async def ready(self) -> list[str]:
        """Waits until every service answers /readyz; the names of those that do not."""
        await until(lambda: not self._not_ready(), READY_SECONDS)
        return self._not_ready()

    async def watchdog(self) -> None:
        """Looks after the services until cancelled."""
        while True:
            self.look_after()
            await asyncio.sleep(WATCHDOG_SECONDS)

    def look_after(self) -> None:
        """Starts again what has ended by itself."""
        for service in self.services.values():
            if not service.meant and not service.child.running:
                if not service.excused:
                    self.exits.append(
                        (
                            service.name,
                            (
                                f"ended with {service.child.process.returncode}: "
                                f"{service.child.log_tail()}"
                            ),
                        )
                    )
                self.start_again(service.name)

    def living(self) -> dict[str, int]:
        """Ports of the health of services that no fault has ended or may have ended."""
        return {
            service.name: service.http_port
            for service in self.services.values()
            if not (service.meant or service.excused)
        }

    def _not_ready(self) -> list[str]:
        return [
            service.name
            for service in self.services.values()
            if ask(service.http_port, "/readyz") != HTTPStatus.OK
        ]

    def _spawn(
        self, name: str, http_port: int, grpc_port: int, clock_offset_seconds: float = 0
    ) -> Child:
        hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in self.proxies[Store.POSTGRES])
        own = {
            "DATABASE_URL": f"postgresql://postgres@{hosts}/postgres"
            "?target_session_attrs=read-write&sslmode=disable&gssencmode=disable",
            "REDIS_URL": f"redis://127.0.0.1:{self.proxies[Store.VALKEY][0].port}/0",
            "BLOB_URL": self.blob_url,
            "SCRATCH_FOLDER": self.folder / "scratch",
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": grpc_port,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": http_port,
            "SLOTS": SLOTS,
            "SHUTDOWN_GRACE_SECONDS": GRACE_SECONDS,
        }
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("FLUORO_")
        }
        environment |= {f"FLUORO_{key}": str(value) for key, value in own.items()}
        if clock_offset_seconds:
            environment["CLOCK_OFFSET_SECONDS"] = str(clock_offset_seconds)
        return spawn(
            [sys.executable, "-m", *SERVICES[name]],
            log=self.folder / "logs" / f"{name}.log",
            env=environment,
        )


def ask(port: int, path: str) -> int:
    """The status of an answer over HTTP; 0 for none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _socket_of(server: PostgresServer) -> Path:
    return Path(parse_qs(urlsplit(server.url).query)["host"][0]) / ".s.PGSQL.5432"


def _children(pid: int) -> list[int]:
    """Of a process, as its threads started them (proc(5))."""
    threads = Path(f"/proc/{pid}/task")
    return sorted(
        int(child) for thread in threads.glob("*/children") for child in thread.read_text().split()
    )

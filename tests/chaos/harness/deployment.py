"""A whole Fluoro of real processes that can be hurt: both servers, a gateway, a scheduler and three workers, each in its own group.

Everything listens on loopback or a Unix socket, lives below one folder and ends with this process, also when it is killed.
What ended by itself is started again, as a supervisor would, and counted.
"""

import asyncio
import http.client
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from fluoro_jobs.ledger.migrate import migrate
from fluoro_local.children import Child, spawn
from fluoro_local.folders import free_port
from fluoro_local.servers import PostgresServer, ValkeyServer

READY_SECONDS: Final = 60
"""How long everything may take to be ready before a round."""
WATCHDOG_SECONDS: Final = 0.2
"""How often processes are looked after."""
SLOTS: Final = 2
GRACE_SECONDS: Final = 1
"""FLUORO_SHUTDOWN_GRACE_SECONDS: short, so that a drained worker hands something back."""

_WORKER: Final = "fluoro_jobs.testing.worker"
SERVICES: Final[dict[str, tuple[str, ...]]] = {
    "gateway": ("gateway",),
    "scheduler": ("scheduler",),
    "dicom-prefork": (_WORKER, "dicom", "prefork"),
    "dicom-threads": (_WORKER, "dicom", "threads"),
    "export-prefork": (_WORKER, "export", "prefork"),
}
"""Arguments of `python -m`, by the name the plan has for the process."""

Value = TypeVar("Value")


async def until(probe: Callable[[], Value], seconds: float, every_seconds: float = 0.1) -> Value:
    """The first truthy value of `probe`, called in a thread; its last value once the time is over."""
    deadline = time.monotonic() + seconds
    while not (value := await asyncio.to_thread(probe)) and time.monotonic() < deadline:  # noqa: ASYNC110 - what is probed is other processes
        await asyncio.sleep(every_seconds)
    return value


@dataclass(slots=True)
class Service:
    """One process. meant: it is down because a fault says so. lock: faults with the same target come one after another."""

    name: str
    http_port: int
    child: Child
    meant: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Deployment:
    """Owns the processes. folder: everything they keep. exits: those that ended without being told to, with the end of their log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres = PostgresServer(folder / "postgres")
        self.valkey = ValkeyServer(folder / "valkey")
        self.grpc_port = free_port()
        self.exits: list[str] = []
        self.services: dict[str, Service] = {}
        self.postgres_lock, self.valkey_lock = asyncio.Lock(), asyncio.Lock()

    @property
    def blob_url(self) -> str:
        """Of the blob store."""
        return (self.folder / "store").as_uri()

    def start(self) -> None:
        """Starts everything; `ready` says when it is."""
        for name in ("store", "bytes", "logs", "scratch"):
            (self.folder / name).mkdir()
        # Blobs lie behind a link, so that an outage can begin and end in one atomic step.
        self.point_blobs_at(self.folder / "bytes")
        self.postgres.start()
        self.valkey.start()
        migrate(self.postgres.url)
        for name in SERVICES:
            http_port = free_port()
            self.services[name] = Service(name, http_port, self._spawn(name, http_port))

    def stop(self) -> None:
        """Ends everything."""
        for service in self.services.values():
            service.child.kill()
        self.valkey.kill()
        self.postgres.stop()

    def point_blobs_at(self, target: Path) -> None:
        """Lets the blob store's folder be `target` from now on; a file makes every call of the store fail."""
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

    def start_again(self, name: str) -> None:
        """Starts a process that is down, and ends what is left of its group first, as a supervisor does."""
        service = self.services[name]
        service.child.kill()
        service.child = self._spawn(name, service.http_port)
        service.meant = False

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signals a process and its children; nothing if it is down."""
        service = self.services[name]
        if service.child.running:
            os.killpg(service.child.pid, number)

    def pool_children(self, name: str) -> list[int]:
        """Process ids of a worker's children, as the threads of its main process started them (proc(5))."""
        threads = Path(f"/proc/{self.services[name].child.pid}/task")
        return sorted(int(pid) for thread in threads.glob("*/children") for pid in thread.read_text().split())

    def swap_valkey(self, *, appendonly: bool) -> None:
        """After a kill: another server at the same address, which does or does not know what the one before it held."""
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
            for service in self.services.values():
                if not service.meant and not service.child.running:
                    code = service.child.process.returncode
                    self.exits.append(f"{service.name} ended with {code}: {service.child.log_tail()}")
                    self.start_again(service.name)
            await asyncio.sleep(WATCHDOG_SECONDS)

    def _not_ready(self) -> list[str]:
        return [service.name for service in self.services.values() if not _answers(service.http_port)]

    def _spawn(self, name: str, http_port: int) -> Child:
        own = {
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.valkey.url,
            "BLOB_URL": self.blob_url,
            "SCRATCH_FOLDER": self.folder / "scratch",
            "GRPC_HOST": "127.0.0.1",
            "GRPC_PORT": self.grpc_port,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": http_port,
            "SLOTS": SLOTS,
            "SHUTDOWN_GRACE_SECONDS": GRACE_SECONDS,
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FLUORO_")}
        environment |= {f"FLUORO_{key}": str(value) for key, value in own.items()}
        return spawn([sys.executable, "-m", *SERVICES[name]], log=self.folder / "logs" / f"{name}.log", env=environment)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

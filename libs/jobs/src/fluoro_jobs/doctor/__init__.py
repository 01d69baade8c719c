"""Looks at a deployment and says what is wrong with it, and what to do.

`python -m fluoro_jobs.doctor` does so where the services run. The gateway does it for operators:
DeploymentService.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.metadata import version
from typing import Final

import psycopg
import redis
from fluoro_blobs import BlobStore
from fluoro_blobs.errors import BlobStoreError

from fluoro_jobs.doctor import blobs, broker, ledger
from fluoro_jobs.doctor.findings import Finding, fault
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.connection import Ledger

SECONDS: Final = 20.0
"""How long the stores have to answer, all at the same time."""

RELEASE: Final = version("fluoro-jobs")
"""Version of this release."""

_AWAY: Final = {
    "ledger": "Look at FLUORO_DATABASE_URL and at PostgreSQL: docs/operations/postgresql-gone.md.",
    "redis": "Look at FLUORO_REDIS_URL, which is rediss:// for TLS, and at Redis: "
    "docs/operations/redis-gone.md.",
    "blob store": "Look at FLUORO_BLOB_URL and at the store.",
}
_MEANINGS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (redis.TimeoutError, "no answer in time"),
    (redis.AuthenticationError, "it refuses the user or the password"),
    (redis.InvalidResponse, "what answers is not Redis"),
    (redis.ConnectionError, "it cannot be reached"),
    (psycopg.errors.InsufficientPrivilege, "its user may not read what is looked at"),
)
"""The first that fits counts."""


def diagnose(
    database_url: str, redis_url: str, open_store: Callable[[], BlobStore]
) -> list[Finding]:
    """What there is to say of ledger, workers, Redis and blob store, in this order.

    Takes SECONDS at most. A store that is away is a finding, not an error. It connects anew, so it
    takes nobody's connection, and sees whether one is free.

    ValueError for a URL that is none.
    """
    # A connection for each look: one that hangs must not keep the others from theirs.
    database = Ledger(database_url, max_connections=len(_AWAY))
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "ledger": lambda: ledger.look(database, RELEASE),
        "redis": lambda: broker.look(redis_url, database),
        "blob store": lambda: blobs.look(open_store()),
    }
    threads = ThreadPoolExecutor(len(looks), thread_name_prefix="doctor")
    running = {name: threads.submit(_look, name, look) for name, look in looks.items()}
    done, _ = wait(running.values(), SECONDS)
    # What hangs ends by its own deadlines; the answer does not wait for it.
    threads.shutdown(wait=False)
    database.close()
    return [
        finding
        for name, future in running.items()
        for finding in (
            future.result()
            if future in done
            else [fault(name, f"did not answer within {SECONDS:.0f} s", _AWAY[name])]
        )
    ]


def _look(name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    found = list[Finding]()
    try:
        # What was found before the store failed is still true, and is reported.
        for finding in look():
            found.append(finding)
    except (FluoroError, psycopg.Error, redis.RedisError, BlobStoreError, OSError) as error:
        found.append(fault(name, f"cannot be asked: {_what(error)}", _AWAY[name]))
    return found


def _what(error: Exception) -> str:
    """What is wrong, without the error's text: that may have names and addresses."""
    if isinstance(error, FluoroError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    meanings = (meaning for kind, meaning in _MEANINGS if isinstance(error, kind))
    return next(meanings, type(error).__qualname__)

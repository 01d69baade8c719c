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
    "redis": "Look at FLUORO_REDIS_URL and at Redis: docs/operations/redis-gone.md.",
    "blob store": "Look at FLUORO_BLOB_URL and at the store.",
}


def diagnose(database_url: str, redis_url: str, store: BlobStore) -> list[Finding]:
    """What there is to say of ledger, workers, Redis and blob store, in this order.

    Takes SECONDS at most. A store that is away is a finding, not an error. It connects anew, so it
    takes nobody's connection, and sees whether there is one to be had.
    """
    database = Ledger(database_url, max_connections=len(_AWAY))
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "ledger": lambda: ledger.look(database, RELEASE),
        "redis": lambda: broker.look(redis_url, database),
        "blob store": lambda: blobs.look(store),
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
        for finding in look():
            found.append(finding)
    except (FluoroError, psycopg.Error, redis.RedisError, BlobStoreError, OSError) as error:
        # Not the error's text: it may have names and addresses.
        what = error.message if isinstance(error, FluoroError) else type(error).__qualname__
        found.append(fault(name, f"cannot be asked: {what}", _AWAY[name]))
    return found

"""Redis: whether it keeps messages until they are taken."""

from collections.abc import Iterator
from typing import Any, Final

import redis

from fluoro_jobs.doctor.findings import Finding, fault, ok, warning
from fluoro_jobs.doctor.ledger import clock
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.redis_url import connect, probe

NEARLY_FULL: Final = 0.8
"""Share of `maxmemory` above which Redis soon takes no more."""


def look(redis_url: str, ledger: Ledger) -> Iterator[Finding]:
    """All that Redis can tell. Its clock is compared with the ledger's."""
    with connect(redis_url) as client:
        probe(client)
        try:
            info: dict[str, Any] = client.info("everything")
        except redis.ConnectionError as error:
            # NOPERM counts as a server that is away (`redis_url.AWAY`). The cause tells the two
            # apart.
            if not isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                raise
            yield warning(
                "redis",
                "takes writes; its user may not ask for more",
                "Add +info to the rule of the user: docs/operations/redis.md.",
            )
        else:
            yield from _server(info)
        try:
            with ledger.connection() as connection:
                yield clock("redis", lambda: _seconds(client), connection, "Redis's clock")
        except FluoroError:
            return  # the ledger's own finding says so


def _server(info: dict[str, Any]) -> Iterator[Finding]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    yield ok("redis", f"{name} {info.get('valkey_version') or info['redis_version']}")
    policy = info["maxmemory_policy"]
    if policy == "noeviction":
        yield ok("eviction", policy)
    else:
        yield fault(
            "eviction",
            f"maxmemory-policy is {policy}",
            "Redis may throw queued messages away, and each costs a task a delay. CONFIG SET "
            "maxmemory-policy noeviction, and in its configuration.",
        )
    limit, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    # 0 stands for no limit.
    if limit and used > NEARLY_FULL * limit:
        found = f"{used / limit:.0%} of maxmemory is in use"
        yield warning("memory", found, "Raise maxmemory; beyond it Redis takes no messages.")
    # Redis refuses writes while its log or its snapshot cannot be written (MISCONF).
    if info["aof_enabled"] and info["aof_last_write_status"] != "ok":
        yield fault(
            "persistence",
            "the append-only file cannot be written",
            "Look at the disk of Redis: it takes no messages until the file can be written.",
        )
    elif info["aof_enabled"]:
        yield ok("persistence", "append-only file")
    elif info["rdb_last_bgsave_status"] != "ok":
        yield fault(
            "persistence",
            "the last snapshot failed",
            "Look at the disk of Redis, or switch snapshots off: it may take no messages.",
        )
    else:
        yield ok("persistence", "no append-only file; after a restart the ledger sends all again")


def _seconds(client: Any) -> float:
    seconds, micros = client.time()
    return float(seconds) + float(micros) / 1e6

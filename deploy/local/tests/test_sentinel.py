"""A replica and a Sentinel, started for real."""

from pathlib import Path

import redis
from fluoro_jobs.testing.rig import until
from fluoro_local.sentinel import Sentinel, ValkeyReplica, sentinel_url
from fluoro_local.servers import ValkeyServer


def test_a_sentinel_promotes_the_replica_of_a_killed_primary(server_folder: Path) -> None:
    primary = ValkeyServer(server_folder / "primary")
    with primary, ValkeyReplica(server_folder / "replica", primary) as replica:
        sentinel = Sentinel(server_folder / "sentinel", primary, down_after_seconds=0.5)
        with (
            sentinel,
            redis.Redis.from_url(primary.url) as old,
            redis.Redis.from_url(replica.url) as new,
        ):
            assert (
                sentinel_url([sentinel]) == f"sentinel://127.0.0.1:{sentinel.port}/0?master=fluoro"
            )
            until(lambda: sentinel.replicas() == 1, 20, "a known replica")
            old.set("kept", 1)
            until(lambda: new.get("kept") == b"1", 30, "the copy")
            primary.kill()
            until(lambda: sentinel.primary_port() == replica.port, 20, "the promotion")
            until(lambda: new.info("replication")["role"] == "master", 30, "the replica's new role")
            new.set("kept", 2)

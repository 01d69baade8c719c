"""A Valkey with a replica and Sentinels, for rehearsing a failover of Redis."""

from collections.abc import Sequence
from pathlib import Path

import redis

from fluoro_local.children import Child, spawn
from fluoro_local.folders import free_port, require_free_port
from fluoro_local.servers import Server, ValkeyServer, valkey_binary

MASTER_NAME = "fluoro"
"""What Sentinels call the primary and its replicas."""


class ValkeyReplica(ValkeyServer):
    """A Valkey that copies `primary`, which has to run when it starts for the first time.

    Ready once it has the copy.
    """

    name = "Valkey replica"

    def __init__(self, folder: Path, primary: ValkeyServer, appendonly: bool = True) -> None:
        super().__init__(folder, appendonly=appendonly)
        self._primary = primary

    def _options(self) -> list[object]:
        return [*super()._options(), "--replicaof", "127.0.0.1", self._primary.port]

    def _answers(self) -> bool:
        if not super()._answers():
            return False
        with redis.Redis.from_url(self.url, socket_timeout=2) as client:
            replication = client.info("replication")
            # Without its old primary it starts all the same: a Sentinel tells it whom to follow.
            return (
                replication["role"] == "master"
                or replication["master_link_status"] == "up"
                or not self._primary.running
            )


class Sentinel(Server):
    """A Sentinel that watches `primary`.

    Once `quorum` Sentinels agree that it is gone, they promote a replica.
    """

    name = "Sentinel"
    stop_signal = ValkeyServer.stop_signal

    def __init__(
        self, folder: Path, primary: ValkeyServer, quorum: int = 1, down_after_seconds: float = 1
    ) -> None:
        """down_after_seconds: silence of the primary after which it counts as gone."""
        super().__init__(folder)
        self.port = 0
        self._primary = primary
        self._quorum = quorum
        self._down_after_seconds = down_after_seconds

    def primary_port(self) -> int:
        """Port of the server that this Sentinel calls the primary now."""
        with redis.Redis(port=self.port, socket_timeout=2) as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
            return int(port)

    def replicas(self) -> int:
        """How many replicas it knows that it could promote."""
        with redis.Redis(port=self.port, socket_timeout=2) as client:
            known = client.execute_command("SENTINEL", "REPLICAS", MASTER_NAME)
            return sum(
                "s_down" not in str(replica) and "disconnected" not in str(replica)
                for replica in known
            )

    def _spawn(self, lock: int) -> Child:
        self.port = self.port or free_port()
        require_free_port(self.port, self.name, "the Sentinel's port")
        configuration = self.folder / "sentinel.conf"
        # The Sentinel writes into this file whom it has promoted, so it is made only once.
        if not configuration.exists():
            watched = (
                f"sentinel monitor {MASTER_NAME} 127.0.0.1 {self._primary.port} {self._quorum}"
            )
            down_after = int(self._down_after_seconds * 1000)
            down = f"sentinel down-after-milliseconds {MASTER_NAME} {down_after}"
            lines = ["bind 127.0.0.1", f"port {self.port}", f'dir "{self.folder}"', watched, down]
            configuration.write_text(
                "\n".join([*lines, f"sentinel failover-timeout {MASTER_NAME} 5000", ""])
            )
        return spawn(
            [str(valkey_binary()), str(configuration), "--sentinel"],
            log=self.folder / "sentinel.log",
            orphan_signal=self.stop_signal,
            cwd=self.folder,
            keep_open=[lock],
        )

    def _answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


def sentinel_url(sentinels: Sequence[Sentinel]) -> str:
    """What a service's FLUORO_REDIS_URL says to find the primary through these Sentinels."""
    hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    return f"sentinel://{hosts}/0?master={MASTER_NAME}"

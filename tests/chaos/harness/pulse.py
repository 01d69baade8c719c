"""How long anything waited that could go on, and whether processes called themselves alive.

Looks straight into the ledger, past the proxy, and at every /healthz, from threads of its own.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import psycopg
from audit import Finding
from psycopg import Connection
from psycopg.rows import TupleRow

from harness.deployment import ask

LOOK_SECONDS: Final = 0.25
"""How often the ledger is looked at."""
HEALTH_SECONDS: Final = 1.0
"""How often processes are asked whether they are alive."""
CONNECT_SECONDS: Final = 2

STALL_SECONDS: Final = 30
"""How long anything that can go on may wait after the last fault.

A lease, a back-off, deadlines of calls, and room.
"""

_CAN_GO_ON: Final = """
SELECT o.task_id, o.attempt, o.state = 'RUNNING',
  'jobs/' || o.job_id || ' step ' || t.step || ' ' || o.state
FROM open_tasks o JOIN tasks t ON t.id = o.task_id
WHERE o.job_id >= %s AND (o.state <> 'RUNNING' AND o.due_time <= now() OR o.state = 'RUNNING'
  AND o.lease_expire_time < now())
"""
"""Open tasks that could be claimed or whose lease is over, of jobs from one on (by id, so time)."""


@dataclass(slots=True)
class Wait:
    """Something that could go on and did not yet: an unanswered call, an unclaimed task.

    Times are by time.monotonic(), in seconds.
    """

    what: str
    began: float
    ended: float

    def within(self, since: float, until: float) -> float:
        """Seconds of it that lie between two times."""
        return min(self.ended, until) - max(self.began, since)


def longest(waits: Iterable[Wait], since: float, until: float) -> tuple[float, str]:
    """Of what waited between two times: seconds, and what it was; 0 and "" for nothing."""
    return max(
        (
            (round(wait.within(since, until), 2), wait.what)
            for wait in waits
            if wait.within(since, until) > 0
        ),
        default=(0.0, ""),
    )


def judge(
    stall: tuple[float, str], unhealthy: Iterable[str], exits: Iterable[tuple[str, str]]
) -> list[Finding]:
    """What is wrong with a deployment.

    stall: what `longest` says of the time after the last fault. exits: names, and what they said.
    """
    findings = [
        Finding("unhealthy", name, "It said 503 at /healthz.") for name in sorted(unhealthy)
    ]
    findings += [Finding("exited", name, f"It {text}") for name, text in exits]
    if stall[0] > STALL_SECONDS:
        findings.append(
            Finding(
                "stalled", stall[1], f"It could go on and waited {stall[0]} s after the last fault."
            )
        )
    return findings


class Pulse:
    """Watches until left. unhealthy: services that said 503 at /healthz."""

    def __init__(
        self, database_url: Callable[[], str], first: UUID, ports: Callable[[], Mapping[str, int]]
    ) -> None:
        """database_url: of the ledger now.

        first: of the jobs to look at. ports: of the health of each service that should live now.
        """
        self.unhealthy: set[str] = set()
        self._database_url = database_url
        self._first = first
        self._ports = ports
        self._waits: list[Wait] = []
        self._open: dict[tuple[UUID, int, bool], Wait] = {}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=arguments, daemon=True)
            for arguments in ((LOOK_SECONDS, self._look), (HEALTH_SECONDS, self._ask))
        ]
        self._connection: Connection[TupleRow] | None = None

    @property
    def waits(self) -> list[Wait]:
        """Of tasks, so far."""
        return [*self._waits, *self._open.values()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._connection is not None:
            self._connection.close()

    def _repeat(self, every_seconds: float, look: Callable[[], None]) -> None:
        while not self._over.wait(every_seconds):
            look()

    def _look(self) -> None:
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    self._database_url(), autocommit=True, connect_timeout=CONNECT_SECONDS
                )
            rows = self._connection.execute(_CAN_GO_ON, (self._first,)).fetchall()
        except psycopg.Error:  # a fault has it; what waits is seen to wait afterwards
            self._connection = None
            return
        now, before, self._open = time.monotonic(), self._open, {}
        for task, attempt, running, what in rows:
            wait = before.pop((task, attempt, running), None) or Wait(what, now, now)
            wait.what, wait.ended = what, now
            self._open[task, attempt, running] = wait
        self._waits += before.values()

    def _ask(self) -> None:
        ports = self._ports()
        with ThreadPoolExecutor(max(1, len(ports))) as pool:
            answers = dict(
                zip(
                    ports, pool.map(lambda port: ask(port, "/healthz"), ports.values()), strict=True
                )
            )
        # Who was told to end meanwhile may have said so.
        self.unhealthy |= {
            name for name in self._ports() if answers.get(name) == HTTPStatus.SERVICE_UNAVAILABLE
        }
